"""The laws of svd over method x matrix kind x type x shape, at every rank."""

import re

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from svd_cases import (
    BEST,
    DENSE,
    KINDS,
    METHODS,
    ORTHONORMAL,
    PRODUCTS,
    SPARSE,
    VALUES,
    assert_below,
    basis,
    laws,
    matrices,
    numpy64,
    ranks,
)

from eckart import EckartError, as_matrix, svd, svd_full
from eckart.errors import NumericalError, RankError, UsageError
from eckart.matrix import centred, transposed

DTYPES = [np.float64, np.float32]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
kinds = pytest.mark.parametrize("kind", KINDS)


@dtypes
@pytest.mark.parametrize(("kind", "method"), METHODS)
@given(A=matrices())
def test_every_law_at_every_rank(A, kind, method, dtype):
    A = A.astype(dtype)
    for k in ranks(A, method):
        laws(A.astype(np.float64), svd(KINDS[kind](A), k, method=method), k, dtype)


@dtypes
@kinds
@given(A=matrices(), shift=st.sampled_from([0.0, 1.0, 1e3]))
def test_centred(A, shift, kind, dtype):
    A = (A + shift).astype(dtype)
    exact = A.astype(np.float64) - (A.astype(np.float64).mean(axis=0) if len(A) else 0)
    result = svd(KINDS[kind](A), center=True)
    U, s, Vt = (numpy64(x) for x in result)
    # The products carry the rounding of A, not only that of the smaller matrix A - 1 meanᵀ.
    norm = np.linalg.norm(A.astype(np.float64), 2) if A.size else 0.0
    unit = np.finfo(dtype).eps * np.sqrt(A.size)
    reference = np.linalg.svd(exact, compute_uv=False) if A.size else np.zeros(0)
    assert_below(np.abs(s - reference), VALUES * unit * norm)
    assert_below(np.abs(U.T @ U - np.eye(len(s))), ORTHONORMAL * unit)
    assert_below(np.abs(exact - (U * s) @ Vt), BEST * unit * norm)


@given(A=matrices(shapes=[(7, 4), (4, 7), (9, 9), (24, 12)]), seed=st.integers(0, 99), scale=st.floats(-1e3, 1e3))
def test_values_under_rotation_scaling_transposition_and_permutation(A, seed, scale):
    rng = np.random.default_rng(seed)
    s = svd(A).s
    bound = VALUES * np.finfo(float).eps * np.sqrt(A.size) * s[0]
    Q = basis(rng, len(A), len(A))
    assert_below(np.abs(svd(Q @ A).s - s), 3 * bound)  # Q and the product round too
    assert_below(np.abs(svd(scale * A).s - abs(scale) * s), bound * abs(scale))
    assert_below(np.abs(svd(A.T).s - s), bound)
    assert_below(np.abs(svd(A[rng.permutation(len(A))]).s - s), bound)
    assert np.array_equal(svd(A * 2.0**40).s, s * 2.0**40) or s[0] < 2.0**-16


VIEWS = {"itself": lambda A: A, "transposed": transposed, "centred": centred, "both": lambda A: transposed(centred(A))}


@kinds
@pytest.mark.parametrize("view", VIEWS)
@given(A=matrices(shapes=[(1, 6), (7, 4), (4, 7)]), exponent=st.integers(-40, 40))
def test_the_laws_of_an_operand(A, kind, view, exponent):
    operand = VIEWS[view](as_matrix(KINDS[kind](A)))
    exact = A - A.mean(axis=0) if view in ("centred", "both") else A
    exact = exact.T if view in ("transposed", "both") else exact
    assert operand.shape == exact.shape
    for matrix, unit in ((operand, 1.0), (operand.scaled(exponent), 2.0**exponent)):
        X, Y = (matrix.space.normal((size, 3), seed=1) for size in exact.shape[::-1])
        AX, AtY, X, Y = (numpy64(x) for x in (matrix.matmat(X), matrix.rmatmat(Y), X, Y))
        rounding = 20 * np.finfo(float).eps * np.linalg.norm(A) * unit * np.sqrt(A.size)
        assert_below(np.abs(AX - unit * exact @ X), rounding)
        assert_below(np.abs(AtY - unit * exact.T @ Y), rounding)
        assert_below(np.abs(Y.T @ AX - AtY.T @ X), 10 * rounding)  # ⟨Y, A X⟩ = ⟨Aᵀ Y, X⟩
        norm = matrix.squared_norm()
        assert norm is None or norm >= np.linalg.norm(exact) ** 2 * unit**2 * (1 - 1e-12)


