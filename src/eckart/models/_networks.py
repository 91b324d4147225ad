"""Networks of every framework: which one a model belongs to, what it is called with, and opening it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eckart.errors import MissingExtraError, UsageError
from eckart.models._array_files import SUFFIXES, batches_of
from eckart.models._network import Batch, Network

__all__ = ["batches_in", "check_name", "is_network", "open_network", "what"]

BATCHES = "a list of input arrays, (x for x, y in loader), or the path of a .npy or .npz file"


FILES = {".onnx": "onnx", ".keras": "keras"}
NAMES = {"torch": "a torch module", "onnx": "an ONNX file", "keras": "a Keras model"}


def _kind(model: Any) -> str:
    """Return a key of NAMES, or "" for what is opened as a language model. Nothing is imported to find out."""
    if isinstance(model, (str, os.PathLike)):
        return FILES.get(os.path.splitext(os.fspath(model))[1].lower(), "")
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.Model):  # which on its torch backend is a torch module as well
        return "keras"
    return "torch" if torch is not None and isinstance(model, torch.nn.Module) else ""


def is_network(model: Any) -> bool:
    """Return whether a model is a network of kernels, which is run on arrays and not on text."""
    return bool(_kind(model))


def what(model: Any) -> str:
    """Return what a network is, for people."""
    return NAMES[_kind(model)]


def check_name(model: Any, out: Path) -> None:
    """Raise UsageError where `out` cannot be what a network is saved as: a folder, or a file of its kind."""
    suffix = next((suffix for suffix, kind in FILES.items() if kind == _kind(model)), "")
    if out.suffix.lower() != suffix and (suffix or out.suffix.lower() in FILES):
        raise UsageError(
            f"{what(model)} is saved as a {suffix + ' file' if suffix else 'folder'}, not as {out}",
            fix=f"out={str(out.with_suffix(suffix))!r}",
        )


def batches_in(data: Any, model: Any) -> list[Batch]:
    """Return what the network is called with, a batch after the other, given in memory or in .npy and .npz files.

    UsageError: there is none. InputError: as for `batches_of`.
    """
    given = [data] if isinstance(data, (str, os.PathLike)) else data
    paths = isinstance(given, Sequence) and bool(given) and all(isinstance(one, (str, os.PathLike)) for one in given)
    if not isinstance(given, Iterable) or (paths and not all(_holds_arrays(one) for one in given)):
        raise UsageError(
            f"data= of {what(model)} must be batches that it can be called with, not {data!r:.60}", fix=BATCHES
        )
    batches = [batch for one in given for batch in batches_of(Path(one))] if paths else list(given)
    if not batches:
        raise UsageError("data= has no batch", fix=BATCHES)
    return [_as_tensors(batch) for batch in batches] if paths and _kind(model) == "torch" else batches


def _holds_arrays(path: str | os.PathLike[str]) -> bool:
    return os.path.splitext(os.fspath(path))[1].lower() in SUFFIXES


def _as_tensors(batch: Batch) -> Batch:
    """Return a batch of NumPy arrays as one of torch tensors, which own their memory."""
    import torch

    if isinstance(batch, dict):
        return {name: torch.tensor(one) for name, one in batch.items()}
    return tuple(map(torch.tensor, batch)) if isinstance(batch, tuple) else torch.tensor(batch)


def open_network(model: Any, example: Batch) -> Network:
    """Return a network with the weights of a model, which is not changed. example: a batch that it can be called with,
    which decides in what order the layers come and which of them are used.
    """
    kind = _kind(model)
    for package in {"onnx": ("onnx", "onnxruntime"), "keras": ("keras",)}.get(kind, ()):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, kind, f"opening {what(model)}")
    if kind == "onnx":
        from eckart.models._onnx_network import OnnxNetwork

        return OnnxNetwork(model, example)
    if kind == "keras":
        from eckart.models._keras_network import KerasNetwork

        return KerasNetwork(model, example)
    from eckart.models._torch_network import TorchNetwork

    return TorchNetwork(model, example)
