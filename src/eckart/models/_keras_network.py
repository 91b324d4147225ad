"""Functional and Sequential models of Keras 3, on any of its backends, as networks of kernels."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from eckart._arrays import Array
from eckart.errors import InputError, NumericalError, UsageError
from eckart.models._keras_file import open_keras, written
from eckart.models._keras_graph import Switch, Tap, arrays_of, called, copied, rebuilt, weighted
from eckart.models._keras_layers import (
    KERNELS,
    Lengths,
    filled,
    first_channels,
    kept_because,
    kernel_of,
    lengths_of,
    take_over_,
    values,
    weight_of,
)
from eckart.models._keras_norms import is_norm, settled
from eckart.models._keras_times import layer_timer, machine, model_timer
from eckart.models._kernel import Kernel, stages
from eckart.models._model import Layer
from eckart.models._moments import Moments, Statistics
from eckart.models._network import Batch, Network, Visit
from eckart.models._option import DTYPE_BYTES

__all__ = ["KerasNetwork"]


class KerasNetwork(Network):
    """A functional or Sequential model in inference, which is not changed: its layers are copied.

    model: or the path of a .keras file. example: what it can be called with; kernels are padded as they are there.
    UsageError: the model is subclassed. InputError, UnsafeInputError: see `open_keras`. NumericalError: a weight is
    not finite.
    """

    gradients = False

    def __init__(self, model: Any, example: Batch) -> None:
        self.path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
        self._given = open_keras(Path(self.path)) if self.path else model
        self.name: str = self._given.name
        self._example = example
        self.replaced: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._chains: dict[str, Sequence[Any]] = {}
        self._model: Any = None
        self._switch = Switch()
        self._taps: dict[str, Tap] = {}
        self._layer_names: list[str] = []
        self._shapes: dict[str, list[tuple[int, ...]]] = {}  # of what every layer reads in one run
        self._originals: dict[str, Any] = {}
        self._others: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._graph = rebuilt(self._given, self._tapped)
        for name, tap in self._taps.items():
            take_over_(tap.layer, self._originals[name])
        if self._graph.count_params() != self._given.count_params():
            raise UsageError(
                f"layers of {self.name} share weights, which a copy would not",
                fix="call one layer twice in place of two layers with the same variable",
            )
        floating = [v for v in self._given.weights if "float" in keras.backend.standardize_dtype(v.dtype)]
        self.dtype = keras.backend.standardize_dtype(floating[0].dtype) if floating else "float32"
        for variable in floating:
            if not np.isfinite(values(variable)).all():
                raise NumericalError(f"{variable.path} of {self.name} is not finite", tensor=variable.path)
        self._layers = self._found(example)

    # What it is

    @property
    def model(self) -> Any:
        """The compressed model, of standard layers; it is not compiled."""
        if self._model is None:
            self._model = rebuilt(self._given, lambda path, layer: self._chains.get(path))
        return self._model

    def given(self, dtype: str) -> tuple[int, int]:
        if dtype != self.dtype:
            raise UsageError(
                f"dtype {dtype} asked of a model in {self.dtype}, and a .keras file keeps the types it has",
                fix=f"leave dtype= out, or make the model in {dtype} first",
            )
        return _size(self._given.weights, dtype)

    def size(self, dtype: str) -> tuple[int, int]:
        return _size(self._weights(), dtype)

    def _weights(self) -> list[Any]:
        """Return the variables of the model as it is; those of a chain come last."""
        gone = {id(v) for name in self._chains for v in self._taps[name].layer.weights}
        chains = (v for chain in self._chains.values() for layer in chain for v in layer.weights)
        return [*(v for v in self._graph.weights if id(v) not in gone), *chains]

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def weight(self, name: str) -> tuple[Array, Array | None]:
        layer = self._taps[name].layer
        return weight_of(layer), values(layer.bias) if layer.use_bias else None

    def _tapped(self, path: str, layer: Any) -> Sequence[Any] | None:
        self._layer_names.append(layer.name)
        if type(layer) in KERNELS or is_norm(layer):
            self._taps[path], self._originals[path] = Tap(path, copied(layer), self._switch), layer
            return [self._taps[path]]
        self._others |= {f"{path}/{name}": (layer, shape) for name, shape in weighted(layer)}
        return None

    def _found(self, example: Batch) -> dict[str, Layer]:
        calls: dict[str, list[tuple[Lengths, Lengths]]] = {}

        def seen(name: str, x: Any, y: Any) -> None:
            layer = self._taps[name].layer
            self._shapes.setdefault(name, []).append(tuple(x.shape))
            calls.setdefault(name, []).append((lengths_of(layer, x.shape), lengths_of(layer, y.shape)))

        self._run(example, seen)
        found = {name: self._described(name, some) for name, some in calls.items() if not self._is_norm(name)}
        if not found:
            raise InputError(f"{self.name} has no convolution and no dense layer")
        return found | {name: _kept(name, *other) for name, other in self._others.items()}

    def _is_norm(self, name: str) -> bool:
        return is_norm(self._taps[name].layer)

    def _described(self, name: str, calls: Sequence[tuple[Lengths, Lengths]]) -> Layer:
        tap = self._taps[name]
        kernel = kernel_of(tap.layer, *calls[0])
        kept = kept_because(tap.layer, kernel, calls, fixed=tap.fixed)
        return Layer(
            name, type(tap.layer).__name__, kernel.out, kernel.columns, kernel.bias, kept, (name,), kernel=kernel
        )

    # Running it

    def _run(self, batch: Batch, visit: Callable[[str, Any, Any], None] | None = None) -> list[Any]:
        """Return what the model gives for a batch, its tensors in a row."""
        self._switch.instead, self._switch.visit = self._chains, visit
        try:
            return called(self._graph, batch)
        finally:
            self._switch.instead, self._switch.visit = {}, None

    def outputs(self, batch: Batch) -> Array:
        arrays = [values(one) for one in self._run(batch)]
        found = np.concatenate([a.reshape(len(a), -1) for a in arrays if a.dtype.kind == "f"], axis=1)
        if not np.isfinite(found).all():
            raise NumericalError(f"the outputs of {self.name} are not finite on the data")
        return found.astype(np.float32)

    def read(self, batch: Batch, names: Sequence[str], visit: Visit) -> None:
        def take(name: str, x: Any, y: Any) -> None:
            if name in wanted:
                visit(name, first_channels(self._taps[name].layer, values(x)))

        wanted = set(names)
        self._run(batch, take)

    def pulled(self, batch: Batch, names: Sequence[str], visit: Visit, seed: int) -> None:
        raise NotImplementedError("this network says that it has no gradients")

    # Timing it

    def machine(self) -> str:
        return machine()

    def timer(self, name: str = "", chain: Sequence[Kernel] = ()) -> Callable[[], float]:
        if not name:
            return model_timer(self.model, arrays_of(self._example, len(self._graph.inputs)))
        return layer_timer(self._taps[name].layer, chain, self._shapes[name])

    def timed_as(self, name: str) -> Hashable:
        return self._layers[name].kernel, tuple(self._shapes[name])

    # Changing it

    def copy(self) -> KerasNetwork:
        other = copy.copy(self)
        other._chains, other.replaced, other._model = dict(self._chains), dict(self.replaced), None
        return other

    def settled(self, dense: KerasNetwork, batches: Sequence[Batch]) -> KerasNetwork | None:
        before, after = (one._moments(batches) for one in (dense, self))
        if not before:
            return None
        other = self.copy()
        other._chains |= {name: [settled(self._taps[name], before[name], after[name])] for name in before}
        return other

    def _moments(self, batches: Sequence[Batch]) -> Statistics:
        """Return mean and variance of what every batch norm reads."""
        moments = Moments()

        def take(name: str, x: Any, y: Any) -> None:
            if self._is_norm(name):
                moments.add(name, values(x), self._taps[name].layer.axis)

        for batch in batches:
            self._run(batch, take)
        return moments.statistics()

    def replace_(
        self, name: str, form: str, ranks: Sequence[int], weights: Sequence[Array], bias: Array | None
    ) -> None:
        layer, kernel = self._taps[name].layer, self._layers[name].kernel
        assert kernel is not None
        chain = stages(kernel, form, ranks)
        self._chains[name] = filled(layer, chain, self._names(name, len(chain)), weights, bias)
        self.replaced[name], self._model = (form, tuple(ranks)), None

    def _names(self, path: str, count: int) -> list[str]:
        """Return names for a chain, the last that of the layer, whose output it gives."""
        name = path.rpartition("/")[2]
        taken = set(self._layer_names)
        return [*(_free(f"{name}_factor_{i + 1}", taken) for i in range(count - 1)), name]

    @contextlib.contextmanager
    def saved(self, path: Path, *, max_shard_bytes: int) -> Iterator[KerasNetwork]:
        with written(self.model, path) as temporary:
            yield KerasNetwork(temporary, self._example)


def _size(variables: Sequence[Any], dtype: str) -> tuple[int, int]:
    """Return how many numbers variables have, and their bytes with floating-point ones in a type."""
    numbers = size = 0
    for variable in variables:
        name, count = keras.backend.standardize_dtype(variable.dtype), math.prod(variable.shape)
        numbers += count
        size += count * (DTYPE_BYTES[dtype] if "float" in name else np.dtype(name).itemsize)
    return numbers, size


def _kept(name: str, layer: Any, shape: tuple[int, ...]) -> Layer:
    """Return a weight of a layer that is none of KERNELS, as a matrix of which only the numbers matter."""
    kernel, kind = Kernel(shape[-1], math.prod(shape[:-1])), type(layer).__name__
    return Layer(name, kind, kernel.out, kernel.columns, False, f"{kind} layers are kept", (name,), kernel=kernel)


def _free(name: str, taken: set[str]) -> str:
    """Return a name that no layer has, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
