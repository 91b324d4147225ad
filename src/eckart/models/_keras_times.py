"""Times of models and layers of Keras, run as `predict` runs them: compiled, where the backend compiles."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from eckart.models._keras_graph import copied
from eckart.models._keras_layers import filled, unwarned
from eckart.models._kernel import Kernel
from eckart.models._processor import processor

__all__ = ["layer_timer", "machine", "model_timer"]


def machine() -> str:
    """Return what times are of: processor, processors that may be used, and software."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}; {count} processors; keras {keras.__version__} on {keras.backend.backend()}"


def model_timer(model: Any, arrays: Any) -> Callable[[], float]:
    """Return what runs a model on a batch and says how many seconds it took; it has been compiled for that batch."""

    def seconds() -> float:
        with unwarned():
            start = time.perf_counter()
            model.predict_on_batch(arrays)
            return time.perf_counter() - start

    seconds()
    return seconds


def layer_timer(layer: Any, chain: Sequence[Kernel], shapes: Sequence[tuple[int, ...]]) -> Callable[[], float]:
    """Return the same of a layer alone, or of a chain of any values in its place, on inputs of these shapes."""
    draws = np.random.default_rng(0)
    if chain:
        weights = [0.01 * draws.standard_normal(stage.shape) for stage in chain]
        names = [f"stage_{i}" for i in range(len(chain))]
        layers = filled(layer, chain, names, weights, np.zeros(layer.bias.shape) if layer.use_bias else None)
    else:
        layers = [copied(layer)]
    timers = [
        model_timer(
            keras.Sequential([keras.Input(batch_shape=shape), *layers]), draws.standard_normal(shape, np.float32)
        )
        for shape in shapes
    ]
    return lambda: sum(timer() for timer in timers)
