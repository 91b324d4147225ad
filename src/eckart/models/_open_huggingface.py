"""Opening a Hugging Face folder or a GGUF file as a model that runs; both have passed `resolve`'s safety checks."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eckart._files import new_folder
from eckart.errors import InputError, MissingExtraError, OutputError
from eckart.models._blocks import block_names
from eckart.models._huggingface import HuggingFaceModel
from eckart.models._option import Option, read_option
from eckart.models._safetensors import Checkpoint, TensorInfo, array_dtype, open_checkpoint
from eckart.models._shelf import PutOff, Shelf, shelve
from eckart.models._source import Source

__all__ = ["open_folder", "open_gguf"]


def open_folder(source: Source, device: Any, *, stream: bool = False) -> HuggingFaceModel:
    """Return the model of a folder with config.json and safetensors; code in the folder is never run."""
    from eckart.models import _factored_classes

    _factored_classes.register()
    assert isinstance(source.weights, Checkpoint)
    loaded = _load_folder(source.path, source.weights, device, stream)
    model = HuggingFaceModel(
        loaded.module,
        loaded.tokenizer,
        name=_title(source),
        path=str(source.path),
        stored_dtype=source.floating_dtype,
        input_bytes=source.file_bytes,
        licence=source.licence,
        shelf=loaded.shelf,
        whole=loaded.whole,
    )
    model.replaced = _replaced(model)
    model.check_finite()
    return model


def open_gguf(source: Source, device: Any, *, stream: bool = False) -> HuggingFaceModel:
    """Return the model of a GGUF file, its weights dequantised to float32.

    Where ECKART_CACHE names a folder, the converted model is kept there and the next call reads it in seconds.
    """
    cached = _cached_conversion(source.path)
    if cached is not None and cached.exists():
        loaded = _load_folder(cached, open_checkpoint(cached), device, stream)
    else:
        module, tokenizer = _converted(source.path)
        if cached is not None:
            with contextlib.suppress(OutputError), new_folder(cached) as folder:  # a copy for next time, not a result
                module.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        why = "it was converted from GGUF just now" if cached else "without ECKART_CACHE a GGUF file is converted anew"
        loaded = _Loaded(module.to(device), tokenizer, whole=why if stream else "")
    model = HuggingFaceModel(
        loaded.module,
        loaded.tokenizer,
        name=_title(source),
        path=str(source.path),
        stored_dtype="float16",
        input_bytes=source.file_bytes,
        quantised=True,
        licence=source.licence,
        shelf=loaded.shelf,
        whole=loaded.whole,
    )
    model.check_finite()
    return model


@dataclass(frozen=True)
class _Loaded:
    """A model as transformers made it. whole: why no weights wait on the shelf though that was asked for, or ""."""

    module: Any
    tokenizer: Any
    shelf: Shelf | None = None
    whole: str = ""


def _load_folder(folder: Path, weights: Checkpoint, device: Any, stream: bool) -> _Loaded:
    """Return the model of a folder; with `stream`, the weights of its blocks wait in the files if they can."""
    if not stream:
        return _Loaded(*_load(folder, {}, device))
    infos = list(weights.tensors.values())
    put_off = {info.name: PutOff(info, number if _may_wait(info) else 0) for number, info in enumerate(infos, start=1)}
    with contextlib.suppress(InputError):  # which opening it whole raises again, if it does not go away
        module, tokenizer = _load(folder, {}, device, put_off)
        if shelf := shelve(infos, block_names(module), module, device):
            return _Loaded(module, tokenizer, shelf)
    return _Loaded(*_load(folder, {}, device), whole="its files hold blocks in another form than memory does")


def _may_wait(info: TensorInfo) -> bool:
    """Whether a tensor may be one of a block's, which have a number in their name; others are read at once."""
    return any(part.isdigit() for part in info.name.split(".")) and hasattr(torch, array_dtype(info.dtype) or "-")


