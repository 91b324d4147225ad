"""The matrices that every solver must face, too large for a Krylov basis to hold at once, against LAPACK."""

import functools

import numpy as np
import pytest
import scipy.sparse
from svd_cases import KRYLOV, laws, numpy64

from eckart import svd
from eckart._algorithms._krylov import basis_columns
from eckart.errors import UsageError

M, N, K = 700, 500, 6


def with_values(s, m=M, n=N, seed=0):
    """Return an m x n matrix with these singular values: cosine transforms are cheap orthogonal matrices."""
    from scipy.fft import dct, idct

    rng = np.random.default_rng(seed)
    A = np.zeros((m, n))
    A[range(len(s)), range(len(s))] = s
    A = dct(A * rng.choice([-1.0, 1.0], n), axis=1, norm="ortho")
    return idct(A * rng.choice([-1.0, 1.0], (m, 1)), axis=0, norm="ortho")


def one_huge_row():
    A = np.random.default_rng(1).standard_normal((M, N))
    A[17] *= 1e8
    return A


def zero_rows_and_columns():
    A = np.random.default_rng(2).standard_normal((M, N))
    A[::2], A[:, ::3] = 0, 0
    return A


MATRICES = {
    "all equal": lambda: with_values(np.ones(N)),
    "40 copies": lambda: with_values(np.r_[np.full(40, 2.0), np.geomspace(1, 0.1, N - 40)]),
    "40 copies below others": lambda: with_values(np.r_[4.0, 3.0, np.full(40, 2.0), np.geomspace(1, 0.1, N - 42)]),
    "cluster 1e-8 wide": lambda: with_values(np.r_[1 + 1e-8 * np.arange(8)[::-1], np.geomspace(0.5, 1e-3, N - 8)]),
    "gap of 1e-9 at k": lambda: with_values(np.r_[np.ones(K), np.full(N - K, 1 - 1e-9)]),
    "graded to 1e-6": lambda: with_values(np.geomspace(1, 1e-6, N)),
    "graded to 1e-12": lambda: with_values(np.geomspace(1, 1e-12, N)),
    "graded to 1e-12 at k": lambda: with_values(np.geomspace(1, 1e-12, K + 2)),
    "rank below k": lambda: with_values(np.r_[3.0, 2.0, 1.0]),
    "zero": lambda: np.zeros((M, N)),
    "zero rows and columns": zero_rows_and_columns,
    "one huge row": one_huge_row,
    "scale 1e30": lambda: 1e30 * with_values(np.arange(1, N + 1)[::-1] ** -0.5),
    "scale 1e-30": lambda: 1e-30 * with_values(np.arange(1.0, N + 1) ** -0.5),
    "diagonal": lambda: np.diag(np.arange(1.0, N + 1))[:, ::-1],
    "wide": lambda: with_values(np.arange(1.0, N + 1) ** -0.5).T,
    "slow decay": lambda: with_values(np.arange(1.0, N + 1) ** -0.5),
}


@functools.cache
def matrix(name):
    return MATRICES[name]()


