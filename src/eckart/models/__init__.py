"""What a model is: iterate over its weights, replace one, run it, listen to it, measure it, save it."""

from __future__ import annotations

import os
from typing import Any

from eckart.errors import InputError
from eckart.models._measure import Measurement, measure
from eckart.models._model import Layer, Model, Weight

__all__ = ["Layer", "Measurement", "Model", "Weight", "load", "measure", "open_model"]


def open_model(source: str | os.PathLike[str] | Model, *, device: Any = None, stream: bool = False) -> Model:
    """Open a trained model; nothing that it brings along is executed.

    source: a Hugging Face folder with safetensors, a .gguf file of a dense architecture that transformers reads, a hub
    id (from the local cache, else downloaded), or bare .safetensors files, which can be read but not run. device: where
    it runs, the CPU where None. stream: leave the weights of the repeated blocks in their files, to be read a block at
    a time; `module` then holds meta tensors for them. Where that cannot be done they are in memory, and `whole` says
    why. InputError, UnsafeInputError: see `resolve`; NumericalError: NaN or infinity in a weight; MissingExtraError:
    transformers is not installed.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    from eckart.models._source import resolve

    try:
        found = resolve(source)
    except InputError as error:
        if error.code != "E-missing" or not _downloaded(os.fspath(source)):
            raise
        found = resolve(source)
    if found.kind == "gguf":
        from eckart.models._open_huggingface import open_gguf

        return open_gguf(found, device or "cpu", stream=stream)
    if found.kind == "folder" and found.config is not None and "model_type" in found.config:
        from eckart.models._open_huggingface import open_folder

        return open_folder(found, device or "cpu", stream=stream)
    from eckart.models._bare import BareModel

    return BareModel(found)


def load(module: Any, folder: str | os.PathLike[str]) -> Any:
    """Return a torch module like the one given, but compressed: with the layers and weights that `compress` saved.

    module: as it was before, with any weights, on any device and of any floating type; it is not changed. folder: what
    `compress(module, …, out=folder)` wrote; nothing in it is executed. InputError, UnsafeInputError: the folder is
    incomplete or broken, or of another module.
    """
    from eckart.models._torch_files import load as loaded

    return loaded(module, folder)


def _downloaded(name: str) -> bool:
    """Fetch a hub id into the local cache; False for what is no hub id, or where there is no network or no hub."""
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        return False
    try:
        snapshot_download(name, allow_patterns=_NEEDED)
    except (HfHubHTTPError, OSError, ValueError):
        return False
    return True


_NEEDED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "LICENSE*", "NOTICE*", "README.md"]
