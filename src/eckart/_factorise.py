"""Weighted low-rank factors of one weight: the truncated SVD in the metric of a layer's inputs and output gradients.

With input Gram G = E[x xᵀ] = X Xᵀ and output-gradient Gram Γ = E[g gᵀ] = Y Yᵀ, the rank-k matrix that minimises
‖Yᵀ(W - W_k)X‖_F is Y⁻ᵀ (U_k S_k V_kᵀ) X⁻¹ for U S Vᵀ = Yᵀ W X. That is (W X V_k)(V_kᵀ X⁻¹) and also
(Y⁻ᵀ U_k)(U_kᵀ Yᵀ W), so only the smaller side's Gram is ever factored, and U or V come as eigenvectors of a matrix of
that side, Xᵀ Wᵀ Γ W X or Yᵀ W G Wᵀ Y. In float64 that loses only singular values below 1e-8 of the largest, less than
float32 factors can hold, at a fraction of the cost of an SVD; at full rank the product is W whatever the eigenvectors.

Sources: Eckart & Young 1936; one-sided, SVD-LLM (arXiv 2403.07378); the two-sided metric, K-FAC (arXiv 1503.05671).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from array_api_compat import array_namespace, device

from eckart._arrays import Array, to_numpy
from eckart._linalg import cholesky
from eckart.errors import RankError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Cut",
    "Gram",
    "Pair",
    "PivotRows",
    "RowGroups",
    "Truncation",
    "check_kept",
    "losses_of",
    "pivoted",
    "truncation",
]

TOKENS_PER_PRODUCT = 1024  # rows multiplied in float32 before their product is added in float64


class Gram:
    """Σ x xᵀ over the rows x of every matrix that `add` is given, (n, n), Σ |x|, (n,), and how many rows there were.

    Both sums are in float64. xp: the namespace of the rows; torch's where None.
    """

    def __init__(self, n: int, device: Any = "cpu", *, xp: Any = None) -> None:
        if xp is None:
            import array_api_compat.torch

            xp = array_api_compat.torch
        self.sum = xp.zeros((n, n), dtype=xp.float64, device=device)
        self.sizes = xp.zeros(n, dtype=xp.float64, device=device)
        self.count = 0

    def add(self, rows: Array) -> None:
        """Add rows, (t, n); multiplied in float32, at most 1024 at a time, and accumulated in float64."""
        xp = array_namespace(rows)
        for start in range(0, len(rows), TOKENS_PER_PRODUCT):
            part = xp.astype(rows[start : start + TOKENS_PER_PRODUCT], xp.float32, copy=False)
            self.sum += part.T @ part  # converted entry by entry as it is added
            self.sizes += xp.sum(xp.abs(part), axis=0)
            self.count += len(part)

    def shrunk(self, amount: float) -> Array:
        """Return the mean of x xᵀ moved by `amount` (0 to 1) towards its mean eigenvalue times I: positive definite.

        Relative to the data's own scale, as in Ledoit & Wolf 2004. A Gram that is zero altogether becomes I.
        """
        xp = array_namespace(self.sum)
        mean = (self.sum + self.sum.T) / (2 * max(self.count, 1))  # a product in float32 is symmetric to rounding only
        level = xp.linalg.trace(mean) / len(mean)
        eye = xp.eye(len(mean), dtype=mean.dtype, device=device(mean))
        return (1 - amount) * mean + amount * level * eye if level > 0 else eye


@dataclass(frozen=True)
class Pair:
    """W_k = up @ down: up (m, k), down (k, n)."""

    up: Array
    down: Array

    @property
    def rank(self) -> int:
        return int(self.up.shape[1])

    def matrix(self) -> Array:
        return self.up @ self.down


@dataclass(frozen=True)
class PivotRows:
    """W_k = [rows; rest @ rows][order]: rows (k, n), rest (m - k, k), order (m,), int32."""

    rows: torch.Tensor
    rest: torch.Tensor
    order: torch.Tensor


@dataclass(frozen=True)
class RowGroups:
    """The rows of a matrix in groups, one after the other, each as it is or as a pair; order (m,), int32, says where
    each row went.
    """

    parts: tuple[torch.Tensor | Pair, ...]
    order: torch.Tensor

    def matrix(self) -> torch.Tensor:
        import torch

        return torch.cat([part.matrix() if isinstance(part, Pair) else part for part in self.parts])[self.order.long()]


class Spectrum(Protocol):
    """What one matrix loses at every rank, and by rounding what it is stored in."""

    @property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return ‖Yᵀ(W - W_k)X‖_F² for k = 0 … min(m, n)."""

    def error(self, form: str, dtype: str, k: int) -> float:
        """Return that at one rank, and what is expected of rounding factors of this format to this type."""


class Cut(Protocol):
    """What options are chosen from: what one layer loses by each, and its factors there."""

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        """Return the matrices that an option of this format and these ranks cuts, each with its own format and rank:
        one, but for a table. A dense matrix has all of its rank.
        """

    def factors(self, form: str, ranks: Sequence[int]) -> Pair | RowGroups:
        """Return the best factors for an option of this format and these ranks, up to those that were kept."""


@dataclass(frozen=True)
class Truncation:
    """Every best approximation of one weight at once: cut at any k up to the rank that was kept.

    s: all singular values of Yᵀ W X, (min(m, n),), descending, float64. up (m, r), down (r, n): factors in float64,
    component by component of equal norm on both sides, so that half precision neither overflows nor underflows. For
    int8, too, where the scale between columns of `up` and rows of `down` is free: on fifteen layers of SmolLM2-135M
    columns of `up` of equal norm or equal largest entry round to 1.1 and 2.5 times the error, in the median.
    """

    s: np.ndarray[Any, np.dtype[np.float64]]
    up: Array
    down: Array

    @cached_property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return losses_of(self.s)

    def pair(self, k: int) -> Pair:
        check_kept(k, self.up.shape[1])
        return Pair(self.up[:, :k], self.down[:k])

    def stored(self) -> Truncation:
        """Return this truncation with its factors in float32 on the CPU, where they wait until ranks are chosen."""
        return replace(self, up=self.up.float().cpu(), down=self.down.float().cpu())


