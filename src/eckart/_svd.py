"""The singular value decomposition of any matrix, with a measured certificate of its accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import numpy as np

from eckart import _algorithms as algorithms
from eckart._arguments import checked_fraction, checked_rank, is_real, is_whole
from eckart._arrays import Array, inside, space_of
from eckart._decomposed import ARRAYS, BOUNDS, SVD, certificate, each_array
from eckart._gradients import Call, opaque, route
from eckart._progress import progress_shown
from eckart.errors import UsageError
from eckart.matrix import as_matrices

__all__ = ["svd", "svd_full"]


@opaque
def svd(
    A: Any,
    k: int | None = None,
    *,
    tol: float | None = None,
    error: float | None = None,
    center: bool = False,
    method: str = "auto",
    seed: int = 0,
    start: SVD | None = None,
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> SVD:
    """Return the k largest singular values of A with their vectors, and a bound on what they leave out.

    A: what as_matrix takes, or a stack (..., m, n) of arrays. k: 0 to min(m, n), which is also what None stands for.
    error: instead of k, the smallest k with ‖A - A_k‖_F ≤ error ‖A‖_F, for every matrix of a stack, up to rounding.
    tol: the largest residual that is wanted, as a fraction of s_1; None: working precision. Whether it was met is
    `.converged`. center: take off the mean of each column. method: "auto", or a row of the choice table.
    start: the SVD of a similar matrix of the same shape, from which a method that iterates sets out.
    progress: called with (stage, done, total) as work proceeds; True shows a bar on standard error.
    Arrays of the result have the type, device and float width of A (integers: float64); half floats are computed in
    float32 and rounded at the end. The same A and seed give the same bits on one machine.
    Gradients reach A in torch, JAX (grad, jit, vmap; pass k) and TensorFlow (also in tf.function): first derivatives in
    reverse mode; where they exist, and what happens where not, is said by eckart._gradients.Differentiable.
    RankError: a k that A cannot have. UsageError: another wrong argument. NumericalError: NaN or infinity in A, values
    outside the range of the type, no convergence.

    >>> svd([[3.0, 0.0], [0.0, 4.0]]).s.tolist()
    [4.0, 3.0]
    """
    _require_options(k, tol, error, center, method, seed)

    def run(A: Any) -> SVD:
        return _found(A, k, tol, error, center, method, seed, start, progress)

    differentiated = route(A)
    return differentiated(A, Call(run, k, error, center)) if differentiated else run(A)


def _found(
    A: Any,
    k: int | None,
    tol: float | None,
    error: float | None,
    center: bool,
    method: str,
    seed: int,
    start: SVD | None,
    progress: Callable[[str, int, int], None] | bool | None,
) -> SVD:
    """Return what svd returns, without gradients."""
    outer, matrices = as_matrices(A)
    if k is not None:
        m, n = matrices[0].shape
        k = checked_rank(k, min(m, n), f"a {m} x {n} matrix")
    with nullcontext(progress) if callable(progress) else progress_shown(quiet=progress is not True) as report:
        goal = algorithms.Goal(k, error, tol, method, seed, _vectors(start, outer, matrices[0].shape), report)
        works = [algorithms.prepare(matrix, center) for matrix in matrices]
        found = [algorithms.find(work, goal) for work in works]
        rank = max(one.rank for one in found)
        solutions = [algorithms.finish(work, one, rank, goal) for work, one in zip(works, found, strict=True)]
    result = _single(solutions[0]) if outer is None else _stacked(outer, solutions)
    return each_array(result, matrices[0].space.export)


@opaque
def svd_full(A: Any) -> SVD:
    """Return the full SVD: as svd(A), with U and Vt completed to square orthogonal matrices, (m, m) and (n, n).

    The added columns of U and rows of Vt span what A and Aᵀ never reach; they belong to no singular value.

    >>> svd_full([[3.0], [4.0]]).U.shape
    (2, 2)
    """
    found = svd(A)
    space, thin = space_of(found.s), each_array(found, inside)
    U = space.xp.concat([thin.U, _complement(thin.U)], axis=-1)
    Vt = space.xp.concat([thin.Vt, _complement(thin.Vt.mT).mT], axis=-2)
    return replace(found, U=space.export(U), Vt=space.export(Vt))


def _complement(U: Array) -> Array:
    """Return m - k orthonormal columns that are orthogonal to those of U (..., m, k)."""
    space, k = space_of(U), U.shape[-1]
    Q, _ = space.xp.linalg.qr(space.double(U), mode="complete")
    return space.leave(Q[..., :, k:])


def _vectors(start: Any, outer: Any, shape: tuple[int, int]) -> tuple[Array, Array] | None:
    """Return the vectors of a start, (m, q) and (n, q). UsageError: it is not an SVD of a matrix of this shape."""
    if start is None:
        return None
    if not isinstance(start, SVD):
        raise UsageError(f"start is {type(start).__name__}", fix="pass what eckart.svd returned for a similar matrix")
    of = (*start.U.shape[:-1], start.Vt.shape[-1])
    if outer is not None or of != shape:
        raise UsageError(
            f"start is the SVD of a matrix of shape {of}, and A has shape {(*(outer or ()), *shape)}",
            fix="pass the SVD of a matrix of the same two dimensions",
        )
    q = start.s.shape[-1]
    return inside(start.U)[:, :q], inside(start.Vt)[:q, :].T


def _single(solution: algorithms.Solution) -> SVD:
    values = {field.name: getattr(solution, field.name) for field in fields(SVD) if field.name != "error"}
    return SVD(**values, error=certificate(**{name: getattr(solution, name) for name in BOUNDS}))


def _stacked(outer: tuple[int, ...], solutions: list[algorithms.Solution]) -> SVD:
    xp, count = space_of(solutions[0].s).xp, math.prod(outer)

    def gather(name: str) -> Array:
        arrays = xp.stack([getattr(solution, name) for solution in solutions])
        return xp.reshape(arrays[:count, ...], (*outer, *arrays.shape[1:]))

    def bound(name: str) -> Any:
        return np.reshape([getattr(solution, name) for solution in solutions][:count], outer)

    return SVD(
        **{name: gather(name) for name in ARRAYS},
        error=certificate(**{name: bound(name) for name in BOUNDS}),
        method=" and ".join(sorted({solution.method for solution in solutions})),
        passes=max(solution.passes for solution in solutions),
        converged=all(solution.converged for solution in solutions),
    )


def _require_options(k: Any, tol: Any, error: Any, center: Any, method: Any, seed: Any) -> None:
    if k is not None and error is not None:
        raise UsageError(f"k = {k} and error = {error} were both given, and each of them sets the rank", fix="pass one")
    if error is not None:
        checked_fraction(error)
    if tol is not None and not (is_real(tol) and 0 <= tol < math.inf):
        raise UsageError(
            f"tol = {tol!r} is not a relative residual", fix="pass a number that is 0 or more, such as 1e-3"
        )
    if not isinstance(center, bool | np.bool_):
        raise UsageError(f"center = {center!r} is neither True nor False", fix="pass one of them")
    if method not in algorithms.METHODS:
        raise UsageError(f"method = {method!r} is not known", fix=f"pass one of {', '.join(algorithms.METHODS)}")
    if not is_whole(seed) or seed < 0:
        raise UsageError(f"seed = {seed!r} is not a whole number from 0 on", fix="pass one, such as 0")
