"""Weights without an architecture: safetensors files that can be read, looked at and factorised, but not run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from eckart.models._model import Layer, Weight
from eckart.models._safetensors import Checkpoint, numpy_dtype, read_array
from eckart.models._source import Source

__all__ = ["BareModel"]


class BareModel:
    """The tensors of a safetensors file or folder, memory-mapped; needs no torch."""

    def __init__(self, source: Source) -> None:
        assert isinstance(source.weights, Checkpoint)
        self.name, self.path, self._checkpoint = source.name, str(source.path), source.weights

    @property
    def parameters(self) -> int:
        return sum(info.parameters for info in self._checkpoint.tensors.values())

    def weights(self) -> Iterator[Weight]:
        for info in self._checkpoint.tensors.values():
            yield Weight(info.name, info.shape, numpy_dtype(info.dtype).name, partial(read_array, info))

    def layers(self) -> dict[str, Layer]:
        """Return the tensors of two dimensions, as layers that must stay as they are: their use is unknown."""
        return {
            info.name: Layer(info.name, "matrix", *info.shape, False, "no architecture to run it", (info.name,))
            for info in self._checkpoint.tensors.values()
            if len(info.shape) == 2
        }
