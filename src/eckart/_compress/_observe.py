"""What the kernels of a network read and how its outputs depend on theirs: sums over outputs drawn at random.

Where a network of any framework is run, patches of a layer's input are drawn by NumPy, by seed, layer, batch and call:
two networks with the same layer are asked about the same places.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from eckart._arrays import Array
from eckart._compress._kernels import Grams
from eckart._compress._methods import GRADIENT_SHRINKAGE, INPUT_SHRINKAGE, SEQUENTIAL
from eckart._factorise import TOKENS_PER_PRODUCT, Gram
from eckart.models._kernel import Kernel, patches
from eckart.models._network import Batch, Network

__all__ = ["Drift", "Seen", "drift", "gram_bytes", "observed", "pulled"]

PATCHES = 4096  # that a Gram is summed over, at least
PATCHES_A_COLUMN = 2  # and, if these are more, so many times its columns


def gram_bytes(kernel: Kernel) -> int:
    """Return what the Gram matrices of a kernel take."""
    return 8 * (kernel.groups * kernel.columns**2 + kernel.out**2 // kernel.groups)


@dataclass
class Seen:
    """Gram matrices of a kernel's patches and of the gradients in its outputs, one a group."""

    inputs: list[Gram] = field(default_factory=list)
    outputs: list[Gram] = field(default_factory=list)

    def grams(self) -> Grams:
        """Return the metric: both moved a little towards their mean eigenvalue, so that they are positive definite."""
        outputs = [gram.shrunk(GRADIENT_SHRINKAGE) for gram in self.outputs]
        return Grams([gram.shrunk(INPUT_SHRINKAGE) for gram in self.inputs], outputs or None)


def observed(
    network: Network, batches: Sequence[Batch], kernels: Mapping[str, Kernel], seed: int, *, gradients: bool = True
) -> dict[str, Seen]:
    """Return what was seen of these layers when every batch was run. gradients: those of the outputs, too, where the
    network has them.
    """
    seen = pulled(network, batches, kernels if gradients else {}, seed) or {name: Seen() for name in kernels}
    for i, batch in enumerate(batches):
        places = _Places(seed, i, len(batches))

        def take(name: str, x: Array, places: _Places = places) -> None:
            _add(seen[name].inputs, places.patches(name, kernels[name], x))

        network.read(batch, list(kernels), take)
    return seen


