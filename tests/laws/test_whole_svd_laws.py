"""What a whole SVD answers: rank, pseudo-inverse, condition; and its relation to the eigenproblems of AAᵀ and AᵀA."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from svd_cases import ORTHONORMAL, assert_below, matrices, numpy64

from eckart import svd, svd_full
from eckart.errors import RankError, UsageError

dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])
frameworks = pytest.mark.parametrize("framework", [np.asarray, torch.tensor])


def unit(A):
    """Return eps ‖A‖ sqrt(m n), in which tolerances are counted."""
    return float(np.finfo(A.dtype).eps * np.linalg.norm(A.astype(np.float64), 2) * math.sqrt(A.size)) if A.size else 0.0


@dtypes
@frameworks
@given(A=matrices(), rtol=st.sampled_from([None, 1e-3]))
def test_the_four_equations_of_penrose(A, framework, dtype, rtol):
    A = A.astype(dtype)
    result = svd(framework(A))
    P, r = numpy64(result.pinv(rtol)), result.numerical_rank(rtol)
    assert P.shape == A.shape[::-1]
    s, B = numpy64(result.s), numpy64(result.truncate(r).reconstruct())  # P inverts this part of A
    spread = s[0] / s[r - 1] if r else 1.0
    relative = 8 * np.finfo(dtype).eps * math.sqrt(A.size) * spread  # of a product with P
    norm, norm_of_inverse = (s[0], 1 / s[r - 1]) if r else (0.0, 0.0)
    assert_below(np.abs(B @ P @ B - B), relative * norm)
    assert_below(np.abs(P @ B @ P - P), relative * norm_of_inverse)
    assert_below(np.abs(B @ P - (B @ P).T), relative)
    assert_below(np.abs(P @ B - (P @ B).T), relative)


@dtypes
@given(A=matrices())
def test_squares_are_the_eigenvalues_of_both_gram_matrices(A, dtype):
    A = A.astype(dtype)
    U, s, Vt = (numpy64(x) for x in svd_full(A))
    (m, n), exact, bound = A.shape, A.astype(np.float64), 16 * unit(A)
    norm = np.linalg.norm(exact, 2) if A.size else 0.0
    for gram, vectors in ((exact @ exact.T, U), (exact.T @ exact, Vt.T)):
        squares = np.zeros(len(gram))  # beyond min(m, n): the null space
        squares[: len(s)] = s**2
        assert_below(np.abs(gram @ vectors - vectors * squares), bound * norm)
        assert_below(np.abs(np.linalg.eigvalsh(gram)[::-1] - squares), bound * norm)
    assert_below(np.abs(U.T @ U - np.eye(m)), ORTHONORMAL * np.finfo(dtype).eps * max(m, n))
    assert_below(np.abs(Vt @ Vt.T - np.eye(n)), ORTHONORMAL * np.finfo(dtype).eps * max(m, n))
    assert_below(np.abs(U[:, : len(s)] * s @ Vt[: len(s)] - exact), bound)
    assert_below(np.abs(exact @ Vt[len(s) :].T), bound)
    assert_below(np.abs(U[:, len(s) :].T @ exact), bound)


@given(A=matrices())
def test_rank_and_condition_are_numpys(A):
    result = svd(A)
    s = np.linalg.svd(A, compute_uv=False) if A.size else np.zeros(0)
    limit = max(A.shape) * np.finfo(float).eps * s.max(initial=0.0)
    certain = np.abs(s - limit) > 2 * unit(A)  # values within rounding of the limit may be counted or not
    assert abs(result.numerical_rank() - np.sum(s > limit)) <= np.sum(~certain)
    if not A.size:
        with pytest.raises(RankError, match="not empty"):
            _ = result.condition
    elif s[-1] > 4 * unit(A):
        assert math.isclose(result.condition, np.linalg.cond(A), rel_tol=4 * unit(A) / s[-1])
    else:
        assert result.condition > 1 / (8 * np.finfo(float).eps * math.sqrt(A.size))


@frameworks
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_a_stack_answers_for_each_of_its_matrices(framework, shape):
    A = np.random.default_rng(0).standard_normal((2, 3, *shape))
    A[1, 2], A[0, 1, 0] = 0, 0
    result = svd(framework(A))
    assert result.numerical_rank().tolist() == [[4, 3 if shape == (4, 7) else 4, 4], [4, 4, 0]]
    assert result.pinv().shape == (2, 3, *shape[::-1])
    assert np.shape(result.condition) == (2, 3)
    for index in np.ndindex(2, 3):
        one = svd(framework(A[index]))
        assert one.condition == result.condition[index]
        assert_below(np.abs(numpy64(one.pinv()) - numpy64(result.pinv())[index]), 1e-14)
        assert_below(np.abs(numpy64(one.pinv()) - np.linalg.pinv(A[index])), 1e-13)


@dtypes
@pytest.mark.parametrize("rtol", [None, 0.3])
def test_pinv_of_full_and_thin_is_the_same_and_keeps_type(dtype, rtol):
    A = torch.tensor(np.random.default_rng(0).standard_normal((6, 4)).astype(dtype)).bfloat16()
    for given_as in (A, A.float(), A.double()):
        thin, full = (make(given_as).pinv(rtol) for make in (svd, svd_full))
        assert thin.dtype == full.dtype == given_as.dtype
        assert torch.equal(thin, full)


def test_pinv_passes_gradients_on_to_the_factors():
    found = svd(torch.diag(torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)))
    s = found.s.clone().requires_grad_()
    replace(found, s=s).pinv().trace().backward()
    assert torch.allclose(s.grad, -1 / s.detach() ** 2)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, scipy.sparse.csr_array])
def test_a_truncated_svd_answers_what_it_can(make):
    A = np.diag([4.0, 2.0, 1.0, 1e-20, 0.0])
    for k, rtol in ((3, 1e-12), (4, None), (5, None)):  # that s_4 is below eps is more than a certificate can say
        assert svd(make(A), k).numerical_rank(rtol) == 3
        assert_below(np.abs(numpy64(svd(make(A), k).pinv(rtol)) - np.diag([0.25, 0.5, 1, 0, 0])), 1e-15)
    assert svd(make(A), 2).numerical_rank(rtol=0.3) == 2
    assert svd(make(A), 0).error.spectral >= 4


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda: svd(np.eye(5, 8), 2).numerical_rank(), RankError, "2 singular values of a 5 x 8 matrix.*compute more"),
        (lambda: svd(np.eye(5, 8), 2).pinv(), RankError, "left out"),
        (lambda: svd(np.eye(5, 8), 0).numerical_rank(), RankError, "0 singular values of a 5 x 8"),
        (lambda: svd(np.eye(5, 8), 4).condition, RankError, "smallest of 5.*without k"),
        (lambda: svd(np.eye(5, 8)).truncate(4).condition, RankError, "smallest of 5"),
        (lambda: svd(np.eye(5, 8)).truncate(4).numerical_rank(), RankError, "left out"),
        (lambda: svd(np.eye(3)).numerical_rank(-1), UsageError, "rtol = -1"),
        (lambda: svd(np.eye(3)).pinv(math.nan), UsageError, "rtol = nan"),
        (lambda: svd(np.eye(3)).pinv("1"), UsageError, "rtol = '1'"),
    ],
)
def test_what_cannot_be_answered_is_said(ask, error, words):
    with pytest.raises(error, match=words):
        ask()


def test_singular_matrices_have_infinite_condition():
    assert svd(np.zeros((3, 2))).condition == math.inf
    assert svd(np.diag([1.0, 0.0])).condition == math.inf
    assert svd(np.zeros((3, 2))).numerical_rank() == 0
    assert not svd(np.zeros((3, 2))).pinv().any()
    assert svd(np.zeros((0, 2))).numerical_rank() == 0
    assert svd(np.zeros((0, 2))).pinv().shape == (2, 0)
