"""svd against NumPy, SciPy and torch, on matrices larger than those of the laws."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator, svds

import eckart
from eckart import SVD, as_matrix, svd, svd_full
from eckart._algorithms import _accuracy
from eckart._algorithms._factors import restricted
from eckart._arrays import to_numpy
from eckart.errors import InputError, OutputError

EPS = np.finfo(np.float64).eps


def random_sparse(m, n, density=0.02, dtype=np.float64, seed=0):
    return scipy.sparse.random_array((m, n), density=density, rng=seed, dtype=dtype, format="csr")


def with_values(s, m, n, seed=0):
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, len(s))))[0] for size in (m, n))
    return (U * s) @ V.T


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (5, 4, 7, 3)])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_values_and_vectors_are_lapacks(shape, framework):
    A = np.random.default_rng(0).standard_normal(shape)
    A, linalg = (A, np.linalg) if framework == "numpy" else (torch.tensor(A), torch.linalg)
    U, s, Vt = map(to_numpy, svd(A))
    tall = A if shape[-2] >= shape[-1] else A.mT
    left, values, right = map(to_numpy, linalg.svd(tall, full_matrices=False))
    if tall is not A:
        left, right = right.mT, left.mT
    signs = np.sign((Vt * right).sum(axis=-1))
    assert np.array_equal(s, values)
    assert np.array_equal(U, left * signs[..., None, :])
    assert np.array_equal(Vt, right * signs[..., :, None])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(900, 400), (400, 900)])
@pytest.mark.parametrize("method", ["auto", "lanczos", "golub-kahan", "gram"])
def test_sparse_values_are_those_of_scipy_and_of_the_dense_matrix(shape, dtype, method):
    A = random_sparse(*shape, dtype=dtype)
    s = svd(A, 7, method=method).s
    unit = np.finfo(dtype).eps * np.sqrt(np.prod(shape)) * s[0]
    dense = np.linalg.svd(A.toarray().astype(np.float64), compute_uv=False)[:7]
    assert np.abs(s - dense).max() <= 0.1 * unit
    peer = svds(A.astype(np.float64), 7, return_singular_vectors=False, rng=0)
    assert np.abs(s - np.sort(peer)[::-1]).max() <= 0.1 * unit


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_centred_sparse_values_are_those_of_the_centred_array(dtype):
    A = random_sparse(500, 200, dtype=dtype)
    A.data += 100  # the mean is most of the matrix
    dense = A.toarray().astype(np.float64)
    for given_as in (A, aslinearoperator(A), A.toarray(), torch.tensor(A.toarray())):
        s = to_numpy(svd(given_as, 5, center=True).s)
        exact = np.linalg.svd(dense - dense.mean(axis=0), compute_uv=False)[:5]
        assert np.abs(s - exact).max() <= np.finfo(dtype).eps * np.sqrt(A.shape[0] * A.shape[1]) * exact[0]


def test_centring_is_what_numpy_calls_the_mean():
    A = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 8.0]])
    exact = A - A.mean(axis=0)
    assert np.abs(svd(A, center=True).reconstruct() - exact).max() < 10 * EPS
    # float32 numbers far from zero: their mean is taken in float64
    far = (1e6 + np.random.default_rng(0).integers(0, 3, (5000, 3))).astype(np.float32)
    reference = np.linalg.svd(far.astype(np.float64) - far.astype(np.float64).mean(axis=0), compute_uv=False)
    assert np.abs(svd(far, center=True).s - reference).max() < 1e-5 * reference[0]


@pytest.mark.parametrize(
    "s",
    [
        np.ones(40),
        np.r_[np.full(30, 2.0), np.linspace(1, 0.5, 30)],  # more copies than are asked for
        np.r_[1 + 1e-8 * np.arange(8)[::-1], np.geomspace(0.5, 1e-3, 40)],
        np.r_[np.ones(5), np.full(40, 1 - 1e-9)],
        np.geomspace(1, 1e-6, 60),
        np.geomspace(1, 1e-12, 60),
        np.r_[3.0, 2.0, 1.0],
    ],
    ids=["equal", "repeated", "cluster", "gap at k", "graded 1e-6", "graded 1e-12", "rank 3"],
)
@pytest.mark.parametrize("method", ["lanczos", "golub-kahan", "gram", "auto"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_hard_spectra_known_by_products_alone(s, method, dtype):
    A = with_values(s, 150, 100).astype(dtype)
    for k in (1, 5, 20):
        result = svd(aslinearoperator(A), k, method=method)
        exact = np.linalg.svd(A.astype(np.float64), compute_uv=False)[:k]
        unit = np.finfo(dtype).eps * np.sqrt(A.size) * exact[0]
        assert np.abs(result.s - exact).max() <= unit
        assert np.abs(result.U.T @ result.U - np.eye(k)).max() <= unit
        assert np.abs(result.Vt @ result.Vt.T - np.eye(k)).max() <= unit
        assert result.residuals.max() <= unit
        assert result.converged


def test_a_coarse_tolerance_is_met_and_said():
    A = random_sparse(500, 300)
    coarse, fine = svd(A, 10, tol=0.05, method="lanczos"), svd(A, 10, method="lanczos")
    assert coarse.converged
    assert coarse.residuals.max() <= 0.05 * coarse.s[0]
    assert coarse.passes < fine.passes
    assert not svd(A, 10, tol=1e-20, method="lanczos").converged


@pytest.mark.parametrize("method", ["lanczos", "golub-kahan", "gram"])
def test_small_values_below_the_rounding_of_the_gram_matrix_are_not_lost(method):
    """A null direction whose square is rounded to 1e-17 must not take the place of 1e-9, whose square is 1e-18."""
    for seed in range(10):
        A = np.zeros((12, 10))
        A[:4, :3] = with_values(np.array([1.0, 0.9]), 4, 3, seed)
        A[6, 6] = 1e-9
        s = svd(scipy.sparse.csr_array(A), 3, method=method).s
        assert np.abs(s - [1, 0.9, 1e-9]).max() < 100 * EPS


def test_a_basis_need_not_be_orthonormal():
    A = with_values(np.array([3.0, 2.0, 1.0]), 30, 20)
    rng = np.random.default_rng(1)
    basis = np.linalg.svd(A)[2][:3].T @ rng.standard_normal((3, 3))
    U, s, Vt = (getattr(restricted(as_matrix(A), basis, 3, ""), name) for name in ("U", "s", "Vt"))
    assert np.abs(s - [3, 2, 1]).max() < 1000 * EPS
    assert np.abs(U.T @ U - np.eye(3)).max() < 100 * EPS
    assert np.abs(Vt @ Vt.T - np.eye(3)).max() < 100 * EPS


def test_the_zero_matrix_of_any_size():
    result = svd(scipy.sparse.csr_array((40000, 30000), dtype=np.float32), 4)
    assert not result.s.any()
    assert np.abs(result.U.T @ result.U - np.eye(4)).max() < 1e-6
    assert result.error.frobenius < 1e-30


# The certificate


def test_the_certificate_is_sharp_where_it_says_so():
    A = np.random.default_rng(0).standard_normal((150, 100))
    for given_as in (A, scipy.sparse.csr_array(A), aslinearoperator(A), torch.tensor(A)):
        result = svd(given_as, 10)
        difference = A - to_numpy(result.reconstruct())
        for bound, order in ((result.error.spectral, 2), (result.error.frobenius, "fro")):
            true = np.linalg.norm(difference, order)
            assert true * (1 - 1e-13) <= bound <= true * (1 + 1e-10)


@pytest.fixture
def by_products(monkeypatch):
    """Let the certificate do without the entries, as it does for large matrices."""
    for name in ("FREE_ENTRIES", "FREE_FLOPS", "MOST_ENTRIES"):
        monkeypatch.setattr(_accuracy, name, 0)


def difference_norms(A, result, center=False):
    dense = A.astype(np.float64)
    dense = dense - dense.mean(axis=0) if center else dense
    difference = dense - result.U.astype(np.float64) * result.s.astype(np.float64) @ result.Vt
    return np.linalg.norm(difference, 2), np.linalg.norm(difference)


@pytest.mark.usefixtures("by_products")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("known_by", ["array", "sparse", "operator"])
def test_the_certificate_from_products(dtype, center, known_by):
    dense = random_sparse(400, 300, dtype=dtype).toarray()
    make = {"array": np.asarray, "sparse": scipy.sparse.csr_array, "operator": aslinearoperator}[known_by]
    result = svd(make(dense), 5, center=center)
    spectral, frobenius = difference_norms(dense, result, center)
    assert spectral <= result.error.spectral <= 4 * spectral
    # The norm of an operator is not known, and probes alone bound it.
    assert frobenius <= result.error.frobenius <= (8 if known_by == "operator" else 1 + 1e-4) * frobenius
    assert 0 < result.error.failure <= 2e-8
    # Of rank 3 the difference is nothing but rounding.
    for seed in range(10):
        low = with_values(np.array([3.0, 2.0, 1.0]), 400, 300, seed).astype(dtype)
        result = svd(make(low), 3, center=center)
        spectral, frobenius = difference_norms(low, result, center)
        assert spectral <= result.error.spectral <= 30 * spectral
        assert frobenius <= result.error.frobenius <= 30 * frobenius


@pytest.mark.usefixtures("by_products")
def test_what_was_missed_is_bounded_by_a_probability():
    s = np.r_[np.geomspace(8, 1, 8), np.full(60, 0.1)]
    A = with_values(s, 300, 200)
    error = svd(A, 8, method="lanczos").error
    assert error.missed(0.9) <= 1e-8 < 1e-3 < error.missed(0.12) <= 1
    assert error.missed(error.rest * 1.01) <= error.failure
    without_the_third = svd(A - 5 * np.outer(*(np.eye(1, size)[0] for size in (300, 200))), 8).error
    assert without_the_third.missed(1e-9) == 1
    truncated = svd(A, 8, method="lanczos").truncate(3).error
    assert truncated.missed(0.9) == error.missed(0.9)  # they are left out now, but they were seen
    exact = svd(np.diag([3.0, 2.0, 1.0]), 2).error
    assert (exact.missed(1.1), exact.missed(0.9)) in [(0, 1), (exact.failure, 1)]


@pytest.mark.usefixtures("by_products")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_at_full_rank_the_bound_of_the_difference_bounds_the_residuals(dtype):
    A = np.random.default_rng(0).standard_normal((300, 40)).astype(dtype)
    result = svd(A, method="lapack")
    B = A.astype(np.float64)
    left = B @ result.Vt.T.astype(np.float64) - result.U.astype(np.float64) * result.s
    true = np.linalg.norm(left, axis=0).max()
    assert true <= result.residuals.max() <= 30 * true
    assert result.passes == 1 + 1 + 2


def test_wrong_factors_are_not_certified(monkeypatch):
    A = np.random.default_rng(0).standard_normal((30, 20))

    def wrong(X, full_matrices):
        U, s, Vt = np.linalg.svd(X, full_matrices=full_matrices)
        return U, s * 1.01, Vt

    from array_api_compat.numpy import linalg

    monkeypatch.setattr(linalg, "svd", wrong)
    result = svd(A)
    assert not result.converged
    assert result.residuals.max() > 0.009 * result.s[0]
    assert np.linalg.norm(A - result.reconstruct()) <= result.error.frobenius


# error=, files, and the rest of SVD


@pytest.mark.parametrize("wanted", [0.9, 0.5, 0.1, 1e-4, 0.0])
def test_error_of_a_sparse_matrix_is_that_of_the_array(wanted):
    A = random_sparse(600, 500)
    assert len(svd(A, error=wanted).s) == len(svd(A.toarray(), error=wanted).s)
    assert len(svd(A, error=wanted, center=True).s) == len(svd(A.toarray(), error=wanted, center=True).s)


def test_error_of_a_stack_serves_its_hardest_matrix():
    easy, hard = with_values(np.r_[1.0, 0.1], 6, 5), with_values(np.ones(4), 6, 5)
    assert svd(np.stack([easy, hard]), error=0.5).s.shape == (2, len(svd(hard, error=0.5).s)) == (2, 3)


def test_full_bases_of_a_sparse_matrix_and_of_a_stack():
    A = random_sparse(30, 20, 0.1)
    full = svd_full(A)
    assert np.abs(full.U.T @ full.U - np.eye(30)).max() < 100 * EPS
    assert np.abs(full.U[:, 20:].T @ A.toarray()).max() < 100 * EPS
    stack = svd_full(torch.ones(2, 3, 5))
    assert tuple(stack.Vt.shape) == (2, 5, 5)
    assert float(abs(stack.Vt @ stack.Vt.mT - torch.eye(5)).max()) < 1e-6


@pytest.mark.parametrize("A", [np.eye(4, 3), torch.ones(2, 4, 3), torch.ones(4, 3).bfloat16(), np.zeros((0, 3))])
def test_save_and_load(A, tmp_path):
    saved = svd(A, center=True)
    saved.save(tmp_path / "svd.npz")
    loaded = SVD.load(str(tmp_path / "svd.npz"))
    for field in ("U", "s", "Vt", "residuals"):
        assert np.array_equal(to_numpy(getattr(saved, field)), getattr(loaded, field))
        assert to_numpy(getattr(saved, field)).dtype == getattr(loaded, field).dtype
    assert np.array_equal(saved.error.frobenius, loaded.error.frobenius)
    assert np.array_equal(saved.error.spectral, loaded.error.spectral)
    assert type(saved.error.spectral) is type(loaded.error.spectral)
    for field in ("method", "passes", "converged"):
        assert getattr(saved, field) == getattr(loaded, field)
    assert [path.name for path in tmp_path.iterdir()] == ["svd.npz"]


def edited(path, **changes):
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def one_array():
    file = io.BytesIO()
    np.save(file, np.eye(3))
    return file.getvalue()


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "not an SVD"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "not an SVD"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"descr", b"dexcr")), "not an SVD"),
        (lambda path: path.write_text("U, s, Vt"), "not an SVD"),
        (lambda path: path.write_bytes(one_array()), "no format"),
        (lambda path: edited(path, s=None), "s is not a file"),
        (lambda path: edited(path, format=np.array(1)), "format is 1"),
        (lambda path: edited(path, U=np.array([[Bomb()]])), "allow_pickle"),
        (lambda path: edited(path, U=np.eye(3, dtype=int)), "instead of floating"),
        (lambda path: edited(path, s=np.ones(7)), "belong together"),
        (lambda path: edited(path, Vt=np.ones((2, 3, 3))), "belong together"),
        (lambda path: edited(path, spectral=np.ones(2)), "belong together"),
    ],
)
def test_a_damaged_file_is_refused_and_not_executed(damage, words, tmp_path, capsys):
    path = tmp_path / "svd.npz"
    svd(np.eye(4, 3)).save(path)
    damage(path)
    with pytest.raises(InputError, match=words):
        SVD.load(path)
    assert "executed" not in capsys.readouterr().out


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        svd(np.eye(3)).save(tmp_path / "nowhere" / "svd.npz")
    assert not list(tmp_path.iterdir())


def test_saved_files_are_plain_archives_of_numbers(tmp_path):
    svd(np.eye(3)).save(tmp_path / "svd.npz")
    with zipfile.ZipFile(tmp_path / "svd.npz") as archive:
        assert {"U.npy", "s.npy", "Vt.npy", "format.npy"} <= set(archive.namelist())


def test_it_unpacks_into_three_and_cannot_be_changed():
    U, s, Vt = result = svd(np.array([[3.0, 0.0], [0.0, 4.0]]))
    assert (U.tolist(), s.tolist(), Vt.tolist()) == ([[0, 1], [1, 0]], [4, 3], [[0, 1], [1, 0]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.s = s
    assert eckart.SVD is SVD
