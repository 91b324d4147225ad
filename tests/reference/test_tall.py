"""The tall-skinny SVD against LAPACK, on the spectra that Gram matrices find hard; which steps it takes; its memory."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from eckart import as_matrix, svd
from eckart._algorithms import tall
from eckart._algorithms._factors import Task
from eckart.matrix import Counted

DTYPES = [np.float64, np.float32]
SHAPES = [(700, 30), (80, 60), (40, 40), (50, 1), (1, 1)]
SPECTRA = {
    "equal": np.ones,
    "graded to 1e-4": lambda n: np.geomspace(1, 1e-4, n),
    "graded to 1e-7": lambda n: np.geomspace(1, 1e-7, n),
    "graded to 1e-10": lambda n: np.geomspace(1, 1e-10, n),
    "graded to 1e-14": lambda n: np.geomspace(1, 1e-14, n),
    "two clusters": lambda n: np.r_[1 + 1e-8 * np.arange(n - n // 2)[::-1], np.full(n // 2, 1e-9)],
    "rank half": lambda n: np.r_[np.ones(n - n // 2), np.zeros(n // 2)],
    "rank 1": lambda n: np.r_[1.0, np.zeros(n - 1)],
    "zero": np.zeros,
}


def with_values(s, m, seed=0):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, len(s))))[0] for size in (m, len(s)))
    return (U * s) @ V.T


def hard(name, m, n):
    rng = np.random.default_rng(1)
    if name in SPECTRA:
        return with_values(SPECTRA[name](n), m)
    A = rng.standard_normal((m, n))
    if name == "huge row":
        A[m // 2] *= 1e8
        return A / 1e8
    if name == "zero rows and columns":
        A[::3], A[:, ::2] = 0, 0
        return A
    return np.eye(m, n) * np.geomspace(1, 1e-10, n)  # diagonal: what a random mixture of rows would miss


def run(A, k, seed=0):
    """Return the factors in float64, the method, and how often A was read."""
    operand = Counted(as_matrix(A))
    found = tall.run(operand, Task(k, 1e-14, seed))
    assert found.U.dtype == found.s.dtype == found.Vt.dtype == A.dtype
    return *(np.asarray(x).astype(np.float64) for x in (found.U, found.s, found.Vt)), found.method, operand.passes


def assert_right(A, U, s, Vt, k):
    """Assert what LAPACK's own SVD keeps, with the constants that it needs."""
    eps, (m, n) = np.finfo(A.dtype).eps, A.shape
    A = A.astype(np.float64)
    exact, unit = np.linalg.svd(A, compute_uv=False), eps * math.sqrt(m * n)
    assert (U.shape, s.shape, Vt.shape) == ((m, k), (k,), (k, n))
    assert np.all(s >= 0)
    assert np.all(s[:-1] >= s[1:])
    assert np.abs(s - exact[:k]).max() <= 2 * unit * exact[0]
    assert np.abs(U.T @ U - np.eye(k)).max() <= 8 * unit
    assert np.abs(Vt @ Vt.T - np.eye(k)).max() <= 8 * unit
    for residual in (A @ Vt.T - U * s, A.T @ U - Vt.T * s):
        assert np.linalg.norm(residual, axis=0).max() <= 16 * unit * exact[0]
    assert np.linalg.norm(A - (U * s) @ Vt, 2) <= 16 * unit * exact[0] + (exact[k] if k < n else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*SPECTRA, "huge row", "zero rows and columns", "diagonal"])
def test_it_is_lapacks(name, shape, dtype):
    n, A = shape[1], hard(name, *shape).astype(dtype)
    for k in {n, (n + 2) // 3}:
        *factors, method, _ = run(A, k)
        assert method == "tall"
        assert_right(A, *factors, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["graded to 1e-4", "graded to 1e-10", "rank half", "zero"])
def test_torch_gives_what_numpy_gives(name, dtype):
    A = hard(name, 700, 30).astype(dtype)
    U, s, Vt, method, _ = run(torch.tensor(A), 30)
    assert method == "tall"
    assert_right(A, U, s, Vt, 30)
    assert np.abs(s - run(A, 30)[1]).max() <= 30 * np.finfo(dtype).eps


@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda A: np.repeat(A, 3, axis=1)[:, ::3], lambda A: A.T.copy().T]
)
def test_any_strides_are_read_in_place(layout):
    A = hard("graded to 1e-10", 700, 30)
    *factors, _, _ = run(layout(A), 30)
    assert_right(A, *factors, 30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [30, -30])
