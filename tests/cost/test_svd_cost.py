"""What svd costs: how often a matrix is read, what is never made, how much memory is taken."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator

from eckart import svd
from eckart._algorithms import METHODS, TABLE, _accuracy, _solve, gram
from eckart._algorithms._table import Problem, admissible, cheapest
from eckart.matrix import as_matrix


class Counting:
    """A matrix that counts its products and the columns in them."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype
        self.products = self.columns = 0

    def matmat(self, X):
        self.products, self.columns = self.products + 1, self.columns + X.shape[1]
        return self.A @ X

    def rmatmat(self, Y):
        self.products, self.columns = self.products + 1, self.columns + Y.shape[1]
        return self.A.T @ Y


KRYLOV = ("lanczos", "golub-kahan")


@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("method", "k"), [*((name, 3) for name in ("auto", *KRYLOV, "gram", "sketch")), ("gram", 40)])
def test_passes_are_the_products_made(shape, center, method, k):
    A = Counting(np.random.default_rng(0).standard_normal(shape))
    assert svd(A, k, method=method, center=center).passes == A.products


def test_the_gram_method_reads_a_matrix_of_few_columns_six_times():
    A = Counting(np.random.default_rng(0).standard_normal((500, gram.BLOCK)))
    assert svd(A, 2, method="gram").method == "gram"
    # scale 1, AᵀA 2, A on the subspace 1, its residuals on the right 1, certificate 1
    assert A.products == 6
    whole = Counting(A.A)
    svd(whole, gram.BLOCK, method="gram")
    assert whole.products == 1 + 1 + 1


def test_an_array_in_memory_is_read_three_times():
    assert svd(np.eye(30, 20)).passes == 3  # scale, LAPACK, certificate
    assert svd(np.eye(30, 20), center=True).passes == 4


def test_a_sketch_is_two_products_and_its_measurement_two_more(by_products):
    A = Counting(np.random.default_rng(0).standard_normal((90, 40)))
    svd(A, 3, method="sketch")
    assert A.products == 1 + 2 + 2  # the first one finds the scale


@pytest.fixture
def by_products(monkeypatch):
    """Let the certificate do without the entries, as it does for large matrices."""
    for name in ("FREE_ENTRIES", "FREE_FLOPS", "MOST_ENTRIES"):
        monkeypatch.setattr(_accuracy, name, 0)


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_certificate_reads_a_matrix_twice(by_products, k, dtype):
    entries = np.random.default_rng(0).standard_normal((90, 40)).astype(dtype)
    U, s, Vt = np.linalg.svd(entries, full_matrices=False)
    A = Counting(entries)
    measured = _accuracy.measure(as_matrix(A), U[:, :k], s[:k], Vt[:k], 1e-3, seed=0)
    assert A.products == 2
    assert measured.failure > 0


def test_a_polish_that_squaring_makes_necessary_does_not_wait_for_a_measurement(monkeypatch):
    A = np.random.default_rng(0).standard_normal((300, 200)) * np.geomspace(1, 1e-5, 200)
    measured = []
    measure = _accuracy.measure
    monkeypatch.setattr(_solve, "measure", lambda *args: measured.append(args) or measure(*args))
    result = svd(scipy.sparse.csr_array(A.astype(np.float32)), 40, tol=1e-5, method="lanczos")
    assert (result.method, result.converged, len(measured)) == ("lanczos, golub-kahan", True, 1)


def test_a_warm_start_takes_a_third_of_the_passes():
    A = scipy.sparse.random_array((3000, 2000), density=0.01, rng=0, format="csr")
    cold = svd(A, 20, tol=1e-4)
    changed = A.copy()
    changed.data = A.data * (1 + 1e-4 * np.random.default_rng(1).standard_normal(A.nnz))
    again, warm = svd(changed, 20, tol=1e-4), svd(changed, 20, tol=1e-4, start=cold)
    assert warm.converged
    assert np.abs(warm.s - again.s).max() <= 1e-4 * again.s[0]
    assert 3 * warm.passes <= again.passes


