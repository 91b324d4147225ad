"""The laws of an operand for every view of every kind of matrix, alone and one on another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from svd_cases import KINDS, assert_below, matrices, numpy64

from eckart import as_matrix
from eckart.errors import UsageError
from eckart.matrix import centred, transposed, weighted

EPS = np.finfo(np.float64).eps


def weights(size, seed):
    return np.random.default_rng(seed).random(size) + 0.1


def r(A):
    return weights(A.shape[0], 1)


def c(A):
    return weights(A.shape[1], 2)


def mean(A, w=None):
    return np.average(A, axis=0, weights=w)


# view of an operand, and what it is of an array
VIEWS = {
    "columns scaled": (lambda A: weighted(A, columns=c(A)), lambda A: A * c(A)),
    "rows weighted": (lambda A: weighted(A, rows=r(A)), lambda A: A * r(A)[:, None]),
    "both": (lambda A: weighted(A, rows=r(A), columns=c(A)), lambda A: A * r(A)[:, None] * c(A)),
    "nothing weighted": (weighted, lambda A: A),
    "centred": (centred, lambda A: A - mean(A)),
    "weighted mean": (lambda A: centred(A, r(A)), lambda A: A - mean(A, r(A))),
    "weighted principal components": (
        lambda A: weighted(centred(A, r(A)), rows=np.sqrt(r(A))),
        lambda A: (A - mean(A, r(A))) * np.sqrt(r(A))[:, None],
    ),
    "centred, scaled, weighted": (
        lambda A: weighted(centred(A), rows=r(A), columns=c(A)),
        lambda A: (A - mean(A)) * r(A)[:, None] * c(A),
    ),
    "weighted, then centred": (
        lambda A: centred(weighted(A, rows=r(A), columns=c(A))),
        lambda A: A * r(A)[:, None] * c(A) - mean(A * r(A)[:, None] * c(A)),
    ),
    "centred twice": (lambda A: centred(centred(A)), lambda A: A - mean(A)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", VIEWS)
@given(A=matrices(shapes=[(1, 6), (7, 4), (4, 7)]), exponent=st.integers(-40, 40))
def test_the_laws_of_an_operand(A, kind, view, exponent):
    make, of_array = VIEWS[view]
    whole, exact = make(as_matrix(KINDS[kind](A))), of_array(A)
    for operand, array in ((whole, exact), (transposed(whole), exact.T), (transposed(transposed(whole)), exact)):
        assert operand.shape == array.shape
        for matrix, unit in ((operand, 1.0), (operand.scaled(exponent), 2.0**exponent)):
            rounding = 40 * EPS * np.linalg.norm(A) * unit * np.sqrt(A.size)
            X, Y = (matrix.space.normal((size, 3), seed=1) for size in array.shape[::-1])
            AX, AtY, X, Y = (numpy64(x) for x in (matrix.matmat(X), matrix.rmatmat(Y), X, Y))
            assert_below(np.abs(AX - unit * array @ X), rounding)
            assert_below(np.abs(AtY - unit * array.T @ Y), rounding)
            assert_below(np.abs(Y.T @ AX - AtY.T @ X), 10 * rounding)  # ⟨Y, A X⟩ = ⟨Aᵀ Y, X⟩
            assert matrix.largest() <= 8 * np.sqrt(A.size) * np.abs(A).max() * unit
            norm, true = matrix.squared_norm(), np.linalg.norm(array) ** 2 * unit**2
            if norm is not None:
                assert true * (1 - 1e-12) <= norm <= true + 1e-12 * np.linalg.norm(A) ** 2 * unit**2
            if matrix.in_memory:
                assert_below(np.abs(numpy64(matrix.entries) - unit * array), rounding)
                blocks = np.concatenate([numpy64(block) for _, block in matrix.panels()])
                assert_below(np.abs(blocks - unit * array), rounding)
            else:
                assert matrix.entries is None


@pytest.mark.parametrize("kind", ["numpy", "torch", "csr"])
def test_a_view_of_a_float32_matrix_keeps_what_float64_blocks_bring(kind):
    A = (1e4 + np.random.default_rng(0).standard_normal((300, 20))).astype(np.float32)
    view = weighted(centred(as_matrix(KINDS[kind](A)), r(A)), columns=c(A))
    exact = (A - mean(A.astype(np.float64), r(A))) * c(A)
    X = view.space.double(view.space.normal((20, 3), seed=0))
    assert_below(np.abs(numpy64(view.matmat(X)) - exact @ numpy64(X)), 1e-8)
    norm = view.squared_norm()  # of sparse rows, a difference of two squares, each as large as that of A
    assert norm == pytest.approx(np.linalg.norm(exact) ** 2, rel=1e-6, abs=1e-12 * float(np.linalg.norm(A)) ** 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda A: weighted(A, rows=[1.0, 2.0]), r"shape \(2,\) given for 3 rows; pass 3"),
        (lambda A: weighted(A, columns=np.ones((2, 1))), "2 columns"),
        (lambda A: weighted(A, columns=[1.0, np.inf]), "weight 1 of the columns is not finite"),
        (lambda A: centred(A, [1.0, -1.0, 1.0]), "0 or more"),
        (lambda A: centred(A, [0.0, 0.0, 0.0]), "one of them is more"),
    ],
)
def test_weights_that_cannot_be_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call(as_matrix(np.ones((3, 2))))
