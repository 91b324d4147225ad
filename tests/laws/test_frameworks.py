"""Every kind of array keeps the laws: JAX and TensorFlow over a fixed list of shapes, since each new one compiles."""

import dataclasses

import jax
import jax.experimental.sparse
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
import torch
from svd_cases import SPECTRA, assert_below, basis, laws

from eckart import SVD, as_matrix, svd, svd_full
from eckart._arrays import space_of, to_numpy
from eckart._decomposed import ARRAYS
from eckart.errors import NumericalError, UsageError
from eckart.matrix import _borrowed, centred, sparse, torch_tensors, transposed, weighted

jax.config.update("jax_enable_x64", True)
torch.sparse.check_sparse_tensor_invariants.enable()

SHAPES = [(0, 3), (1, 1), (1, 5), (7, 4), (4, 7)]


def unordered(A):
    """Return A in torch's coordinates, unsorted, each entry in two parts."""
    rows, columns = (torch.tensor(index[::-1].copy()) for index in np.nonzero(A))
    half = torch.tensor(A)[rows, columns] / 2
    return torch.sparse_coo_tensor(torch.stack([rows, columns]).repeat(1, 2), half.repeat(2), A.shape)


def filled(A):
    """Return more places than A has entries: JAX fills up the rest."""
    return A.size + 2 if A.size else 0


DENSE = {
    "jax": jnp.asarray,
    "tensorflow": tf.constant,
    "tensorflow variable": tf.Variable,
}
SPARSE = {
    "torch csr": lambda A: torch.tensor(A).to_sparse_csr(),
    "torch csc": lambda A: torch.tensor(A).to_sparse_csc(),
    "torch coo": unordered,
    "tensorflow sparse": lambda A: tf.sparse.from_dense(A),
    "jax bcoo": lambda A: jax.experimental.sparse.BCOO.fromdense(jnp.asarray(A), nse=filled(A)),
    "jax bcsr": lambda A: jax.experimental.sparse.BCSR.fromdense(jnp.asarray(A), nse=filled(A)),
}
KINDS = DENSE | SPARSE
RESULT = {"jax": jax.Array, "tensorflow": tf.Tensor, "torch": torch.Tensor}
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def example(shape, seed=0, dtype=np.float64):
    A = np.random.default_rng(seed).standard_normal(shape)
    return (A * (A > -0.5)).astype(dtype)


def in_numpy(result):
    return dataclasses.replace(result, **{name: to_numpy(getattr(result, name)) for name in ARRAYS})


