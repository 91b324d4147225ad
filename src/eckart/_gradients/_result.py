"""What svd returns where gradients are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from eckart._arrays import Array, enter, space_of, stay
from eckart._decomposed import SVD

__all__ = ["Call", "Differentiable", "differentiable", "unrounded"]


@dataclass(frozen=True)
class Call:
    """A call of svd: run makes it without gradients; k, error and center are as asked."""

    run: Callable[[Array], SVD]
    k: int | None
    error: float | None
    center: bool


@dataclass(frozen=True, eq=False)
class Differentiable(SVD):
    """An SVD through whose U, s and Vt gradients reach A; residuals and certificate carry none.

    The gradient of s exists everywhere: at ties and zeros it is a subgradient. Those of U and Vt exist where the values
    differ from each other, from what was left out, and from 0. Where they do not and the loss depends on the vectors,
    the backward pass is a NumericalError that names the values. reconstruct() has a rule of its own, right at ties
    among the k values and at zeros; it needs s_k > s_{k+1}, without which A has several best approximations.
    low_rank: U, s, Vt -> U diag(s) Vt by that rule.
    """

    low_rank: Callable[[Array, Array, Array], Array] | None = None

    def truncate(self, k: int | None = None, *, error: float | None = None) -> SVD:
        part = SVD(**{field.name: getattr(self, field.name) for field in fields(SVD)}).truncate(k, error=error)
        U, s, Vt = part
        if space_of(self.s).export is not stay:  # the part went through NumPy, where gradients do not follow
            k = int(s.shape[-1])
            U, s, Vt = self.U[..., :, :k], self.s[..., :k], self.Vt[..., :k, :]
        return replace(self, U=U, s=s, Vt=Vt, residuals=part.residuals, error=part.error)

    def reconstruct(self) -> Array:
        assert self.low_rank is not None
        k = int(self.s.shape[-1])
        return self.low_rank(self.U[..., :, :k], self.s, self.Vt[..., :k, :])


def differentiable(result: SVD, low_rank: Callable[[Array, Array, Array], Array], **arrays: Any) -> Differentiable:
    """Return a result with these arrays, which carry gradients, in place of its own."""
    values = {field.name: getattr(result, field.name) for field in fields(SVD)} | arrays
    return Differentiable(**values, low_rank=low_rank)


def unrounded(A: Array, call: Call, U: Array, s: Array, Vt: Array) -> tuple[Array, Array, Array]:
    """Return U, s and Vt as they were before rounding to a half float, which makes ties of values that differ.

    All are arrays of NumPy, or of torch.
    """
    array, space = enter(A)
    if space.eps == space.returned_eps:
        return U, s, Vt
    found, k = call.run(array), s.shape[-1]
    return found.U[..., :, :k], found.s[..., :k], found.Vt[..., :k, :]
