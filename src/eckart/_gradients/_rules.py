"""The rules of reverse mode: what the gradient of a loss with respect to U, s, Vt, or to U diag(s) Vt, is to A.

Write G_U, g_s, G_V for the gradients with respect to U, s and V = Vtᵀ, a = UᵀG_U - G_UᵀU and b = VᵀG_V - G_VᵀV. Within
the k singular spaces, the gradient with respect to A is U (diag(g_s) + C) Vt, with for i ≠ j
    C_ij = (a + b)_ij / 2(s_j - s_i) + (a - b)_ij / 2(s_j + s_i)
(Townsend, Differentiating the singular value decomposition, 2016; Giles, An extended collection of matrix derivative
results, 2008; in partial fractions, which show what is undefined: at s_i = s_j no more than the first term). Outside of
them it is Σ p_i v_iᵀ + u_i q_iᵀ, where with A_r = A - U diag(s) Vt
    s_i p_i - A_r q_i = (I - UUᵀ) G_U e_i,   s_i q_i - A_rᵀ p_i = (I - VVᵀ) G_V e_i,
as differentiation of A v_i = s_i u_i and Aᵀ u_i = s_i v_i gives (for the dropped part of a truncated SVD see Wan &
Zhang, arXiv 1909.02659). p_i is eliminated; s_i² I - A_rᵀA_r is positive definite, and conjugate gradients solve it
by products alone, all columns side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from eckart._arrays import Array, to_numpy
from eckart.errors import NumericalError
from eckart.matrix import Operand, as_matrices, centred, transposed

__all__ = ["pull_factors", "pull_low_rank"]

TIED = 32  # singular values this many eps s_1 apart are not told from equal ones, a few times LAPACK's own error
NOISE = 64  # gradients below this many eps of the whole are rounding
SOLVED = 1e-13  # the relative residual at which a system counts as solved
SLACK = 100  # steps beyond the 2 n that conjugate gradients take at most as a rule
FIX = "use only s, or reconstruct(), whose gradients exist; or change A, or k, so that the values differ"


def pull_factors(A: Array, U: Array, s: Array, Vt: Array, gU: Array, gs: Array, gVt: Array, center: bool) -> Array:
    """Return the gradient with respect to A (..., m, n), in float64, given those with respect to U, s and Vt.

    All are arrays of NumPy, or of torch. center: U, s and Vt are of A with its column means taken off.
    NumericalError: the loss depends on vectors that A does not determine.
    """
    return _each(_pull_factors, center, A, U, s, Vt, gU, gs, gVt)


def pull_low_rank(A: Array, U: Array, s: Array, Vt: Array, G: Array, center: bool) -> Array:
    """Return the gradient with respect to A (..., m, n), in float64, given that with respect to U diag(s) Vt.

    NumericalError: s_k = s_{k+1}, where A has more than one best approximation of rank k.
    """
    return _each(_pull_low_rank, center, A, U, s, Vt, G)


def _each(pull: Callable[..., Array], center: bool, A: Array, *arrays: Array) -> Array:
    outer, matrices = as_matrices(A)
    gradients = []
    for index, matrix in zip(np.ndindex(*(outer or ())), matrices, strict=False):
        operand = centred(matrix) if center else matrix
        gradient = pull(operand, *(operand.space.double(x[(*index, ...)]) for x in arrays))
        if center and gradient.shape[0]:
            gradient = gradient - operand.space.xp.mean(gradient, axis=0)
        gradients.append(gradient)
    if outer is None:
        return gradients[0]
    space = matrices[0].space
    if not gradients:
        return space.xp.zeros(A.shape, dtype=space.xp.float64, device=space.device)
    return space.xp.reshape(space.xp.stack(gradients), A.shape)


def _pull_factors(A: Operand, U: Array, s: Array, Vt: Array, gU: Array, gs: Array, gVt: Array) -> Array:
    if A.shape[0] < A.shape[1]:
        return _pull_factors(transposed(A), Vt.T, s, U.T, gVt.T, gs, gU.T).T
    xp, V, gV = A.space.xp, Vt.T, gVt.T
    noise = NOISE * A.space.eps * float(xp.linalg.vector_norm(gU) + xp.linalg.vector_norm(gV))
    inner_U, inner_V = U.T @ gU, V.T @ gV
    within = _within(to_numpy(s), to_numpy(inner_U - inner_U.T), to_numpy(inner_V - inner_V.T), noise, A.space.eps)
    core = A.space.double(xp.asarray(within, device=A.space.device)) + xp.eye(len(within)) * gs
    P, Q = _outside(A, U, s, V, gU - U @ inner_U, gV - V @ inner_V, noise)
    return (U @ core + P) @ Vt + U @ Q.T


def _pull_low_rank(A: Operand, U: Array, s: Array, Vt: Array, G: Array) -> Array:
    (m, n), k, V = A.shape, s.shape[0], Vt.T
    if k == min(m, n):  # U diag(s) Vt is A
        return G
    if m < n:
        return _pull_low_rank(transposed(A), V, s, U.T, G.T).T
    if k == 0:
        return 0 * G
    if float(s[-1]) <= TIED * A.space.eps * float(s[0]):
        raise _cut(s)
    GV = G @ V
    # d(A V Vᵀ) = dA V Vᵀ + A_r Y Vᵀ + U diag(s) Yᵀ, where Y is what the change of V has outside of its span.
    gY = A.rmatmat(GV - U @ (U.T @ GV)) + (G.T @ U) * s
    noise = NOISE * A.space.eps * float(A.space.xp.linalg.vector_norm(G)) * float(s[0])
    P, Q = _outside(A, U, s, V, 0 * U, gY - V @ (V.T @ gY), noise)
    return (GV + P) @ Vt + U @ Q.T


def _within(s: Any, a: Any, b: Any, noise: float, eps: float) -> Any:
    """Return C (k, k), all in NumPy. NumericalError: it takes part of what is undefined."""
    if not (a.any() or b.any()):
        return 0 * a
    difference, sum_ = s - s[:, None], s + s[:, None]
    tied = np.abs(difference) <= TIED * eps * s[0]
    undefined = tied & ((np.abs(a) > noise) | (np.abs(b) > noise))
    if undefined.any():
        i, j = (int(index) for index in np.argwhere(undefined)[0])
        raise NumericalError(
            f"the loss depends on singular vectors {i} and {j}, which are no function of the matrix: "
            f"their singular values, {s[i]:.6g} and {s[j]:.6g}, are equal to rounding",
            fix=FIX,
            code="E-tied",
        )
    apart = ~tied  # where two values are not tied, their sum is not 0 either
    return np.divide(a + b, 2 * difference, where=apart, out=0 * a) + np.divide(a - b, 2 * sum_, where=apart, out=0 * a)


def _outside(A: Operand, U: Array, s: Array, V: Array, RU: Array, RV: Array, noise: float) -> tuple[Array, Array]:
    """Return P and Q. RU: (m, k), RV: (n, k), orthogonal to U and V. m >= n."""
    xp, norm, k = A.space.xp, A.space.xp.linalg.vector_norm, s.shape[0]
    asked = norm(RU, axis=0) + norm(RV, axis=0) > noise
    if not bool(xp.any(asked)):
        return 0 * RU, 0 * RV
    zero = to_numpy(asked & (s <= TIED * A.space.eps * s[0]))
    if zero.any():
        i = int(np.argmax(zero))
        raise NumericalError(
            f"the loss depends on the singular vectors of value {i}, which are no function of the matrix: "
            f"the value, {float(s[i]):.3g}, is 0 to rounding",
            fix=FIX,
            code="E-tied",
        )
    s, RU, RV = xp.where(asked, s, 1.0), xp.where(asked, RU, 0.0), xp.where(asked, RV, 0.0)
    if k == A.shape[1]:  # nothing is dropped
        return RU / s, 0 * RV

    def dropped(X: Array) -> Array:
        Y = A.matmat(X)
        return Y - U @ (U.T @ Y)

    def dropped_transposed(Y: Array) -> Array:
        X = A.rmatmat(Y)
        return X - V @ (V.T @ X)

    Q = _solved(A, lambda X: s**2 * X - dropped_transposed(dropped(X)), s * RV + dropped_transposed(RU), s)
    return (RU + dropped(Q)) / s, Q


def _solved(A: Operand, apply: Callable[[Array], Array], right: Array, s: Array) -> Array:
    """Return X with apply(X) = right by conjugate gradients, each column a system of its own.

    NumericalError: a system is singular to rounding, as where s_k is also among the values that were dropped.
    """
    xp = A.space.xp
    X, rest, direction = 0 * right, right, right
    squared = xp.sum(right**2, axis=0)
    goal = SOLVED**2 * squared
    least = TIED * A.space.eps * float(s[0]) * s
    for _ in range(2 * A.shape[1] + SLACK):
        active = squared > goal
        if not bool(xp.any(active)):
            return X
        image = apply(direction)
        curvature, size = xp.sum(direction * image, axis=0), xp.sum(direction**2, axis=0)
        if bool(xp.any(active & (curvature <= least * size))):
            break
        step = xp.where(active, squared / xp.where(active, curvature, 1.0), 0.0)
        X, rest = X + step * direction, rest - step * image
        before, squared = squared, xp.sum(rest**2, axis=0)
        direction = rest + xp.where(active, squared / xp.where(active, before, 1.0), 0.0) * direction
    raise _cut(s)


def _cut(s: Array) -> NumericalError:
    return NumericalError(
        f"the loss depends on {s.shape[0]} leading singular vectors, which are no function of the matrix: "
        f"value {s.shape[0] - 1}, {float(s[-1]):.6g}, equals the next one, which was left out, to rounding",
        fix="pass another k, at a gap between the values; s and its gradient exist in any case",
        code="E-tied",
    )
