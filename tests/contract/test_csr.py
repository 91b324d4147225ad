"""Products of compressed sparse rows give what the definition gives, in every instruction set here and by SciPy."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from eckart import _kernels
from eckart._kernels import csr
from eckart._kernels.csr import CompressedRows, form
from eckart.errors import NumericalError, UsageError
from eckart.matrix import as_matrix
from eckart.matrix.sparse import as_scipy

LIBRARY = _kernels._library()[0]
LEVELS = range(1, csr._level(LIBRARY) + 1) if LIBRARY else ()
ROUNDING = 4  # of a sum of products, in units of eps sqrt(terms) Σ|a b|; the largest seen is below 1
FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


@pytest.fixture(params=[*(f"level {level}" for level in LEVELS), "fallback"])
def kernels(request, monkeypatch):
    use(request.param, monkeypatch)
    return request.param


@pytest.fixture(params=[f"level {level}" for level in LEVELS])
def native(request, monkeypatch):
    use(request.param, monkeypatch)
    return request.param


def use(name, monkeypatch):
    if name == "fallback":
        monkeypatch.setattr(_kernels, "_library", lambda: (None, "switched off by a test"))
    else:
        monkeypatch.setattr(csr, "_level", lambda library: int(name[-1]))


def example(m=60, n=40, values="float64", indices="int32", density=0.2, seed=0):
    """Return a matrix with an empty row, an empty column and one full row, and the same in dense float64."""
    A = scipy.sparse.random_array((m, n), density=density, rng=seed).toarray().astype(values)
    A[m // 2], A[1], A[:, 2] = 1, 0, 0
    S = scipy.sparse.csr_array(A)
    pointers = (S.indptr.astype(indices), S.indices.astype(indices))
    return CompressedRows(A.shape, *pointers, S.data), A.astype(np.float64)


def block(rows, columns, dtype, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)


def assert_product(found, A, X):
    eps = np.finfo(found.dtype).eps
    terms, X = max(A.shape[1], 1), X.astype(np.float64)
    assert found.shape == (A.shape[0], X.shape[1])
    assert found.flags.c_contiguous
    assert np.all(np.abs(found - A @ X) <= ROUNDING * eps * np.sqrt(terms) * (np.abs(A) @ np.abs(X)))


@pytest.mark.parametrize("indices", ["int32", "int64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", ["float32", "float64"])
def test_every_width_type_and_index_gives_the_product(kernels, values, dtype, indices):
    rows, A = example(values=values, indices=indices)
    for p in (*range(71), 100, 128, 130):
        X, Y = block(40, p, dtype), block(60, p, dtype)
        for found, matrix, given_block in ((rows.matmat(X), A, X), (rows.rmatmat(Y), A.T, Y)):
            assert found.dtype == np.result_type(values, dtype)
            assert_product(found, matrix, given_block)


def test_random_matrices_of_every_shape_give_scipys_product():
    @given(
        shape=st.tuples(st.integers(0, 30), st.integers(0, 30)),
        p=st.integers(0, 20),
        density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        seed=st.integers(0, 2**32 - 1),
    )
    def check(shape, p, density, seed):
        S = scipy.sparse.random_array(shape, density=density, rng=seed, format="csr")
        S.sum_duplicates()
        rows = CompressedRows(shape, S.indptr, S.indices, S.data)
        assert_product(rows.matmat(block(shape[1], p, "float64")), S.toarray(), block(shape[1], p, "float64"))
        assert_product(rows.rmatmat(block(shape[0], p, "float64")), S.toarray().T, block(shape[0], p, "float64"))

    check()


def test_the_bits_depend_neither_on_the_threads_nor_on_the_width(native, monkeypatch):
    monkeypatch.setattr(csr, "SMALL", 0)
    for density, accumulators in ((0.02, 1), (0.9, 16)):
        rows, _ = example(3000, 41, values="float32", density=density)
        assert len(rows._accumulated) == accumulators
        X, Y = block(41, 37, "float32"), block(3000, 37, "float32")
        results = set()
        for threads in (1, 2, 3, 7):
            monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
            results.add((rows.matmat(X).tobytes(), rows.rmatmat(Y).tobytes()))
        assert len(results) == 1
        for p in (1, 8, 20, 33):
            assert np.array_equal(rows.matmat(X[:, :p]), rows.matmat(X)[:, :p])
            assert np.array_equal(rows.rmatmat(Y[:, :p]), rows.rmatmat(Y)[:, :p])


def test_a_large_product_is_shared_among_threads_and_a_small_one_is_not(native, monkeypatch):
    asked = []
    pool = csr._pool
    monkeypatch.setattr(csr, "_pool", lambda workers: asked.append(workers) or pool(workers))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    rows, A = example(2000, 300)
    rows.matmat(block(300, 1, "float64"))
    rows.rmatmat(block(2000, 1, "float64"))
    assert asked == []
    assert_product(rows.matmat(block(300, 32, "float64")), A, block(300, 32, "float64"))
    assert_product(rows.rmatmat(block(2000, 32, "float64")), A.T, block(2000, 32, "float64"))
    assert set(asked) == {3}


@pytest.mark.parametrize("p", [1, 8, 16, 21])
def test_blocks_of_any_layout(kernels, p):
    rows, A = example()
    wide, tall = block(40, 3 * p + 5, "float64"), block(3 * 40, p, "float64")
    shifted = np.frombuffer(bytes(3) + wide[:, :p].tobytes(), "f8", offset=3).reshape(40, p)
    swapped = wide[:, :p].astype(">f8")
    views = [wide[:, 3 : 3 + p], wide[:, 2 : 2 + 2 * p : 2], tall[::3], tall[39::-1], wide[:, p - 1 :: -1]]
    for X in [*views, np.asfortranarray(wide[:, :p]), shifted, swapped, np.broadcast_to(wide[:, :1], (40, p))]:
        kept = X.copy()
        X.flags.writeable = False
        assert_product(rows.matmat(X), A, X)
        tall_one = np.concatenate([X, X[:20]])
        for Y in (tall_one, np.asfortranarray(tall_one), np.repeat(tall_one, 2, axis=1)[:, ::2], tall_one[::-1]):
            assert_product(rows.rmatmat(Y), A.T, Y)
        assert np.array_equal(X, kept)


def test_values_and_pointers_that_cannot_be_written(kernels):
    rows, A = example()
    for array in (rows.indptr, rows.indices, rows.values):
        array.flags.writeable = False
    assert_product(rows.matmat(block(40, 16, "float64")), A, block(40, 16, "float64"))
    assert_product(rows.rmatmat(block(60, 16, "float64")), A.T, block(60, 16, "float64"))


@pytest.mark.parametrize("p", [3, 16])
def test_a_nan_in_the_block_reaches_the_rows_that_use_it_and_no_others(kernels, p):
    rows, A = example()
    X = block(40, p, "float64")
    X[3, 1] = np.nan
    expected = np.zeros((60, p), bool)
    expected[:, 1] = A[:, 3] != 0
    assert np.array_equal(np.isnan(rows.matmat(X)), expected)


@pytest.mark.parametrize("shape", [(41, 3), (39, 3), (40,), (2, 40, 3)])
def test_a_block_of_another_shape_is_refused(kernels, shape):
    with pytest.raises(ValueError, match="takes 40 rows"):
        example()[0].matmat(np.zeros(shape))


@pytest.mark.parametrize("p", [8, 16, 24, 32, 48, 64])
@pytest.mark.parametrize(("values", "dtype"), [("float32", "float32"), ("float32", "float64"), ("float64", "float64")])
def test_levels_above_the_baseline_multiply_and_add_in_one_rounding(native, values, dtype, p):
    eps = np.finfo(dtype).eps
    v, d = (
        1 + 2.0**-12,
        1 + eps,
    )  # v d = (v + eps) + eps / 2**12, and the last term is lost where the product is rounded
    rows = CompressedRows((1, 2), np.array([0, 2], "i4"), np.array([0, 1], "i4"), np.array([-1, v], values))
    X = np.repeat(np.array([[v + eps], [d]], dtype), p, axis=1)
    fused = native != "level 1" or platform.machine() not in ("x86_64", "AMD64")
    assert np.all(rows.matmat(X) == (eps * 2.0**-12 if fused else 0))


def test_a_float32_matrix_is_measured_in_float64_without_a_copy(native):
    rows, A = example(2000, 300, values="float32", density=0.5)
    tracemalloc.start()
    try:
        products = rows.matmat(block(300, 8, "float64")), rows.rmatmat(block(2000, 8, "float64"))
        assert tracemalloc.get_traced_memory()[1] < rows.values.nbytes / 2
    finally:
        tracemalloc.stop()
    assert_product(products[0], A, block(300, 8, "float64"))
    assert_product(products[1], A.T, block(2000, 8, "float64"))


@pytest.mark.parametrize("p", [16, 64])
def test_accumulators_take_no_more_memory_than_the_values(native, p):
    rows, _ = example(3000, 41, density=0.9)
    assert len(rows._accumulated) == 16
    Y = block(3000, p, "float64")
    tracemalloc.start()
    try:
        result = rows.rmatmat(Y)
        assert tracemalloc.get_traced_memory()[1] < rows.values.nbytes + 3 * result.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("indices", ["int32", "int64"])
def test_the_form_of_rows(kernels, indices):
    def found(indptr, places, shape=(3, 4)):
        return form(shape, np.array(indptr, indices), np.array(places, indices))

    assert found([0, 2, 2, 4], [1, 3, 0, 1]) == "canonical"
    assert found([0, 0, 0, 0], []) == "canonical"
    assert found([0, 0, 0, 0], [7, -1]) == "canonical"  # beyond the last row: not read
    assert found([0], [], (0, 4)) == "canonical"
    assert found([0, 2, 2, 4], [1, 3, 1, 0]) == "unordered"
    assert found([0, 2, 2, 4], [3, 3, 0, 1]) == "unordered"
    for indptr, places in (
        ([0, 2, 2, 4], [1, 4, 0, 1]),
        ([0, 2, 2, 4], [-1, 3, 0, 1]),
        ([0, 2, 1, 4], [1, 3, 0, 1]),
        ([1, 2, 2, 4], [1, 3, 0, 1]),
        ([0, 2, 2, 5], [1, 3, 0, 1]),
        ([-1, 2, 2, 4], [1, 3, 0, 1]),
        ([0, 2, 4], [1, 3, 0, 1]),
    ):
        assert found(indptr, places) == "broken", (indptr, places)


@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "bool"])
def test_every_format_of_scipy(kernels, name, kind, dtype):
    A = np.round(scipy.sparse.random_array((14, 10), density=0.3, rng=0).toarray() * 9).astype(dtype)
    S = getattr(scipy.sparse, f"{name}_{kind}")(A)
    for x, dense in ((S, A), (S.T, A.T)):
        M = as_matrix(x)
        assert (M.shape, M.stored) == (dense.shape, np.count_nonzero(dense))
        assert_product(
            M.matmat(block(dense.shape[1], 5, "float64")), dense.astype(float), block(dense.shape[1], 5, "f8")
        )
        assert_product(M.rmatmat(block(dense.shape[0], 5, "f8")), dense.T.astype(float), block(dense.shape[0], 5, "f8"))
        assert M.largest() == np.abs(dense.astype(float)).max()
        assert M.squared_norm() == pytest.approx(np.sum(dense.astype(float) ** 2), rel=1e-12)
        assert np.array_equal(as_scipy(M).toarray(), dense)
        assert np.array_equal(as_scipy(M.scaled(-3)).toarray(), dense.astype(float) / 8)


@pytest.mark.parametrize("name", ["csr", "csc"])
def test_what_is_in_order_is_shared_and_what_is_not_stays_as_it_was(kernels, name):
    A = np.round(scipy.sparse.random_array((14, 10), density=0.5, rng=0).toarray() * 9)
    S = scipy.sparse.csr_array(A).asformat(name)
    M = as_matrix(S)
    assert all(np.shares_memory(getattr(as_scipy(M), part), getattr(S, part)) for part in ("data", "indices", "indptr"))
    assert as_scipy(M.scaled(2)).indices is as_scipy(M).indices or np.shares_memory(
        as_scipy(M.scaled(2)).indices, S.indices
    )

    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(S.indptr[:-1], S.indptr[1:], strict=True)])
    T = type(S)((S.data[order], S.indices[order], S.indptr), shape=S.shape)
    T.has_canonical_format = True  # a claim that is not so
    parts = [part.copy() for part in (T.data, T.indices, T.indptr)]
    assert np.array_equal(as_scipy(as_matrix(T)).toarray(), A)
    assert as_scipy(as_matrix(T)).has_canonical_format
    assert all(map(np.array_equal, parts, (T.data, T.indices, T.indptr)))


def test_indices_that_point_outside_are_refused(kernels):
    S = scipy.sparse.csr_array((np.ones(2), np.array([0, 1]), np.array([0, 1, 2])), shape=(2, 2))
    S.indices[1] = 5
    with pytest.raises(UsageError, match="outside"):
        as_matrix(S)
    S.indices, S.data = np.array([0, 1], "i4"), np.ones(1)
    with pytest.raises(UsageError, match="outside"):
        as_matrix(S)


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_place_that_is_not_finite_is_named_in_reading_order(kernels, name):
    A = np.eye(5, 4)
    A[1, 3], A[3, 0], A[1, 1] = np.nan, np.inf, 0
    with pytest.raises(NumericalError, match="row 1, column 3"):
        as_matrix(scipy.sparse.csr_array(A).asformat(name))


def test_threads_are_those_asked_for_or_the_processors(monkeypatch):
    for asked, expected in (("3", 3), ("2,4", 2), (" 5 ", 5)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert csr.threads() == expected
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    for asked in ("0", "-1", "many", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert csr.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert csr.threads() == 3


FORK = """
import os, numpy as np, scipy.sparse, warnings
from eckart._kernels import csr
warnings.simplefilter("ignore", DeprecationWarning)
csr.SMALL = 0
S = scipy.sparse.random_array((50, 40), density=0.5, rng=0, format="csr")
A, X = csr.CompressedRows((50, 40), S.indptr, S.indices, S.data), np.ones((40, 16))
before = A.matmat(X)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(A.matmat(X), before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_has_threads_of_its_own():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "0", done.stderr
