"""What batch norms read, in any framework, and their statistics moved by what has changed in it."""

from __future__ import annotations

from collections.abc import Mapping

from array_api_compat import array_namespace

from eckart._arrays import Array

__all__ = ["Moments", "Statistics", "moved"]

Statistics = Mapping[str, tuple[Array, Array]]  # mean and variance, (channels,) each, of what a norm of this name reads


class Moments:
    """Sums over what batch norms read, by name, in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Array, Array, int]] = {}

    def add(self, name: str, x: Array, axis: int) -> None:
        """Add an input of a norm; axis: that of its channels."""
        xp = array_namespace(x)
        rows = xp.astype(xp.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]), xp.float64)
        sums, squares, count = self._sums.get(name, (0.0, 0.0, 0))
        self._sums[name] = sums + xp.sum(rows, axis=0), squares + xp.sum(rows * rows, axis=0), count + len(rows)

    def statistics(self) -> Statistics:
        return {
            name: (sums / count, array_namespace(sums).clip(squares / count - (sums / count) ** 2, min=0.0))
            for name, (sums, squares, count) in self._sums.items()
        }


def moved(mean: Array, variance: Array, before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return a norm's statistics, the mean moved by the difference in what it reads, the variance by the ratio.

    So few examples serve: what they have in common with each other and not with the training data cancels.
    """
    (old_mean, old_variance), (new_mean, new_variance) = before, after
    xp = array_namespace(old_variance)
    some = old_variance > 0
    ratio = xp.where(some, new_variance / xp.where(some, old_variance, 1.0), 1.0)
    return mean + (new_mean - old_mean), variance * ratio