def check_kept(k: int, kept: int) -> None:
    """Raise RankError where a truncation keeps no factors of rank k."""
    if not 0 <= k <= kept:
        raise RankError(f"rank {k} asked of a truncation that keeps factors up to rank {kept}")


def losses_of(s: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return ‖Yᵀ(W - W_k)X‖_F² for k = 0 … min(m, n), summed from the small end so that the tail keeps its digits."""
    return np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)


def truncation(
    weight: Array,
    *,
    inputs: Array | None = None,
    outputs: Array | None = None,
    keep_rank: int | None = None,
) -> Truncation:
    """Return the SVD of `weight` in the metric of its input Gram and output-gradient Gram.

    weight: (m, n). inputs: (n, n), positive definite, or None for I. outputs: (m, m), likewise, or the diagonal of one
    that has nothing else, (m,). keep_rank: how many
    components to keep factors for; None keeps min(m, n). At k = min(m, n) the pair is the weight, to rounding.
    """
    xp = array_namespace(weight)
    w = xp.astype(weight, xp.float64)
    if w.shape[1] <= w.shape[0]:
        x = None if inputs is None else _root(inputs)
        wx = w if x is None else w @ x
        del w  # here and below: of a table with many rows each copy counts
        s, v = _singular(wx.T @ (wx if outputs is None else _times(outputs, wx)), keep_rank)
        up, down = wx @ v, v.T if x is None else xp.linalg.solve(x.T, v).T
        del wx
    else:
        y = None if outputs is None else _root(outputs if outputs.ndim == 2 else _diagonal(outputs))
        yw = w if y is None else y.T @ w
        s, u = _singular((yw if inputs is None else yw @ inputs) @ yw.T, keep_rank)
        up, down = u if y is None else xp.linalg.solve(y.T, u), u.T @ yw
    a, b = xp.linalg.vector_norm(up, axis=0), xp.linalg.vector_norm(down, axis=1)
    balance = xp.sqrt(xp.clip(b, min=_TINY) / xp.clip(a, min=_TINY))
    up *= balance
    return Truncation(to_numpy(s), up, down / balance[:, None])


LARGEST_COEFFICIENT = 2.0  # in `rest`; 1 would need many more exchanges, and roundings would shrink little further
EXCHANGES = 20  # for each pivot row, at most; far fewer are seen


def pivoted(pair: Pair) -> PivotRows:
    """Return the product of a pair by k of its own rows: k(m + n - k) numbers and an order, for the same matrix.

    The rows are those that Gaussian elimination picks, then exchanged while a coefficient is above LARGEST_COEFFICIENT:
    each exchange multiplies their volume by that coefficient, so that it ends. float64, whatever the pair's type.

    Sources: storage, PIFA (Zhao et al., ICML 2025); exchanges, Goreinov et al., Linear Algebra Appl. 261, 1997.
    """
    import torch

    up, down = pair.up.double(), pair.down.double()
    m, k = up.shape
    permutation, lower, _ = torch.linalg.lu(up)
    places = permutation.argmax(dim=0)  # the row of `up` at each place of the eliminated matrix
    coefficients = torch.linalg.solve_triangular(
        lower[:k].T, lower[k:].T, upper=True, unitriangular=True
    ).T  # of the rows from k on, in the first k
    for _ in range(EXCHANGES * k if m > k else 0):
        at = int(coefficients.abs().argmax())
        i, j = divmod(at, k)
        largest = float(coefficients[i, j])
        if not abs(largest) > LARGEST_COEFFICIENT:
            break
        places[[j, k + i]] = places[[k + i, j]]
        row, column = coefficients[i].clone(), coefficients[:, j].clone()
        row[j] -= 1
        column[i] += 1
        coefficients -= torch.outer(column, row / largest)
    order = torch.empty(m, dtype=torch.int32, device=up.device)
    order[places] = torch.arange(m, dtype=torch.int32, device=up.device)
    return PivotRows(up[places[:k]] @ down, coefficients, order)


def _diagonal(entries: Array) -> Array:
    xp = array_namespace(entries)
    return xp.eye(len(entries), dtype=entries.dtype, device=device(entries)) * entries


def _times(gram: Array, right: Array) -> Array:
    return gram @ right if gram.ndim == 2 else gram[:, None] * right


def _singular(square: Array, keep_rank: int | None) -> tuple[Array, Array]:
    """Return the singular values, descending, and the leading singular vectors of M from M Mᵀ (or of Mᵀ from Mᵀ M)."""
    xp = array_namespace(square)
    values, vectors = xp.linalg.eigh((square + square.T) / 2)
    return xp.sqrt(xp.clip(xp.flip(values), min=0.0)), xp.flip(vectors, axis=1)[:, :keep_rank]


_TINY = 1e-150  # a norm below this is that of a component which is zero to working precision


def _root(gram: Array) -> Array:
    """Return R with R Rᵀ = gram: lower triangular by Cholesky, or symmetric by eigendecomposition where that fails."""
    lower = cholesky(gram)
    if lower is not None:
        return lower
    xp = array_namespace(gram)
    values, vectors = xp.linalg.eigh(gram)
    floor = xp.finfo(gram.dtype).eps * len(gram) * max(float(values[-1]), _TINY)
    return (vectors * xp.sqrt(xp.clip(values, min=floor))) @ vectors.T
