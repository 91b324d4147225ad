"""Layers of Keras as kernels, and the standard layers that do their work as chains of smaller ones."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from eckart._arrays import Array, to_numpy
from eckart.models._kernel import Kernel, Pads, useful_forms

__all__ = [
    "KERNELS",
    "filled",
    "first_channels",
    "kept_because",
    "kernel_of",
    "lengths_of",
    "take_over_",
    "values",
    "weight_of",
]

_PLAIN: dict[int, Any] = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_TRANSPOSED: dict[int, Any] = {
    1: keras.layers.Conv1DTranspose,
    2: keras.layers.Conv2DTranspose,
    3: keras.layers.Conv3DTranspose,
}
KERNELS = (keras.layers.Dense, *_PLAIN.values(), *_TRANSPOSED.values())
TAKEN_OVER = (  # of a layer's configuration, by every stage of its chain
    "trainable", "dtype", "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
    "bias_constraint",
)  # fmt: skip

Lengths = tuple[int, ...]


def values(tensor: Any) -> Array:
    """Return a tensor or a variable of Keras in NumPy; half floats, for which there is no LAPACK, in float32."""
    tensor = getattr(tensor, "value", tensor)
    array = to_numpy(tensor.detach() if hasattr(tensor, "detach") else tensor)
    return array.astype(np.float32) if array.dtype == np.float16 else array


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Keep silent what NumPy 2 says of Keras 3.15, which asks it to copy tensors that do not know how.

    As an error, where warnings are, it would stop Keras half way through a file.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        yield


def take_over_(layer: Any, other: Any) -> None:
    """Give a layer the values of all variables of another."""
    for mine, its in zip(layer.variables, other.variables, strict=True):
        mine.assign(keras.ops.copy(its.value))  # on JAX `fit` and `predict` give away the memory of what they are given


def kernel_of(layer: Any, lengths: Lengths, after: Lengths) -> Kernel:
    """Return the kernel of a convolution or of a dense layer that makes, of inputs of some lengths, outputs of others.

    What Keras pads "same" with depends on the lengths where a stride is above 1.
    """
    shape, bias = tuple(layer.kernel.shape), bool(layer.use_bias)
    if not hasattr(layer, "kernel_size"):
        return Kernel(shape[1], shape[0], bias=bias)
    transposed = type(layer) in _TRANSPOSED.values()
    into, out = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
    return Kernel(
        out=out,
        into=into,
        size=tuple(layer.kernel_size),
        stride=tuple(layer.strides),
        padding=_padding(layer, lengths, after),
        dilation=tuple(layer.dilation_rate),
        groups=1 if transposed else layer.groups,
        transposed=transposed,
        bias=bias,
    )


def _padding(layer: Any, lengths: Lengths, after: Lengths) -> Pads:
    found: list[tuple[int, int]] = []
    transposed = type(layer) in _TRANSPOSED.values()
    steps = zip(layer.kernel_size, layer.strides, layer.dilation_rate, lengths, after, strict=True)
    for size, stride, dilation, n, m in steps:
        reach = dilation * (size - 1)
        if transposed:
            total = (n - 1) * stride + reach + 1 - m
        elif layer.padding == "valid":
            total = 0
        else:
            total = max((m - 1) * stride + reach + 1 - n, 0)
        before = {"valid": 0, "same": max(total // 2, 0), "causal": reach}[layer.padding]
        found.append((before, 0 if layer.padding == "causal" else total - before))
    return tuple(found)


def kept_because(layer: Any, kernel: Kernel, calls: Sequence[tuple[Lengths, Lengths]], *, fixed: bool) -> str:
    """Return why a layer must stay as it is, or "".

    calls: lengths before and after, of every call on the example. fixed: whether every input has lengths that are.
    """
    if getattr(layer, "quantization_mode", None) is not None:
        return "its weights are quantised"
    if getattr(layer, "lora_enabled", False):
        return "its weights are a sum with those of LoRA"
    if layer.kernel_constraint is not None:
        return "a constraint holds for its kernel as a whole"
    if kernel.size and layer.padding == "same" and max(kernel.stride) > 1 and not kernel.transposed:
        if not fixed:
            return "what it pads depends on the length of its input, which the model leaves open"
        if any(kernel_of(layer, *call) != kernel for call in calls):
            return "it is called on inputs that it pads differently"
    if not useful_forms(kernel):
        return "each output reads one channel: depthwise, or one number a patch"
    return ""


def weight_of(layer: Any) -> Array:
    """Return the weights of a layer in the order that Kernel states."""
    return _exchanged(values(layer.kernel), type(layer) in _TRANSPOSED.values())


def _exchanged(weight: Array, transposed: bool) -> Array:
    """Return weights in the order of Kernel of those that Keras keeps: (*size, into, out), or (*size, out, into)."""
    axes = range(weight.ndim - 2)
    if not transposed:
        return weight.transpose(-1, -2, *axes)
    return np.flip(weight.transpose(-2, -1, *axes), tuple(range(2, weight.ndim)))


def _stored(weight: Array, transposed: bool) -> Array:
    """Return weights as Keras keeps them, of those in the order of Kernel."""
    axes = range(2, weight.ndim)
    return np.flip(weight, tuple(axes)).transpose(*axes, 0, 1) if transposed else weight.transpose(*axes, 1, 0)


def first_channels(layer: Any, array: Array) -> Array:
    """Return what a convolution reads, or gives, with its channels before its lengths."""
    last = hasattr(layer, "kernel_size") and layer.data_format == "channels_last"
    return np.moveaxis(array, -1, 1) if last else array


def lengths_of(layer: Any, shape: Sequence[int]) -> Lengths:
    """Return the lengths along the axes of a convolution's kernel, of what it reads or gives; () of a dense layer."""
    if not hasattr(layer, "kernel_size"):
        return ()
    return tuple(shape[1:-1] if layer.data_format == "channels_last" else shape[2:])