@kinds
@dtypes
def test_every_law_at_every_rank(kind, dtype):
    for shape in SHAPES:
        A = example(shape, dtype=dtype)
        for k in range(min(shape) + 1):
            result = svd(KINDS[kind](A), k)
            for array in (*result, result.residuals, result.reconstruct(), *result.truncate(k // 2)):
                assert isinstance(array, RESULT[kind.split()[0]])
                assert to_numpy(array).dtype == dtype
            laws(A.astype(np.float64), in_numpy(result), k, dtype)
            laws(A.astype(np.float64), in_numpy(svd(KINDS[kind](A)).truncate(k)), k, dtype)


@kinds
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_hard_spectra(kind, spectrum):
    rng = np.random.default_rng(0)
    A = (basis(rng, 12, 6) * SPECTRA[spectrum](6, rng)) @ basis(rng, 9, 6).T
    laws(A, in_numpy(svd(KINDS[kind](A), 4)), 4, np.float64)


@kinds
def test_one_answer_however_it_is_asked_for(kind, tmp_path):
    A = example((7, 4))
    result, reference = svd(KINDS[kind](A), error=0.3), svd(A, error=0.3)
    assert result.s.shape == reference.s.shape
    assert np.allclose(to_numpy(result.truncate(error=0.6).s), reference.truncate(error=0.6).s)
    assert np.allclose(to_numpy(svd(KINDS[kind](A), 2, center=True).s), svd(A, 2, center=True).s)
    assert np.allclose(to_numpy(svd(KINDS[kind](A), 2, start=result).s), svd(A, 2).s)
    full = svd_full(KINDS[kind](A))
    assert isinstance(full.U, RESULT[kind.split()[0]])
    assert np.allclose(to_numpy(full.U).T @ to_numpy(full.U), np.eye(7))
    result.save(tmp_path / "a.npz")
    assert np.array_equal(SVD.load(tmp_path / "a.npz").U, to_numpy(result.U))


@kinds
@pytest.mark.parametrize("view", [lambda A: A, transposed, centred, lambda A: weighted(A, columns=np.arange(1.0, 5))])
def test_the_laws_of_an_operand(kind, view):
    A = example((7, 4))
    operand, reference = view(as_matrix(KINDS[kind](A))), view(as_matrix(A))
    for matrix, unit in ((operand, 1.0), (operand.scaled(30), 2.0**30)):
        X, Y = (matrix.space.normal((size, 3), seed=1) for size in matrix.shape[::-1])
        assert_below(np.abs(to_numpy(matrix.matmat(X)) - unit * reference.matmat(X)), 1e-14 * unit)
        assert_below(np.abs(to_numpy(matrix.rmatmat(Y)) - unit * reference.rmatmat(Y)), 1e-14 * unit)
    assert operand.squared_norm() == pytest.approx(reference.squared_norm())


@pytest.mark.parametrize("kind", ["jax", "tensorflow", "jax bcoo", "tensorflow sparse", "torch csr", "torch coo"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_floats_keep_their_width(kind, name):
    dtype = np.float16 if name == "float16" else ml_dtypes.bfloat16
    A = example((7, 4)).astype(dtype)
    if kind.startswith("torch"):
        made = KINDS[kind](A.astype(np.float32)).to(getattr(torch, name))
    elif kind == "tensorflow sparse":  # from_dense has no half floats
        made = tf.sparse.from_dense(A.astype(np.float32))
        made = tf.SparseTensor(made.indices, tf.cast(made.values, name), made.dense_shape)
    else:
        made = KINDS[kind](A)
    result = svd(made, 3)
    assert {str(x.dtype).rpartition(".")[2].removeprefix("<dtype: '").removesuffix("'>") for x in result} == {name}
    rounded = dataclasses.replace(
        result, **{field: to_numpy(getattr(result, field)).astype(np.float64) for field in ARRAYS}
    )
    laws(A.astype(np.float64), rounded, 3, dtype)


@pytest.mark.parametrize("kind", ["jax", "tensorflow", "tensorflow sparse", "torch csr", "torch coo", "jax bcoo"])
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_integers_become_float64(kind, dtype):
    A = (np.arange(24).reshape(6, 4) % 7 * 20).astype(dtype)
    made = KINDS["torch csr"](A) if kind == "torch coo" else KINDS[kind](A)
    result = svd(made.to_sparse_coo() if kind == "torch coo" else made, 3)
    assert to_numpy(result.s).dtype == np.float64
    laws(A.astype(np.float64), in_numpy(result), 3, np.float64)


def test_jax_without_float64_does_not_lose_bits_in_silence():
    with jax.enable_x64(False):
        with pytest.raises(UsageError, match="jax_enable_x64"):
            svd(jnp.arange(12).reshape(3, 4))
        assert svd(jnp.ones((3, 4))).s.dtype == np.float32


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("shape", [(3, 7, 4), (2, 2, 4, 3), (0, 4, 3)])
def test_a_stack_is_its_matrices(kind, shape):
    A = example(shape)
    result, reference = in_numpy(svd(DENSE[kind](A), 2)), svd(A, 2)
    for x, y in zip((*result, result.residuals), (*reference, reference.residuals), strict=True):
        assert np.array_equal(x, y)


@kinds
def test_what_is_not_finite_is_an_error_that_names_its_place(kind):
    A = example((7, 4)) + 3
    A[3, 2] = np.nan
    with pytest.raises(NumericalError, match="row 3, column 2 is nan"):
        svd(KINDS[kind](A))


@pytest.mark.parametrize("kind", ["jax", "tensorflow"])
def test_an_array_on_the_cpu_is_not_copied(kind):
    x = DENSE[kind](np.ones((300, 200)))
    assert np.shares_memory(as_matrix(x).entries, np.asarray(x))


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_a_sparse_tensor_lends_its_arrays(layout, index, monkeypatch):
    lent = []
    monkeypatch.setattr(_borrowed, "sparse", lambda matrix, space: lent.append(matrix) or sparse.sparse(matrix, space))
    x = getattr(torch.tensor(example((7, 4))), f"to_sparse_{layout}")()
    arrays = [x.values()]
    if layout == "csr":
        x = torch.sparse_csr_tensor(x.crow_indices().to(index), x.col_indices().to(index), x.values(), x.shape)
        arrays += [x.crow_indices(), x.col_indices()]
    as_matrix(x)
    (matrix,) = lent
    assert np.shares_memory(matrix.data, x.values().numpy())
    if layout == "csr":
        assert np.shares_memory(matrix.indices, x.col_indices().numpy())
        assert np.shares_memory(matrix.indptr, x.crow_indices().numpy())


def test_products_that_torch_makes_keep_the_laws():
    """They serve GPUs; here they run on the CPU."""
    for shape in [(1, 5), (7, 4), (4, 7)]:
        for dtype in (np.float64, np.float32):
            A = example(shape, dtype=dtype)
            for kind in ("torch csr", "torch csc", "torch coo"):
                operand = torch_tensors.on_device(KINDS[kind](A))
                result = svd(operand, 1)
                assert isinstance(result.U, torch.Tensor)
                laws(A.astype(np.float64), in_numpy(result), 1, dtype)
                weights = torch.arange(1.0, shape[0] + 1).double(), torch.arange(1.0, shape[1] + 1).double()
                reference = as_matrix(scipy.sparse.csr_array(A)).squared_norm(*(w.numpy() for w in weights))
                assert operand.squared_norm(*weights) == pytest.approx(reference, rel=1e-12)
                assert operand.scaled(-30).largest() == np.abs(A).max() * 2.0**-30
    A[2, 3] = np.inf
    with pytest.raises(NumericalError, match="row 2, column 3 is inf"):
        torch_tensors.on_device(KINDS["torch csr"](A))


def malformed():
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 9]), torch.ones(2), (2, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(4).to_sparse_bsr(2), "layout torch.sparse_bsr"),
        (lambda: torch.zeros(2, 3, 4).to_sparse(), "two dimensions"),
        (lambda: torch.zeros(2, 3, 4).to_sparse(2), "two dimensions"),
        (lambda: torch.eye(3).to_sparse().requires_grad_(), "to_dense"),
        (lambda: torch.eye(3).to_sparse() * 1j, "complex"),
        (malformed, "outside the shape"),
        (lambda: tf.SparseTensor([[5, 0]], [1.0], (3, 3)), "outside its shape"),
        (lambda: tf.sparse.from_dense(np.ones((2, 3, 4))), "two dimensions"),
        (lambda: jax.experimental.sparse.BCOO.fromdense(jnp.ones((2, 3)), n_dense=1), "1 dense"),
        (lambda: tf.constant([1.0, 2.0]), r"A\[None, :\]"),
        (lambda: tf.constant([["a"]]), "not supported"),
        (lambda: jnp.ones((2, 2)) * 1j, "complex128"),
    ],
)
def test_what_is_no_matrix_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        svd(make())


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_arrays_are_never_made_dense(kind, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("made dense")

    made = KINDS[kind](example((7, 4)))
    for owner in (torch.Tensor, scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.coo_array):
        for method in ("to_dense", "toarray", "todense"):
            monkeypatch.setattr(owner, method, refuse, raising=False)
    monkeypatch.setattr(tf.sparse, "to_dense", refuse)
    monkeypatch.setattr(jax.experimental.sparse.BCOO, "todense", refuse)
    monkeypatch.setattr(jax.experimental.sparse.BCSR, "todense", refuse)
    assert svd(made, 2).converged
    assert space_of(svd(made, 2).s).name == "float64"