def pulled(network: Network, batches: Sequence[Batch], kernels: Mapping[str, Kernel], seed: int) -> dict[str, Seen]:
    """Return the gradients that were seen in the outputs of these layers; none where a network has none."""
    seen = {name: Seen() for name in kernels}
    for i, batch in enumerate(batches if kernels and network.gradients else ()):
        places = _Places(seed, i, len(batches))

        def take(name: str, g: Array, places: _Places = places) -> None:
            kernel = kernels[name]
            rows = places.rows(name, kernel, g.reshape(-1, g.shape[-1]))
            _add(seen[name].outputs, rows.reshape(-1, kernel.groups, kernel.out // kernel.groups))

        network.pulled(batch, list(kernels), take, seed + i)
    return seen


def _add(grams: list[Gram], groups: Array) -> None:
    """Add rows, (rows, groups, columns), to one Gram a group."""
    if not grams:
        xp = array_namespace(groups)
        grams += [Gram(groups.shape[2], device(groups), xp=xp) for _ in range(groups.shape[1])]
    for i, gram in enumerate(grams):
        gram.add(groups[:, i])


class _Places:
    """Where the calls of layers in one batch are looked at."""

    def __init__(self, seed: int, batch: int, batches: int) -> None:
        self._key, self._batches, self._calls = (seed, batch), batches, dict[str, int]()

    def _drawn(self, name: str, kernel: Kernel) -> tuple[int, np.random.Generator]:
        call = self._calls[name] = self._calls.get(name, -1) + 1
        wanted = max(PATCHES, PATCHES_A_COLUMN * kernel.columns)
        draws = np.random.default_rng([*self._key, zlib.crc32(name.encode()), call])
        return -(-wanted // self._batches), draws

    def patches(self, name: str, kernel: Kernel, x: Array) -> Array:
        return patches(x, kernel, *self._drawn(name, kernel))

    def rows(self, name: str, kernel: Kernel, rows: Array) -> Array:
        """Return some rows of gradients, (rows, out)."""
        alone = Kernel(kernel.out, rows.shape[1])
        count, draws = self._drawn(f"{name} gradient", kernel)
        return patches(rows, alone, count, draws)[:, 0]


class Drift:
    """Sums over pairs of what a kernel reads in a network, x, and in the compressed one, x', a group at a time.

    inputs: Grams of x'.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.inputs, self._cross, self._sums = kernel, list[Gram](), list[Array](), list[Any]()

    def add(self, read: Array, instead: Array) -> None:
        """Add patches, (outputs, groups, columns) each."""
        xp = array_namespace(read)
        n = self.kernel.columns
        if not self.inputs:
            like = {"dtype": xp.float64, "device": device(read)}
            self.inputs = [Gram(n, device(read), xp=xp) for _ in range(self.kernel.groups)]
            self._cross = [xp.zeros((n, n), **like) for _ in self.inputs]
            self._sums = [xp.zeros((2, n), **like) for _ in self.inputs]
        for i, gram in enumerate(self.inputs):
            x, y = read[:, i], instead[:, i]
            gram.add(y)
            for start in range(0, len(x), TOKENS_PER_PRODUCT):
                rows = slice(start, start + TOKENS_PER_PRODUCT)
                self._cross[i] += x[rows].T @ y[rows]
            self._sums[i][0] += xp.sum(x, axis=0)
            self._sums[i][1] += xp.sum(y, axis=0)

    def corrected(self, weight: Array) -> Array:
        """Return the kernel that brings x' nearest to what `weight` makes of x, with a ridge towards `weight`."""

        def one(i: int, w: Array) -> Array:
            gram, xp = self.inputs[i].shrunk(0.0), array_namespace(w)
            ridge = SEQUENTIAL.ridge * xp.linalg.trace(gram) / len(gram)
            eye = xp.eye(len(gram), dtype=gram.dtype, device=device(gram))
            apart = self._cross[i] / self.inputs[i].count - gram
            return w + SEQUENTIAL.target * xp.linalg.solve(gram + ridge * eye, (w @ apart).T).T

        return self._by_group(weight, one).reshape(self.kernel.shape)

    def shift(self, weight: Array, instead: Array) -> Array:
        """Return by how much the mean of weight x is above that of instead x', (out,)."""

        def mean(kernel: Array, which: int) -> Array:
            return self._by_group(kernel, lambda i, w: w @ (self._sums[i][which] / self.inputs[i].count))

        return mean(weight, 0) - mean(instead, 1)

    def _by_group(self, weight: Array, of: Callable[[int, Array], Array]) -> Array:
        xp, groups = array_namespace(weight), self.kernel.groups
        each = xp.astype(weight, xp.float64).reshape(groups, -1, self.kernel.columns)
        return xp.concat([of(i, each[i]) for i in range(groups)])


def drift(network: Network, small: Network, batches: Sequence[Batch], name: str, kernel: Kernel, seed: int) -> Drift:
    """Return what a layer reads in a network beside what it reads in the compressed one, over every batch."""
    found = Drift(kernel)
    for i, batch in enumerate(batches):
        read: tuple[list[Array], list[Array]] = ([], [])
        for one, kept in zip((network, small), read, strict=True):
            places = _Places(seed, i, len(batches))

            def take(name: str, x: Array, places: _Places = places, kept: list[Array] = kept) -> None:
                kept.append(places.patches(name, kernel, x))

            one.read(batch, [name], take)
        for x, y in zip(*read, strict=True):
            found.add(x, y)
    return found