@pytest.fixture
def never_dense(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a sparse matrix was made dense")

    for name in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok"):
        for kind in ("array", "matrix"):
            for method in ("toarray", "todense", "__array__"):
                monkeypatch.setattr(getattr(scipy.sparse, f"{name}_{kind}"), method, refuse, raising=False)


@pytest.mark.usefixtures("never_dense")
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("center", [False, True])
def test_sparse_matrices_of_every_format_are_never_made_dense(form, center):
    A = scipy.sparse.random_array((60, 40), density=0.1, rng=0)
    for given_as in (A.asformat(form), A.asformat(form).T, getattr(scipy.sparse, f"{form}_matrix")(A)):
        for k in (0, 3, 40):
            assert svd(given_as, k, center=center).converged
        assert svd(given_as, error=0.5, center=center).converged


@pytest.mark.parametrize("center", [False, True])
def test_a_large_sparse_matrix_takes_no_more_memory_than_its_factors(center):
    m, n, k = 60000, 30000, 2
    A = scipy.sparse.random_array((m, n), density=20 / n, rng=0, dtype=np.float32, format="csr")
    tracemalloc.start()
    try:
        svd(A, k, center=center, tol=1e-2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    lanczos_basis = 20 * n * 8
    assert peak < 4 * (A.data.nbytes + A.indices.nbytes) + 10 * lanczos_basis < m * n


def test_the_subspace_is_multiplied_in_blocks(monkeypatch):
    monkeypatch.setattr(gram, "BLOCK", 16)
    A = np.random.default_rng(0).standard_normal((70, 50))
    result = svd(Counting(A), 5, method="gram")
    assert np.abs(result.s - np.linalg.svd(A, compute_uv=False)[:5]).max() < 1e-13


def test_no_product_and_no_lapack_for_nothing(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("called")

    monkeypatch.setattr(np.linalg, "svd", refuse)
    assert svd(np.ones((5, 4)), 0).s.shape == (0,)


def test_a_canonical_sparse_matrix_is_not_copied():
    A = scipy.sparse.random_array((60, 40), density=0.1, rng=0, format="csr")
    A.sum_duplicates()
    assert np.shares_memory(as_matrix(A).rows.values, A.data)
    assert np.shares_memory(as_matrix(np.ones((3, 2)).T).entries, as_matrix(np.ones((3, 2))).entries) is False


def test_results_keep_nothing_larger_alive():
    for array in svd(np.random.default_rng(0).standard_normal((400, 300)), 2):
        assert array.base is None or array.base.nbytes == array.nbytes


# The choice


def chosen(m, n, k, stored=None, tol=1e4):
    problem = Problem(m, n, k, tol, stored or m * n, stored is None)
    return cheapest(admissible(problem, "auto"), problem).name


def test_the_cheapest_admissible_row_is_taken():
    assert chosen(1000, 1000, 1000) == "lapack"
    assert chosen(60, 40, 10) == "lapack"
    assert chosen(500_000, 200, 200) == "tall"
    assert chosen(20000, 4000, 100) in KRYLOV
    assert chosen(100000, 50000, 100, stored=7_000_000) == "lanczos"
    assert chosen(100000, 50000, 100, stored=7_000_000, tol=32) == "golub-kahan"  # below what squaring can reach
    assert chosen(100000, 200, 50, stored=2_000_000) == "gram"
    assert chosen(1000, 1000, 1000, stored=10_000) == "gram"
    assert chosen(50, 0, 0, stored=50) == "gram"


def test_every_matrix_and_rank_has_an_admissible_row():
    for m, n in ((0, 0), (1, 0), (1, 1), (2, 2), (50, 20)):
        for k in range(n + 1):
            for in_memory in (False, True):
                for tol in (0.0, 1e6):
                    assert admissible(Problem(m, n, k, tol, m + n, in_memory), "auto")
    assert ("auto", *(row.name for row in TABLE)) == METHODS


def test_a_coarse_sketch_is_never_chosen():
    assert all(row.name != "sketch" for row in admissible(Problem(10**6, 10**6, 1, 1e9, 1, False), "auto"))


def test_auto_is_the_row_that_it_names():
    A = scipy.sparse.random_array((300, 200), density=0.1, rng=0)
    named = svd(A, 4, method=svd(A, 4).method)
    assert np.array_equal(named.s, svd(A, 4).s)
    assert aslinearoperator(A).shape == (300, 200)
