"""Products of arrays in memory, formed some rows at a time in the wider type."""

import itertools

import numpy as np
import pytest
import torch
from svd_cases import assert_below, numpy64

from eckart import as_matrix
from eckart.matrix import centred, dense, transposed

FRAMEWORKS = {"numpy": lambda A: A, "torch": lambda A: torch.tensor(A)}
SHAPES = [(1, 6), (6, 1), (7, 4), (4, 7), (50, 3), (0, 3), (3, 0)]
TYPES = list(itertools.product([np.float32, np.float64], repeat=2))


@pytest.fixture(params=[1, 10, dense.CONVERTED], ids="{} entries at a time".format)
def _panels(request, monkeypatch):
    monkeypatch.setattr(dense, "CONVERTED", request.param)
    monkeypatch.setattr(dense, "LOOKED_AT", request.param)


@pytest.mark.usefixtures("_panels")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize(("of_matrix", "of_block"), TYPES)
def test_a_product_is_as_exact_as_the_wider_type(of_matrix, of_block, shift, framework):
    rng = np.random.default_rng(0)
    for (m, n), center, flip in itertools.product(SHAPES, [False, True], [False, True]):
        A = (rng.standard_normal((m, n)) + shift).astype(of_matrix)
        matrix, exact = as_matrix(FRAMEWORKS[framework](A)), A.astype(np.float64)
        if center:
            matrix, exact = centred(matrix), exact - (exact.mean(axis=0) if m else 0)
        if flip:
            matrix, exact = transposed(matrix), exact.T
        X, Y = (rng.standard_normal((size, 3)).astype(of_block) for size in exact.shape[::-1])
        AX, AtY = matrix.matmat(FRAMEWORKS[framework](X)), matrix.rmatmat(FRAMEWORKS[framework](Y))
        wider = np.promote_types(of_matrix, of_block)
        # a float64 mean has an error of its own, m roundings of the shift
        unit = 8 * (np.finfo(wider).eps * np.abs(exact).max(initial=0) + m * 2.0**-53 * shift) * np.sqrt(A.size)
        for product, right, block in ((AX, exact @ X, X), (AtY, exact.T @ Y, Y)):
            assert str(product.dtype).endswith(np.dtype(wider).name)
            assert_below(np.abs(numpy64(product) - right), unit * np.abs(block).max(initial=0))
        assert matrix.squared_norm() == pytest.approx(np.linalg.norm(exact) ** 2, rel=1e-6)
        rows = list(matrix.panels())
        assert_below(np.abs(np.concatenate([numpy64(block) for _, block in rows]) - exact) if rows else exact, unit)
        assert [i for place, _ in rows for i in range(*place.indices(exact.shape[0]))] == list(range(exact.shape[0]))
        assert_below(
            np.abs(numpy64(matrix.entries) - exact), np.finfo(of_matrix).eps * np.abs(exact).max(initial=0) + unit
        )


@pytest.mark.usefixtures("_panels")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_norm_is_an_upper_bound_and_the_largest_entry_is_right(framework):
    rng = np.random.default_rng(0)
    for _ in range(50):
        A = rng.standard_normal((40, 30)).astype(np.float32) * 10.0 ** rng.integers(-5, 5)
        matrix = as_matrix(FRAMEWORKS[framework](A))
        exact = sum(int(x) ** 2 for x in np.ldexp(A.astype(np.float64), 60).ravel())  # in whole numbers
        assert exact <= matrix.squared_norm() * 4.0**60 <= exact * (1 + 1e-13)
        assert matrix.largest() == np.abs(A).max()


def test_a_float64_product_of_a_float32_matrix_is_not_rounded_to_float32():
    A = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    X = np.random.default_rng(1).standard_normal((20, 2))
    assert np.abs(as_matrix(A).matmat(X) - A.astype(np.float64) @ X).max() < 1e-13