@dtypes
@given(A=matrices(shapes=[(7, 4), (4, 7), (9, 9)]))
def test_one_answer_for_every_kind(A, dtype):
    A = A.astype(dtype)
    reference = svd(A)
    bound = 2 * VALUES * np.finfo(dtype).eps * np.sqrt(A.size) * max(float(reference.s[0]), 1e-300)
    for make in KINDS.values():
        result = svd(make(A))
        assert_below(np.abs(numpy64(result.s) - reference.s), bound)
        assert_below(np.abs(numpy64(result.reconstruct()) - reference.reconstruct()), BEST * bound)


@kinds
@dtypes
def test_results_have_the_type_of_the_input(kind, dtype):
    A = np.random.default_rng(0).standard_normal((6, 4)).astype(dtype)
    expected = torch.Tensor if kind.startswith("torch") else np.ndarray
    for given_as in (KINDS[kind](A), KINDS[kind](np.ascontiguousarray(A.T))):
        result = svd(given_as, 2)
        for array in (*result, result.residuals, result.reconstruct(), *result.truncate(1), *svd_full(given_as)):
            assert type(array) is expected
            assert str(array.dtype).endswith(np.dtype(dtype).name)
            assert array.is_contiguous() if expected is torch.Tensor else array.flags.c_contiguous


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@given(A=matrices())
def test_half_floats_keep_their_width_and_the_laws(A, name):
    dtype = np.float16 if name == "float16" else ml_dtypes.bfloat16
    A = A.astype(dtype) if np.abs(A).max(initial=0) < 1e4 else np.zeros_like(A, dtype)
    tensor = torch.tensor(A.astype(np.float32)).to(getattr(torch, name))
    for k in ranks(A, "auto"):
        for given_as, expected in ((A, A.dtype), (tensor, tensor.dtype)):
            result = svd(given_as, k)
            assert result.U.dtype == result.s.dtype == result.Vt.dtype == expected
            laws(A.astype(np.float64), result, k, dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_])
@pytest.mark.parametrize("kind", ["numpy", "csr", "csc", "coo", "torch"])
def test_integers_become_float64(dtype, kind):
    A = (np.arange(24).reshape(6, 4) % 7 * 30 % 127).astype(dtype)
    make = {"csr": scipy.sparse.csr_array, "csc": scipy.sparse.csc_matrix, "coo": scipy.sparse.coo_array}
    result = svd(make.get(kind, KINDS["torch" if kind == "torch" else "numpy"])(A), 3)
    assert str(result.s.dtype).endswith("float64")
    laws(A.astype(np.float64), result, 3, np.float64)


def test_duplicates_of_small_integers_are_added_without_overflow():
    places = ([0, 0, 1], [0, 0, 1])
    assert svd(scipy.sparse.coo_array((np.array([100, 100, 1], np.int8), places), shape=(2, 2))).s[0] == 200


@dtypes
@kinds
@pytest.mark.parametrize("exponent", [30, -30])
def test_extreme_scales(kind, dtype, exponent):
    A = (10.0**exponent * np.random.default_rng(0).standard_normal((9, 6))).astype(dtype)
    for k in (0, 2, 6):
        laws(A.astype(np.float64), svd(KINDS[kind](A), k), k, dtype)


@pytest.mark.parametrize("kind", DENSE | SPARSE)
@pytest.mark.parametrize("exponent", [300, -300])
def test_scales_whose_squares_leave_float64(kind, exponent):
    A = np.random.default_rng(0).standard_normal((9, 6))
    result = svd(KINDS[kind](A * 10.0**exponent), 6)
    assert_below(np.abs(numpy64(result.s) / 10.0**exponent - svd(A).s), 1e-14)
    assert result.error.frobenius < 1e-12 * 10.0**exponent


def test_a_value_outside_the_range_of_the_type_is_an_error():
    with pytest.raises(NumericalError, match="range"):
        svd(np.full((40, 40), 6e4, np.float16))


@kinds
@given(
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    shape=st.sampled_from([(1, 1), (1, 6), (6, 1), (7, 4), (4, 7)]),
    data=st.data(),
)
def test_what_is_not_finite_is_an_error_that_names_its_place(kind, value, shape, data):
    A = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    i, j = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    A[i, j] = value
    # 0 times infinity is NaN in a caller's own product, and so its sign and kind are not seen.
    shown = r"\S+" if kind in ("operator", "own class") else re.escape(str(value))
    with pytest.raises(NumericalError, match=f"row {i}, column {j} is {shown}"):
        svd(KINDS[kind](A))


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_transposed_product_that_is_not_finite_names_its_place_too(kind):
    A = np.ones((5, 4))
    A[3, 2] = np.inf
    with pytest.raises(NumericalError, match="row 3, column 2"):
        as_matrix(KINDS[kind](A)).rmatmat(np.ones((5, 1)))
    large = np.full((5, 4), 1e308)
    with pytest.raises(NumericalError, match="leaves the range"):
        as_matrix(KINDS[kind](large)).matmat(np.ones((4, 1)))


