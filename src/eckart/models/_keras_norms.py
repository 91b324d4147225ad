"""Batch norms of Keras, and others like them with their statistics moved."""

from __future__ import annotations

from typing import Any

import keras

from eckart._arrays import Array
from eckart.models._keras_graph import Tap, copied
from eckart.models._keras_layers import take_over_, values
from eckart.models._moments import moved

__all__ = ["is_norm", "settled"]


def is_norm(layer: Any) -> bool:
    """Return whether a layer scales by statistics of its own."""
    return type(layer) is keras.layers.BatchNormalization


def settled(tap: Tap, before: tuple[Array, Array], after: tuple[Array, Array]) -> Any:
    """Return a batch norm like a tap's, with its statistics moved by what has changed in what it reads."""
    layer, new = tap.layer, copied(tap.layer)
    new.build(tap.read_shape)
    take_over_(new, layer)
    mean, variance = moved(values(layer.moving_mean), values(layer.moving_variance), before, after)
    new.moving_mean.assign(mean)
    new.moving_variance.assign(variance)
    return new
