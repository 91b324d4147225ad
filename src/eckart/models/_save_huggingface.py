"""Saving a transformers model: weights, config, tokenizer and licence, in a folder that from_pretrained loads."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eckart._files import dump_json, write_whole
from eckart.models._factored_classes import PREFIX, STEM, factored_config, options_to_config
from eckart.models._huggingface import HuggingFaceModel, stored_in
from eckart.models._option import Option
from eckart.models._safetensors import PendingTensor, predict_bytes, stored_dtype, write_sharded
from eckart.models._tensors import bytes_in

__all__ = ["predicted_bytes", "predicted_parameters", "save"]

_DENSE_STEM = "model"
_COPIED = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.jinja", "*.tiktoken",
    "chat_template*", "spiece.model", "sentencepiece*", "generation_config.json", "preprocessor_config.json",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def save(model: HuggingFaceModel, folder: Path, *, dtype: str, max_shard_bytes: int) -> int:
    """Write everything but the model card into `folder` and return the bytes of the weight files, index included.

    The index is written last, so that an unfinished folder never looks loadable. A model with factored layers gets
    `model_type: eckart_<base>` and file names that only Eckart's classes look for; a dense one is an ordinary
    checkpoint. OutputError as in `write_sharded`.
    """
    _write_config(model, folder, dtype)
    _copy_companions(model, folder)
    tensors = []
    for name, tensor in model.tensors():
        target = stored_in(name, tensor, model.replaced, dtype)
        tensors.append(PendingTensor(name, stored_dtype(target), tuple(tensor.shape), _bytes_of(model, tensor, target)))
    stem = STEM if model.replaced else _DENSE_STEM
    return write_sharded(folder, tensors, stem=stem, max_shard_bytes=max_shard_bytes)


def predicted_bytes(model: HuggingFaceModel, options: Mapping[str, Option], *, dtype: str, max_shard_bytes: int) -> int:
    """Return the exact size of the weight files, index included, once `options` have replaced layers of it."""
    specs = _specs(model, options, dtype)
    stem = STEM if options else _DENSE_STEM
    return predict_bytes(specs, stem=stem, max_shard_bytes=max_shard_bytes)


def predicted_parameters(model: HuggingFaceModel, options: Mapping[str, Option]) -> int:
    """Return how many numbers the model holds once `options` have replaced layers of it; tied ones count once."""
    layers = model.layers()
    before = sum(layers[name].rows * (layers[name].columns + layers[name].bias) for name in options)
    return model.parameters - before + sum(option.params for option in options.values())


def _specs(model: HuggingFaceModel, options: Mapping[str, Option], dtype: str) -> list[PendingTensor]:
    specs, done = [], set()
    for name, tensor in model.tensors():
        layer = name.rpartition(".")[0]
        parts = {name: tensor}
        if layer in options:
            parts = {} if layer in done else {f"{layer}.{n}": t for n, t in model.stored(layer, options[layer]).items()}
            done.add(layer)
        for part, like in parts.items():
            specs.append(
                PendingTensor(part, stored_dtype(stored_in(part, like, options, dtype)), tuple(like.shape), bytes)
            )
    return specs


def _write_config(model: HuggingFaceModel, folder: Path, dtype: str) -> None:
    config = copy.deepcopy(model.module.config)
    values = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "quantization_config", "transformers_version"):
        values.pop(name, None)
    architecture = type(model.module).__name__.removeprefix("Eckart")
    values["dtype"] = dtype
    values["architectures"] = [architecture]
    if model.replaced:
        base = model.model_type.removeprefix(PREFIX)
        values["model_type"] = factored_config(base).model_type
        values["architectures"] = [f"Eckart{architecture}"]
        values["eckart"] = options_to_config(model.replaced)
    with write_whole(folder / "config.json") as file:
        file.write(dump_json(values).encode())


def _copy_companions(model: HuggingFaceModel, folder: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence byte for byte; write what a GGUF file holds."""
    source = Path(model.path)
    if source.is_dir():
        found = {path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}
    else:
        found = {path for pattern in ("LICENSE*", "NOTICE*") for path in source.parent.glob(pattern) if path.is_file()}
        model.tokenizer.save_pretrained(folder)
        model.module.generation_config.save_pretrained(folder)
    for path in sorted(found):
        shutil.copyfile(path, folder / path.name)


def _bytes_of(model: HuggingFaceModel, tensor: torch.Tensor, dtype: str) -> Any:
    """Return what gives the tensor's bytes in this dtype when its turn to be written comes."""

    def data() -> memoryview:
        return bytes_in(model.shelf.value(tensor), dtype)

    return data