def _load(
    folder: Path, more: dict[str, Any], device: Any, tensors: Mapping[str, PutOff] | None = None
) -> tuple[Any, Any]:
    """Return (module, tokenizer), every weight read from the file; InputError where transformers would invent some.

    tensors: what stands for the tensors of the files, which are then not opened.
    """
    with _quiet_transformers() as transformers:
        try:
            auto, config = _class_for(transformers, folder, more)
            module, report = auto.from_pretrained(
                folder if tensors is None else None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=not more,  # only what has been checked; GGUF is neither
                **more,
            )
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            if isinstance(error, ImportError):
                raise MissingExtraError(str(error), "hf", f"opening {folder.name}") from error
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"transformers cannot open {folder}: {line}", file=str(folder)) from error
        missing = sorted(report.get("missing_keys", ()))
        wrong = sorted(str(key) for key in report.get("mismatched_keys", ()))
        if missing or wrong:
            raise InputError(
                f"{folder} lacks {len(missing)} tensors that {type(module).__name__} needs and has {len(wrong)} of the "
                f"wrong shape, e.g. {(missing + wrong)[0]}",
                why="transformers would fill them with random numbers",
                fix="download the model again",
                file=str(folder),
                tensor=(missing + wrong)[0],
            )
        if tensors is not None and (folder / "generation_config.json").exists():
            module.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        module._apply(lambda tensor: tensor if tensor.device.type == "meta" else tensor.to(device))
        return module, _tokenizer(transformers, folder, more)


def _class_for(transformers: Any, folder: Path, more: dict[str, Any]) -> tuple[Any, Any]:
    """Return the class that the config names among transformers' own, and the config."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)
    for name in getattr(config, "architectures", None) or ():
        if config.model_type.startswith("eckart_"):
            from eckart.models._factored_classes import factored_model

            base = getattr(transformers, name.removeprefix("Eckart"), None)
            if base is not None:
                return factored_model(base, config.model_type.removeprefix("eckart_")), config
        elif hasattr(transformers, name):
            return getattr(transformers, name), config
    return transformers.AutoModelForCausalLM, config


def _tokenizer(transformers: Any, folder: Path, more: dict[str, Any]) -> Any:
    """Return the tokenizer, or None for a folder that has none; text can then not be used with the model."""
    if not more and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        return None
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)


def _converted(path: Path) -> tuple[Any, Any]:
    """Return (module, tokenizer) of a GGUF file, seen alone: what else its folder holds has not been checked."""
    with tempfile.TemporaryDirectory() as alone:
        os.symlink(path.resolve(), Path(alone) / path.name)
        module, tokenizer = _load(Path(alone), {"gguf_file": path.name}, "cpu")
    return _without_quantisation(module), tokenizer


def _without_quantisation(module: Any) -> Any:
    """Return the module as an ordinary dense one; transformers marks what it read from GGUF and refuses to save it."""
    config = copy.deepcopy(module.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(module)(config)
    plain.load_state_dict(module.state_dict())
    plain.generation_config = module.generation_config
    return plain.eval()


def _replaced(model: HuggingFaceModel) -> dict[str, Option]:
    from eckart.models._layers import shape_of

    entry = getattr(model.module.config, "eckart", None) or {"layers": {}}
    return {
        name: read_option(value, *shape_of(model.module.get_submodule(name))) for name, value in entry["layers"].items()
    }


def _title(source: Source) -> str:
    """Return the name to print: a hub id as it was given, and of a path the last part, which says nothing private."""
    return Path(source.name).resolve().name if os.path.exists(source.name) else source.name


def _cached_conversion(path: Path) -> Path | None:
    cache = os.environ.get("ECKART_CACHE")
    if not cache:
        return None
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Path(cache) / "gguf" / digest


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """Give transformers with its bars and hints off; what matters of them is raised as an error instead."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "opening a model that runs") from error
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
