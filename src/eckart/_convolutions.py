"""A convolution as a chain of smaller ones, each chain the best of its shape for the responses on calibration data.

A kernel W (o, c, *K) multiplies patches: y = W p + b, p the flattened patch, (c |K|,), and W flattened alike. With the
Gram G of the patches and Γ of the gradient in y, a kernel W' in its place loses tr(Γ (W - W') G (W - W')ᵀ), as a matrix
does in _factorise; None stands for I.
  channels: W as a matrix (o, c |K|), truncated: k filters of the full size and a product (o, k). `truncation` does it.
  spatial: k filters along the first axis, (k, c, K_1, 1 …), and a kernel (o, k, 1, K_2 …) over the others.
  tucker: a product (r, c), a kernel (q, r, *K) and a product (o, q).
The last kernel of a chain, or the last two, is fitted to the responses, given the first: the same least squares at
every rank, from one Cholesky factor. The first is taken from the kernel's truncation in the metric of a Kronecker
product that is nearest to G in that the axes that stay apart are averaged over.

Sources: channels and response reconstruction, Zhang et al., TPAMI 2016; spatial, Jaderberg et al., BMVC 2014; tucker,
Kim et al., ICLR 2016, by higher-order orthogonal iteration, De Lathauwer et al., SIAM J. Matrix Anal. 2000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from eckart._arrays import Array, to_numpy
from eckart._factorise import Truncation, check_kept, truncation
from eckart._linalg import cholesky, contract, solve_triangular
from eckart.errors import NumericalError

__all__ = ["Spatial", "Tucker", "spatial", "tucker"]

ITERATIONS = 5  # of HOOI, which moves little after the first two
_RIDGE = 1e-10  # of the mean diagonal: features of dead channels have a Gram that is singular


@dataclass(frozen=True)
class Spatial:
    """Every rank of the spatial form at once.

    first: (r, c, K_1), one component after the other. lower, right: of the features z of all components, (r |K'|,)
    with |K'| = K_2 K_3 …, the Cholesky factor of their Gram and its solution for the responses, (r |K'|, o). losses: at
    ranks 0 … r. rest: (K_2, …).
    """

    first: Array
    lower: Array
    right: Array
    losses: np.ndarray[Any, np.dtype[np.float64]]
    rest: tuple[int, ...]

    def factors(self, k: int) -> tuple[Array, Array]:
        """Return the kernels (k, c, K_1, 1, …) and (o, k, 1, K_2, …)."""
        check_kept(k, len(self.first))
        size = k * math.prod(self.rest)
        second = solve_triangular(self.lower[:size, :size].T, self.right[:size], lower=False).T
        first = self.first[:k].reshape(*self.first[:k].shape, *(1 for _ in self.rest))
        return first, second.reshape(len(second), k, 1, *self.rest)


def spatial(
    weight: Array,
    *,
    inputs: Array | None = None,
    outputs: Array | None = None,
    keep_rank: int | None = None,
) -> Spatial:
    """Return the spatial form of a kernel, (o, c, K_1, K_2, …), under these Grams at every rank up to `keep_rank`.

    inputs: (c |K|, c |K|) positive definite, of patches. outputs: (o, o). Where the axes are one, or longer than what
    the product of the others is, ranks go to min(c K_1, o K_2 …), at which the chain is the kernel, to rounding.
    """
    xp = array_namespace(weight)
    o, c, along, *rest = weight.shape
    w, others = xp.astype(weight, xp.float64), math.prod(rest)
    gram = _identity(inputs, c * along * others, w)
    averaged = contract("ajbj->ab", gram.reshape(c * along, others, c * along, others)) / others
    unfolded = xp.permute_dims(w.reshape(o, c * along, others), (0, 2, 1)).reshape(o * others, c * along)
    weighed = None if outputs is None else xp.kron(outputs, xp.eye(others, dtype=w.dtype, device=device(w)))
    found = truncation(unfolded, inputs=averaged, outputs=weighed, keep_rank=keep_rank)
    first = found.down / xp.clip(xp.linalg.vector_norm(found.down, axis=1, keepdims=True), min=_TINY)
    r = len(first)
    # Features of component i at offset j of the other axes: Σ_a first[i, a] patch[a, j].
    left = (first @ gram.reshape(c * along, -1)).reshape(r, others, c * along, others)
    features = contract("ijal,ka->ijkl", left, first).reshape(r * others, r * others)
    across = contract("ijal,oal->ijo", left, w.reshape(o, c * along, others))
    lower, right = _fitted(features, across.reshape(r * others, o))
    total = _squared(w.reshape(o, -1), gram, outputs)
    gains = xp.sum(_gains(right, outputs).reshape(r, others), axis=1)
    return Spatial(first.reshape(r, c, along), lower, right, _left(total, gains), tuple(rest))


@dataclass(frozen=True)
class Tucker:
    """The Tucker form at one rank r of the inputs, and every rank of the outputs at once.

    inner: (r, c). cut: of the kernel (o, r |K|) that reads what `inner` gives. missed: what no rank of the outputs
    makes good. shape: K.
    """

    inner: Array
    cut: Truncation
    missed: float
    shape: tuple[int, ...]

    @cached_property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return what is lost at ranks 0 … min(o, r |K|) of the outputs."""
        return self.missed + self.cut.losses

    def factors(self, q: int) -> tuple[Array, Array, Array]:
        """Return the kernels (r, c, 1, …), (q, r, *K) and (o, q, 1, …)."""
        pair, r, ones = self.cut.pair(q), len(self.inner), [1] * len(self.shape)
        return (
            self.inner.reshape(*self.inner.shape, *ones),
            pair.down.reshape(q, r, *self.shape),
            pair.up.reshape(*pair.up.shape, *ones),
        )