@pytest.mark.parametrize("kind", DENSE | SPARSE)
def test_the_first_of_several_places_is_named(kind):
    A = np.ones((5, 4))
    A[3, 0], A[1, 3], A[1, 2] = np.nan, np.inf, np.nan
    with pytest.raises(NumericalError, match="row 1, column 2 is nan"):
        svd(KINDS[kind](A))


def test_the_matrix_of_a_stack_is_named():
    A = np.ones((2, 3, 4, 5))
    A[1, 2, 3, 4] = np.nan
    with pytest.raises(NumericalError, match=r"matrix \(1, 2\) of the stack .* row 3, column 4"):
        svd(A)


@pytest.mark.parametrize(("kind", "method"), METHODS)
@given(A=matrices(), seed=st.integers(0, 3))
def test_the_same_seed_gives_the_same_bits(A, kind, method, seed):
    for k in list(ranks(A, method))[:3]:
        first, second = (svd(KINDS[kind](A), k, method=method, seed=seed) for _ in range(2))
        for x, y in zip((*first, first.residuals), (*second, second.residuals), strict=True):
            assert np.array_equal(numpy64(x), numpy64(y))
        assert (first.error.spectral, first.passes) == (second.error.spectral, second.passes)


@kinds
def test_the_input_is_never_modified(kind):
    A = np.random.default_rng(0).standard_normal((7, 4)) * 1e-30
    given_as = KINDS[kind](A.copy())
    data = {name: getattr(given_as, name).copy() for name in ("data", "indices") if kind in ("csr", "csc")}
    for center in (False, True):
        svd(given_as, 2, center=center)
    eye = torch.eye(4).to(given_as) if kind.startswith("torch") else np.eye(4)
    now = as_matrix(given_as).matmat(eye)
    assert np.array_equal(numpy64(now), A)
    for name, before in data.items():
        assert np.array_equal(getattr(given_as, name), before)


@given(A=matrices(), error=st.floats(0, 1), kind=st.sampled_from(["numpy", "torch", "csr", "operator"]))
def test_error_gives_the_smallest_rank(A, error, kind):
    k = len(svd(KINDS[kind](A), error=error).s)
    exact = np.linalg.svd(A, compute_uv=False) if A.size else np.zeros(0)
    tails = np.sqrt(np.append(np.cumsum(exact[::-1] ** 2)[::-1], 0))
    rounding = VALUES * np.finfo(float).eps * np.sqrt(A.size) * tails[0] * np.sqrt(len(exact) + 1)
    assert tails[k] <= error * tails[0] + rounding
    assert k == 0 or tails[k - 1] >= error * tails[0] - rounding