def test_no_basis_holds_these_matrices():
    for k in (K, 1):
        assert basis_columns(k, in_memory=False) < basis_columns(k, in_memory=True) < N


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", [*KRYLOV, "auto"])
@pytest.mark.parametrize("name", MATRICES)
def test_every_law(name, method, dtype):
    A = matrix(name).astype(dtype)
    for given_as in (A, scipy.sparse.csr_array(A)):
        laws(A.astype(np.float64), svd(given_as, K, method=method), K, dtype)


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("k", [1, 60])
def test_few_and_many_values(method, k):
    A = matrix("slow decay")
    laws(A, svd(scipy.sparse.csr_array(A), k, method=method), k, np.float64)


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("k", [1, 45, 60])
def test_more_copies_than_a_block_has_columns_are_all_found(method, k):
    A = matrix("40 copies below others")
    exact = np.linalg.svd(A, compute_uv=False)[:k]
    for given_as in (A, scipy.sparse.csr_array(A)):
        for seed in range(3):
            assert np.abs(svd(given_as, k, method=method, tol=1e-6, seed=seed).s - exact).max() < 1e-5


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize(("dtype", "tols"), [(np.float32, (1e-2, 1e-4, 1e-6)), (np.float64, (1e-2, 1e-6, 1e-10))])
@pytest.mark.parametrize("name", ["slow decay", "graded to 1e-6", "40 copies", "one huge row"])
def test_a_tolerance_is_met_and_a_coarse_one_costs_less(name, method, dtype, tols):
    A = matrix(name).astype(dtype)
    passes = []
    for tol in tols:
        result = svd(scipy.sparse.csr_array(A), K, tol=tol, method=method)
        U, s, Vt = (numpy64(x) for x in result)
        A64 = A.astype(np.float64)
        residuals = np.linalg.norm(A64 @ Vt.T - U * s, axis=0), np.linalg.norm(A64.T @ U - Vt.T * s, axis=0)
        assert result.converged
        assert np.max(residuals) <= tol * s[0] * (1 + 1e-6)
        passes.append(result.passes)
    assert passes[0] <= passes[1] <= passes[2]


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("name", ["slow decay", "zero"])
def test_what_cannot_be_met_is_said_of_the_factors_that_are_returned(name, method):
    A = matrix(name)
    result = svd(scipy.sparse.csr_array(A), K, tol=0, method=method)
    U, s, Vt = result
    left, right = np.linalg.norm(A @ Vt.T - U * s, axis=0), np.linalg.norm(A.T @ U - Vt.T * s, axis=0)
    assert np.abs(result.residuals - np.maximum(left, right)).max() <= 4e-16
    assert result.converged == (name == "zero")


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("shape", [(M, N), (N, M)])
def test_a_start_changes_the_way_and_not_the_answer(method, shape):
    A = scipy.sparse.csr_array(matrix("slow decay") if shape == (M, N) else matrix("slow decay").T)
    cold = svd(A, K, method=method)
    useless = svd(np.random.default_rng(3).standard_normal(shape), K)
    for start in (cold, useless, svd(A, K + 3), svd(A, 2)):
        laws(A.toarray(), svd(A, K, method=method, start=start), K, np.float64)
    # What the start lacks is found though all that it holds has converged.
    lacking = svd(A - cold.truncate(1).reconstruct(), K)
    assert abs(svd(A, K, method=method, start=lacking).s[0] - cold.s[0]) < 1e-12


def test_a_start_that_is_none_is_refused():
    A = np.eye(5, 4)
    with pytest.raises(UsageError, match=r"shape \(4, 5\), and A has shape \(5, 4\)"):
        svd(A, 2, start=svd(A.T, 2))
    with pytest.raises(UsageError, match=r"\(3, 5, 4\)"):
        svd(np.stack([A] * 3), 2, start=svd(A, 2))
    with pytest.raises(UsageError, match="ndarray"):
        svd(A, 2, start=A)


def test_a_sketch_is_exact_for_low_rank_and_near_the_best_where_values_fall():
    low = matrix("rank below k")
    result = svd(scipy.sparse.csr_array(low), 4, method="sketch")
    assert result.method == "sketch"
    assert np.abs(result.reconstruct() - low).max() < 1e-13
    # Tropp et al., theorem 4.3, with these numbers of columns: within a small multiple of the tail
    falling = with_values(1 / np.arange(1, N + 1) ** 2.0)
    best = np.linalg.norm(1 / np.arange(21, N + 1) ** 2.0)
    for seed in range(3):
        result = svd(scipy.sparse.csr_array(falling), 20, method="sketch", seed=seed)
        assert np.linalg.norm(falling - result.reconstruct()) <= 4 * best


@pytest.mark.parametrize("method", [*KRYLOV, "sketch"])
def test_the_same_seed_gives_the_same_bits(method):
    A = scipy.sparse.csr_array(matrix("slow decay"))
    first, second = (svd(A, K, method=method, seed=5) for _ in range(2))
    for x, y in zip((*first, first.residuals), (*second, second.residuals), strict=True):
        assert np.array_equal(x, y)
    assert first.error.spectral == second.error.spectral
