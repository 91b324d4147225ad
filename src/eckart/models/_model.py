"""What compression and analysis may ask of a model, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eckart.models._kernel import Kernel

__all__ = ["Layer", "Model", "Progress", "Weight", "silent"]

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Weight:
    """One stored tensor. read(): its values as a NumPy array, bfloat16 and float8 by ml_dtypes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Layer:
    """One matrix that the model multiplies by: y = W x (+ b), W (rows, columns).

    kept: why it must stay as it is, or "". group: the names of the layers said to read the same input, itself included.
    table: whether its rows are the vocabulary's, those of an embedding or a large head. looked_up: whether it is the
    former. kernel: of a network of convolutions, where W is its kernel with the patches' entries as columns.
    """

    name: str
    type: str
    rows: int
    columns: int
    bias: bool
    kept: str
    group: tuple[str, ...]
    table: bool = False
    looked_up: bool = False
    kernel: Kernel | None = None


class Model(Protocol):
    """A trained model. `name` is for people; `path` is where it was opened."""

    name: str
    path: str

    def weights(self) -> Iterator[Weight]:
        """Iterate over the stored tensors, one in memory at a time, tied ones once."""

    def layers(self) -> Mapping[str, Layer]:
        """Return every layer that multiplies by a matrix, in the order of the model."""

    @property
    def parameters(self) -> int:
        """How many numbers the model stores; tied weights count once."""
