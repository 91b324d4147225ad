"""What compression asks of a network of any framework: to run, to be listened to, and to have kernels replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from eckart._arrays import Array
from eckart.models._kernel import Kernel
from eckart.models._model import Layer

__all__ = ["Batch", "Network", "Visit"]

Batch = Any  # what a network is called with: an array, a tuple of arguments, or arguments by name
Visit = Callable[[str, Array], None]  # the name of a layer, and an array of one of its calls


class Network(Protocol):
    """A network whose layers are kernels. `name` is for people; `path` is where it was opened, or "".

    The class of a framework derives from this one, of which it has what follows from the rest.
    """

    name: str
    path: str
    dtype: str  # of its floating-point numbers
    gradients: bool  # whether it can give those of its outputs
    replaced: dict[str, tuple[str, tuple[int, ...]]]  # format and ranks of every layer that is a chain
    plan: Any = None  # once it is compressed
    measurement: Any = None  # where it was measured
    recovery: Any = None  # it is not trained further

    @property
    def parameters(self) -> int:
        """How many numbers it stores."""
        return self.size(self.dtype)[0]

    @property
    def source_bytes(self) -> int:
        """Bytes of the tensors of the model that was opened."""
        return self.given(self.dtype)[1]

    @property
    def input_bytes(self) -> int:
        """Bytes of its tensors, as they are saved."""
        return self.size(self.dtype if self.plan is None else self.plan.dtype)[1]

    def given(self, dtype: str) -> tuple[int, int]:
        """Return how many numbers the model has that was opened, and their bytes with floating-point ones in a type;
        what was opened may have more of them, such as batch norms that were folded.
        """

    def size(self, dtype: str) -> tuple[int, int]:
        """Return the same of the network as it is."""

    def layers(self) -> Mapping[str, Layer]:
        """Return every layer with weights that multiply, in the order of their first calls; of each its kernel."""

    def weight(self, name: str) -> tuple[Array, Array | None]:
        """Return the weights of a layer, as Kernel orders them, and its bias."""

    def outputs(self, batch: Batch) -> Array:
        """Return every number that the network gives for a batch, (examples, numbers)."""

    def read(self, batch: Batch, names: Sequence[str], visit: Visit) -> None:
        """Run a batch; visit the input of every call of these layers."""

    def pulled(self, batch: Batch, names: Sequence[str], visit: Visit, seed: int) -> None:
        """Run a batch, and visit the gradient in the output of every call of these layers, channels last, of a random
        sum of the outputs of each example, with weights of mean square 1 / numbers.
        """

    def machine(self) -> str:
        """Return what times are of: processor, threads and software."""

    def timer(self, name: str = "", chain: Sequence[Kernel] = ()) -> Callable[[], float]:
        """Return what times one run of the example, in seconds: of the network, or of a layer alone, as it is or with
        a chain of kernels of any values in its place.
        """

    def timed_as(self, name: str) -> Hashable:
        """Return what the time of a layer depends on: of two layers with the same one is timed."""

    def copy(self) -> Self:
        """Return a network whose layers can be replaced without touching this one; the weights are shared."""

    def settled(self, dense: Self, batches: Sequence[Batch]) -> Self | None:
        """Return the network with the statistics of its batch norms moved by what they read differently from those of
        the dense one; None where it has none.
        """

    def saved(self, path: Path, *, max_shard_bytes: int) -> contextlib.AbstractContextManager[Self]:
        """Write the network with its plan and give what was read back; it gets its path when the block is left without
        an error, and nothing is left of it otherwise.
        """

    def replace_(
        self, name: str, form: str, ranks: Sequence[int], weights: Sequence[Array], bias: Array | None
    ) -> None:
        """Put a chain of kernels, `stages` of this form and these ranks, in the place of a layer."""