@given(A=matrices(), data=st.data())
def test_truncation_keeps_its_certificate(A, data):
    whole = svd(A)
    k = data.draw(st.integers(0, len(whole.s)))
    laws(A, whole.truncate(k), k, np.float64)
    twice = svd(A, max(k, len(whole.s) // 2)).truncate(k)
    difference = A - twice.reconstruct()
    assert np.linalg.norm(difference) <= twice.error.frobenius * (1 + 1e-12)
    assert (np.linalg.norm(difference, 2) if A.size else 0) <= twice.error.spectral * (1 + 1e-12)


@pytest.mark.parametrize("exponent", [300, -300])
def test_truncation_of_extreme_scales(exponent):
    A = np.random.default_rng(0).standard_normal((2, 9, 6))
    whole, scaled = svd(A), svd(A * 10.0**exponent)
    for part, same in (
        (whole.truncate(2), scaled.truncate(2)),
        (whole.truncate(error=0.5), scaled.truncate(error=0.5)),
    ):
        assert part.s.shape == same.s.shape
        assert np.allclose(same.error.frobenius / 10.0**exponent, part.error.frobenius, rtol=1e-12)


@given(A=matrices(), error=st.floats(1e-3, 1))
def test_truncation_by_error_agrees_with_svd_by_error(A, error):
    assert abs(len(svd(A).truncate(error=error).s) - len(svd(A, error=error).s)) <= (0 if A.any() else 1)


@given(A=matrices())
def test_full_bases_are_square_and_orthogonal(A):
    (m, n), full, thin = A.shape, svd_full(A), svd(A)
    assert (full.U.shape, full.Vt.shape) == ((m, m), (n, n))
    for Q in (full.U, full.Vt):
        assert_below(np.abs(Q.T @ Q - np.eye(len(Q))), ORTHONORMAL * np.finfo(float).eps * max(m, n))
    assert np.array_equal(full.s, thin.s)
    assert np.array_equal(full.reconstruct(), thin.reconstruct())


@given(
    outer=st.sampled_from([(), (0,), (3,), (2, 2), (2, 0)]),
    shape=st.sampled_from([(4, 3), (3, 4), (0, 3), (3, 0)]),
    framework=st.sampled_from(["numpy", "torch"]),
)
def test_a_stack_is_its_matrices(outer, shape, framework):
    A = np.random.default_rng(0).standard_normal((*outer, *shape))
    result = svd(KINDS[framework](A))
    assert tuple(result.U.shape) == (*outer, shape[0], min(shape))
    assert tuple(result.Vt.shape) == (*outer, min(shape), shape[1])
    assert np.shape(result.error.spectral) == outer
    for index in np.ndindex(outer):
        one = svd(KINDS[framework](A[index]))
        for many, alone in zip((*result, result.residuals), (*one, one.residuals), strict=True):
            assert np.array_equal(numpy64(many[index]), numpy64(alone))
        assert one.error.spectral == np.asarray(result.error.spectral)[index]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: svd(np.ones((60, 3000)), 80), RankError, "k = 80 .* 60 x 3000 matrix, which has at most 60; pass"),
        (lambda: svd(scipy.sparse.csr_array((60, 30)), -1), RankError, "k = -1 .* 60 x 30"),
        (lambda: svd(np.ones((3, 60)), 4), RankError, "3 x 60"),
        (lambda: svd(np.ones((3, 3)), 2.0), RankError, "whole number"),
        (lambda: svd(np.ones((3, 3)), True), RankError, "whole number"),
        (lambda: svd(np.ones((3, 3)) * 1j), UsageError, "complex128"),
        (lambda: svd(torch.ones(3, 3) * 1j), UsageError, "complex64"),
        (lambda: svd(scipy.sparse.eye_array(3) * 1j), UsageError, "complex128"),
        (lambda: svd(np.ones((3, 3), np.longdouble)), UsageError, "not supported"),
        (lambda: svd(np.ones((3, 3), object)), UsageError, "object"),
        (lambda: svd(np.ones(3)), UsageError, r"A\[None, :\]"),
        (lambda: svd([[1.0], [2.0, 3.0]]), UsageError, "one length"),
        (lambda: svd("A"), UsageError, "builtins.str"),
        (lambda: svd(np.ma.masked_less(np.eye(3), 1)), UsageError, "masked"),
        (lambda: as_matrix(np.ones((2, 3, 3))), UsageError, "stack"),
        (lambda: svd(np.eye(3), method="qr"), UsageError, "auto, lapack, tall, lanczos, golub-kahan, gram, sketch"),
        (lambda: svd(np.eye(3), method="gram"), UsageError, "known by its products"),
        (lambda: svd(scipy.sparse.eye_array(3), method="lapack"), UsageError, "in memory"),
        (lambda: svd(scipy.sparse.eye_array(3), 3, method="lanczos"), UsageError, "k < min"),
        (lambda: svd(scipy.sparse.eye_array(3), 0, method="golub-kahan"), UsageError, "1 <= k"),
        (lambda: svd(np.eye(3), 1, error=0.1), UsageError, "both"),
        (lambda: svd(np.eye(3), error=1.5), UsageError, "0 to 1"),
        (lambda: svd(np.eye(3), error=float("nan")), UsageError, "0 to 1"),
        (lambda: svd(np.eye(3), tol=-1), UsageError, "tol"),
        (lambda: svd(np.eye(3), seed=-1), UsageError, "seed"),
        (lambda: svd(np.eye(3), center="columns"), UsageError, "center"),
        (lambda: svd(np.eye(3)).truncate(4), RankError, "3 triplets"),
        (lambda: svd(np.eye(3)).truncate(), UsageError, "k or error"),
        (lambda: svd(np.eye(3), 1).truncate(error=0.1), UsageError, "more singular values"),
    ],
)
def test_what_cannot_be_done_is_said(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, EckartError)
