"""Matrices that every solver must face, in every kind and type, and the laws of one SVD."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import scipy.sparse
import torch
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

# Constants of the laws, in units of eps ‖A‖ sqrt(m n), each two to four times the largest value seen over these cases.
# The residuals are LAPACK's: its QR iteration stops at about 100 eps in float64.
VALUES = 2
ORTHONORMAL = 8
BEST = 16
RESIDUAL = 16
MEASURED = 2

SPECTRA = {
    "random": lambda r, rng: np.sort(rng.random(r))[::-1],
    "all equal": lambda r, rng: np.ones(r),
    "repeated": lambda r, rng: np.repeat([3.0, 1.0], [r // 2, r - r // 2]),
    "cluster 1e-8 wide": lambda r, rng: 1 + 1e-8 * np.sort(rng.random(r))[::-1],
    "graded to 1e-6": lambda r, rng: np.geomspace(1, 1e-6, r),
    "graded to 1e-14": lambda r, rng: np.geomspace(1, 1e-14, r),
    "rank 2": lambda r, rng: np.array([2.0, 1.0] + [0.0] * r)[:r],
    "gap of 1e-9": lambda r, rng: 1 - 1e-9 * (np.arange(r) > r // 2),
    "zero": lambda r, rng: np.zeros(r),
}
SHAPES = [(0, 4), (4, 0), (1, 1), (1, 6), (6, 1), (2, 2), (7, 4), (4, 7), (9, 9), (24, 12), (11, 25)]


@st.composite
def matrices(draw, shapes=SHAPES):
    """Draw a matrix in float64: a spectrum between random bases, or one with structure that has no bases to hide in."""
    m, n = draw(st.sampled_from(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from([*SPECTRA, "sparse", "diagonal", "huge row", "zero rows and columns", "integers"]))
    if kind in SPECTRA:
        r = min(m, n)
        return (basis(rng, m, r) * SPECTRA[kind](r, rng)) @ basis(rng, n, r).T
    A = rng.standard_normal((m, n))
    if kind == "sparse":
        A *= rng.random((m, n)) < 0.25
    elif kind == "diagonal":
        A *= np.eye(m, n)
    elif kind == "huge row" and m:
        A[draw(st.integers(0, m - 1))] *= 1e8
    elif kind == "zero rows and columns":
        A[::2], A[:, ::3] = 0, 0
    elif kind == "integers":
        A = np.round(2 * A)
    return A


def basis(rng, m, r):
    return np.linalg.qr(rng.standard_normal((m, r)))[0] if r else np.zeros((m, 0))


class Own:
    """A caller's class with the four attributes of a Matrix and no others."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype

    def matmat(self, X):
        return self.A @ X

    def rmatmat(self, Y):
        return self.A.T @ Y


def strided(A):
    """Return A as every third column of a larger array that cannot be written."""
    padded = np.zeros((A.shape[0], 3 * A.shape[1]), A.dtype)
    padded[:, ::3] = A
    padded.flags.writeable = False
    return padded[:, ::3]


def with_duplicates(A):
    """Return A in coordinates, unsorted, each entry in two parts, with a zero stored."""
    rows, columns = (index[::-1] for index in np.nonzero(A))
    half = A[rows, columns] / 2
    places = np.concatenate([rows, rows]), np.concatenate([columns, columns])
    return scipy.sparse.coo_matrix((np.concatenate([half, half]), places), shape=A.shape)


def unsorted_rows(A):
    """Return A in compressed rows whose indices run backwards, with every entry stored, zeros too."""
    m, n = A.shape
    indices = np.tile(np.arange(n)[::-1], m)
    return scipy.sparse.csr_array((A[:, ::-1].ravel(), indices, n * np.arange(m + 1)), A.shape)


DENSE = {
    "numpy": lambda A: A,
    "numpy transposed view": lambda A: np.ascontiguousarray(A.T).T,
    "numpy strided read-only": strided,
    "torch": lambda A: torch.tensor(A),
    "torch parameter": lambda A: torch.nn.Parameter(torch.tensor(A)),
}
if torch.cuda.is_available():
    DENSE["torch on cuda"] = lambda A: torch.tensor(A, device="cuda")
SPARSE = {
    "csr": unsorted_rows,
    "csc": scipy.sparse.csc_array,
    "coo": with_duplicates,
    "lil": scipy.sparse.lil_array,
}
PRODUCTS = {"operator": aslinearoperator, "own class": Own}
KRYLOV = ("lanczos", "golub-kahan")
KINDS = DENSE | SPARSE | PRODUCTS
METHODS = [(kind, method) for kind in DENSE for method in ("auto", "lapack", "tall", *KRYLOV)]
METHODS += [(kind, method) for kind in SPARSE | PRODUCTS for method in ("auto", "gram", *KRYLOV)]

EPS = {np.float16: 2.0**-10, ml_dtypes.bfloat16: 2.0**-7}


def numpy64(x):
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x).astype(np.float64)


def ranks(A, method):
    """Return every k that a method takes: the Krylov methods leave out the ends."""
    r = min(A.shape)
    return range(1, r) if method in KRYLOV else range(r + 1)


def laws(A, result, k, dtype):
    """Assert what every SVD of A (float64, m x n) to k values in this type keeps."""
    (m, n), eps = A.shape, EPS.get(dtype) or np.finfo(dtype).eps
    exact = np.linalg.svd(A, compute_uv=False) if min(m, n) else np.zeros(0)
    norm = exact[0] if exact.size else 0.0
    unit = eps * np.sqrt(m * n)
    U, s, Vt = (numpy64(x) for x in result)
    assert (U.shape, s.shape, Vt.shape) == ((m, k), (k,), (k, n))

    assert np.all(s >= 0)
    assert np.all(s[:-1] >= s[1:])
    assert_below(np.abs(s - exact[:k]), VALUES * unit * norm)
    assert_below(np.abs(U.T @ U - np.eye(k)), ORTHONORMAL * unit)
    assert_below(np.abs(Vt @ Vt.T - np.eye(k)), ORTHONORMAL * unit)

    difference = A - (U * s) @ Vt
    spectral, frobenius = (np.linalg.norm(difference, order) if difference.size else 0.0 for order in (2, "fro"))
    assert spectral <= result.error.spectral * (1 + 1e-12)
    assert frobenius <= result.error.frobenius * (1 + 1e-12)
    left_out = exact[k] if k < min(m, n) else 0.0
    assert_below(left_out - spectral, VALUES * unit * norm)  # Eckart and Young: nothing of rank k is closer
    assert_below(spectral - left_out, BEST * unit * norm)

    here = np.maximum(column_norms(A @ Vt.T - U * s), column_norms(A.T @ U - Vt.T * s))
    assert_below(here, RESIDUAL * unit * norm)
    assert_below(np.abs(numpy64(result.residuals) - here), MEASURED * unit * norm)
    assert result.converged
    for v in Vt:
        close = np.abs(v) >= (1 - 2.0**-10) * np.abs(v).max()
        assert dtype in EPS or v[np.argmax(close)] > 0


def column_norms(X):
    return np.linalg.norm(X, axis=0)


def assert_below(values, bound):
    largest = np.max(values, initial=-np.inf)
    assert largest <= bound + 1e-300, f"{largest:.3g} is above {bound:.3g}"
