"""Networks of every framework: which one a model belongs to, what it is called with, and opening it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eckart.errors import UsageError
from eckart.models._network import Batch, Network

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import TypeIs

__all__ = ["batches_in", "is_network", "open_network", "what"]

BATCHES = "a list of input arrays, or (x for x, y in loader)"


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


def is_network(model: Any) -> TypeIs[nn.Module]:
    """Return whether a model is a network of kernels, which is run on arrays and not on text."""
    return bool(_kind(model))


def what(model: Any) -> str:
    """Return what a network is, for people."""
    return NAMES[_kind(model)]


def batches_in(data: Any, model: Any) -> list[Batch]:
    """Return what the network is called with, a batch after the other; UsageError: there is none."""
    if isinstance(data, (str, os.PathLike)) or not isinstance(data, Iterable):
        raise UsageError(
            f"data= of {what(model)} must be batches that it can be called with, not {data!r:.60}", fix=BATCHES
        )
    batches = list(data)
    if not batches:
        raise UsageError("data= has no batch", fix=BATCHES)
    return batches


def open_network(model: Any, example: Batch) -> Network:
    """Return a network with the weights of a model, which is not changed. example: a batch that it can be called with,
    which decides in what order the layers come and which of them are used.
    """
    kind = _kind(model)
    if kind == "onnx":
        from eckart.models._onnx_network import OnnxNetwork

        return OnnxNetwork(model, example)
    if kind == "keras":
        from eckart.models._keras_network import KerasNetwork

        return KerasNetwork(model, example)
    from eckart.models._torch_network import TorchNetwork

    return TorchNetwork(model, example)