def tucker(
    weight: Array,
    r: int,
    *,
    inputs: Array | None = None,
    outputs: Array | None = None,
    keep_rank: int | None = None,
) -> Tucker:
    """Return the Tucker form of a kernel, (o, c, *K), with r channels in the middle's input, 1 ≤ r ≤ c.

    inputs, outputs: as in `spatial`. The subspace of the inputs is that of HOOI with the same fraction of outputs.
    """
    xp = array_namespace(weight)
    o, c, *shape = weight.shape
    w, size = xp.astype(weight, xp.float64).reshape(o, c, -1), math.prod(shape)
    check_kept(r, c)
    gram = _identity(inputs, c * size, w)
    averaged = contract("axbx->ab", gram.reshape(c, size, c, size)) / size
    inner = _input_subspace(w, r, averaged, outputs)
    left = contract("rc,cxdy->rxdy", inner, gram.reshape(c, size, c, size))
    features = contract("rxdy,sd->rxsy", left, inner).reshape(r * size, r * size)
    across = contract("rxdy,ody->rxo", left, w).reshape(r * size, o)
    lower, right = _fitted(features, across)
    kernel = solve_triangular(lower.T, right, lower=False).T
    missed = _squared(w.reshape(o, -1), gram, outputs) - float(_gains(right, outputs).sum())
    cut = truncation(kernel, inputs=lower @ lower.T, outputs=outputs, keep_rank=keep_rank)
    return Tucker(inner, cut, max(missed, 0.0), tuple(shape))


def _input_subspace(w: Array, r: int, inputs: Array, outputs: Array | None) -> Array:
    """Return D (r, c), what is kept of the channels: of a kernel (o, c, |K|) in the metric of Grams of channels."""
    xp = array_namespace(w)
    o, c, _ = w.shape
    x = _firm_root(inputs)
    y = None if outputs is None else _firm_root(outputs)
    white = contract("ock,cd->odk", w, x)
    white = white if y is None else contract("op,ock->pck", y, white)
    q = max(1, min(o, math.ceil(o * r / c)))
    projected, v = white, None
    for _ in range(ITERATIONS):
        v = _leading(xp.permute_dims(projected, (1, 0, 2)).reshape(c, -1), r)
        u = _leading(contract("ock,cr->ork", white, v).reshape(o, -1), q)
        projected = contract("ock,oq->qck", white, u)
    return solve_triangular(x.T, v, lower=False).T  # vᵀ x⁻¹: the white kernel reads x⁻¹ p


def _leading(matrix: Array, k: int) -> Array:
    """Return the k leading left singular vectors, (m, k)."""
    xp = array_namespace(matrix)
    return xp.flip(xp.linalg.eigh(matrix @ matrix.T)[1], axis=1)[:, :k]


def _fitted(features: Array, across: Array) -> tuple[Array, Array]:
    """Return L and L⁻¹ A for features of Gram L Lᵀ and A, (features, o), what they and the responses have in common."""
    lower = _firm_root(features)
    return lower, solve_triangular(lower, across, lower=True)


def _firm_root(gram: Array) -> Array:
    """Return the Cholesky factor of a Gram that is made positive definite to working precision."""
    xp = array_namespace(gram)
    even = (gram + gram.T) / 2
    ridge = _RIDGE * max(float(xp.linalg.trace(even)) / len(even), _TINY)
    lower = cholesky(even + ridge * xp.eye(len(even), dtype=even.dtype, device=device(even)))
    if lower is None:
        raise NumericalError("a Gram matrix is not positive semidefinite, or not finite", fix="other calibration data")
    return lower


_TINY = 1e-150


def _gains(right: Array, outputs: Array | None) -> Array:
    """Return by how much the loss falls with each feature, (features,)."""
    return array_namespace(right).sum((right if outputs is None else right @ outputs) * right, axis=1)


def _squared(w: Array, gram: Array, outputs: Array | None) -> float:
    """Return tr(Γ W G Wᵀ): what is lost with nothing left."""
    responses, xp = w @ gram @ w.T, array_namespace(w)
    return float(xp.linalg.trace(responses) if outputs is None else xp.sum(outputs * responses))


def _left(total: float, gains: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the losses after 0, 1, … gains, none below zero."""
    return np.maximum(total - np.append(0.0, np.cumsum(to_numpy(gains))), 0.0)


def _identity(gram: Array | None, size: int, like: Array) -> Array:
    xp = array_namespace(like)
    return xp.eye(size, dtype=like.dtype, device=device(like)) if gram is None else xp.astype(gram, xp.float64)
