"""Batch norms of Keras: what they read, and their statistics moved by what has changed in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from eckart._arrays import Array
from eckart.models._keras_graph import Tap, copied
from eckart.models._keras_layers import take_over_, values

__all__ = ["Moments", "is_norm", "moved"]


def is_norm(layer: Any) -> bool:
    """Return whether a layer scales by statistics of its own."""
    return type(layer) is keras.layers.BatchNormalization


class Moments:
    """Mean and variance, (channels,) in float64, of what every batch norm reads, over the batches added."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}

    def add(self, name: str, layer: Any, x: Array) -> None:
        rows = np.moveaxis(x, layer.axis, -1).reshape(-1, x.shape[layer.axis]).astype(np.float64)
        sums = np.stack([rows.sum(axis=0), np.square(rows).sum(axis=0), np.full(rows.shape[1], len(rows))])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def of(self) -> Mapping[str, tuple[Array, Array]]:
        return {
            name: (a / n, np.maximum(b / n - np.square(a / n), 0.0)) for name, (a, b, n) in self._sums.items()
        }  # fmt: skip


def moved(tap: Tap, before: tuple[Array, Array], after: tuple[Array, Array]) -> Any:
    """Return a batch norm like a tap's, its mean moved by the difference in what it reads, its variance by the ratio.

    So few examples serve: what they have in common with each other and not with the training data cancels.
    """
    layer, new = tap.layer, copied(tap.layer)
    new.build(tap.read_shape)
    take_over_(new, layer)
    (mean, variance), (new_mean, new_variance) = before, after
    ratio = np.divide(new_variance, variance, out=np.ones_like(variance), where=variance > 0)
    new.moving_mean.assign(values(layer.moving_mean) + (new_mean - mean))
    new.moving_variance.assign(values(layer.moving_variance) * ratio)
    return new