@pytest.mark.parametrize("name", ["graded to 1e-4", "zero"])
def test_scales_whose_squares_leave_float32(name, exponent, dtype):
    A = (hard(name, 300, 20) * 10.0**exponent).astype(dtype)
    result = svd(A, method="tall")
    assert result.method == "tall"
    assert result.converged
    unit = 10.0**exponent
    assert_right((A.astype(np.float64) / unit).astype(dtype), result.U, result.s / unit, result.Vt, 20)


def test_the_same_seed_gives_the_same_bits():
    A = hard("rank half", 700, 30)
    for first, second in zip(run(A, 30)[:3], run(A, 30)[:3], strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(run(A, 30)[0], run(A, 30, seed=1)[0])  # the columns that A does not reach


# Which steps are taken


@pytest.fixture
def products(monkeypatch):
    """Count products: one for each step."""
    calls, product = [], tall._product
    monkeypatch.setattr(tall, "_product", lambda *arguments: calls.append(0) or product(*arguments))
    return calls


@pytest.mark.parametrize(
    ("dtype", "name", "rows", "steps", "passes"),
    [
        (np.float32, "equal", 700, 1, 2),
        (np.float32, "graded to 1e-4", 700, 1, 2),
        (np.float32, "graded to 1e-7", 700, 2, 2),
        (np.float32, "rank half", 700, 2, 3),  # AᵀA and, since it was blurred, a sketch
        (np.float64, "equal", 700, 1, 2),
        (np.float64, "graded to 1e-4", 700, 2, 2),
        (np.float64, "graded to 1e-10", 700, 2, 2),  # a sketch stands for the first step
        (np.float64, "graded to 1e-10", 200, 3, 2),  # too few rows for one
        (np.float64, "graded to 1e-15", 700, 2, 2),
        (np.float64, "rank half", 700, 2, 2),
        (np.float64, "zero", 700, 2, 3),
    ],
)
def test_as_few_steps_as_the_condition_allows(products, dtype, name, rows, steps, passes):
    *_, method, read = run(hard(name, rows, 30).astype(dtype), 30)
    assert (method, len(products), read) == ("tall", steps, passes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["graded to 1e-10", "rank half"])
def test_a_sketch_that_keeps_no_lengths_costs_steps_and_no_accuracy(products, monkeypatch, name, dtype):
    monkeypatch.setattr(tall, "_sketched", lambda A, panels, rng: (np.ones(30), np.eye(30)))
    A = hard(name, 700, 30).astype(dtype)
    *factors, method, _ = run(A, 30)
    assert (method, len(products) > 2) == ("tall", True)
    assert_right(A, *factors, 30)


def test_one_step_that_loses_orthogonality_is_noticed_and_more_are_taken(products, monkeypatch):
    A = hard("graded to 1e-7", 700, 30).astype(np.float32)
    monkeypatch.setattr(tall, "EPS", tall.EPS / 1e6)  # as if float64 were more precise than it is
    assert tall._factors(as_matrix(A), Task(30, 1e-6, 0), 1e30) is None
    products.clear()
    *factors, method, _ = run(A, 30)
    assert (method, len(products)) == ("tall", 3)
    assert_right(A, *factors, 30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lapack_takes_over_where_the_steps_do_not_get_there(monkeypatch, dtype):
    A = hard("graded to 1e-10", 700, 30).astype(dtype)
    monkeypatch.setattr(tall, "STEPS", 1)
    *factors, method, _ = run(A, 30)
    assert method == "lapack"
    assert_right(A, *factors, 30)
    monkeypatch.undo()
    monkeypatch.setattr(tall, "DEFECT", -math.inf)
    assert run(A, 30)[3] == "lapack"


# What it costs


@pytest.mark.parametrize("name", ["graded to 1e-4", "graded to 1e-10"])
def test_float32_is_never_copied_whole_into_float64(name):
    A = np.ascontiguousarray(hard(name, 200000, 32).astype(np.float32))
    operand = as_matrix(A)
    tall.run(operand, Task(32, 1e-6, 0))
    tracemalloc.start()
    try:
        found = tall.run(operand, Task(32, 1e-6, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    panels = 4 * 8 * 2**19  # one of at most 2**19 entries and its product exist at once; twice that
    assert found.method == "tall"
    assert peak <= A.nbytes + panels
    assert 2 * A.nbytes > panels  # a copy in float64 would be seen