def filled(
    layer: Any, stages: Sequence[Kernel], names: Sequence[str], weights: Sequence[Array], bias: Array | None
) -> list[Any]:
    """Return the standard layers of a chain with their weights; the last one does besides what the layer did."""
    made = []
    for stage, name, weight in zip(stages, names, weights, strict=True):
        new = _lowered(layer, stage, name, last=stage is stages[-1])
        new.kernel.assign(np.ascontiguousarray(_stored(weight, stage.transposed)))
        if stage.bias and bias is not None:
            new.bias.assign(np.asarray(bias))
        made.append(new)
    return made


def _lowered(layer: Any, stage: Kernel, name: str, *, last: bool) -> Any:
    """Return a standard layer, built, that multiplies by a kernel."""
    config = layer.get_config()
    mine = {key: config[key] for key in TAKEN_OVER if key in config}
    mine |= {"name": name, "use_bias": stage.bias, "activation": config["activation"] if last else "linear"}
    if last:
        mine["activity_regularizer"] = config.get("activity_regularizer")
    channels = stage.into * stage.groups
    if not stage.size:
        dense = keras.layers.Dense.from_config({**mine, "units": stage.out})
        dense.build((None, channels))
        return dense
    plain = math.prod(stage.size) == 1 and max(stage.stride) == 1
    mine |= {
        "filters": stage.out,
        "kernel_size": stage.size,
        "strides": stage.stride,
        "padding": "valid" if plain else layer.padding,
        "dilation_rate": stage.dilation,
        "data_format": layer.data_format,
    }
    axes = len(stage.size)
    if stage.transposed:
        more = layer.output_padding
        mine["output_padding"] = more and tuple(p if s > 1 else 0 for p, s in zip(more, stage.stride, strict=True))
        made = _TRANSPOSED[axes].from_config(mine)
    else:
        made = _PLAIN[axes].from_config({**mine, "groups": stage.groups})
    open_lengths = (None,) * axes
    first = layer.data_format == "channels_first"
    made.build((None, channels, *open_lengths) if first else (None, *open_lengths, channels))
    return made
