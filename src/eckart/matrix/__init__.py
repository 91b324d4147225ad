"""Matrices: what the engine may ask of one, and one file per kind.

To add a kind: a file here with a class that has the attributes of Operand, and an adapter that claims a type's name.
"""

from __future__ import annotations

from eckart._arrays import frameworks
from eckart.errors import UsageError
from eckart.matrix import dense, torch_tensors
from eckart.matrix import jax_sparse as _jax_sparse  # noqa: F401  this and the next two claim their names
from eckart.matrix import sparse as _sparse  # noqa: F401
from eckart.matrix import tensorflow_sparse as _tensorflow_sparse  # noqa: F401
from eckart.matrix._contract import Matrix, Operand, kinds
from eckart.matrix.callables import products
from eckart.matrix.wrappers import Counted, centred, transposed, weighted

__all__ = ["Counted", "Matrix", "Operand", "as_matrices", "as_matrix", "centred", "transposed", "weighted"]


def as_matrix(x: object) -> Operand:
    """Return x as a Matrix that is real, finite and ready to be decomposed; x itself is never changed.

    x: an array of NumPy, torch, JAX, TensorFlow of two dimensions, nested lists, a scipy.sparse matrix, a torch sparse
    tensor (CSR, CSC, COO), tf.SparseTensor, JAX BCOO or BCSR, or any object with the attributes of Matrix.
    UsageError: anything else, complex numbers. NumericalError: NaN or infinity, with the first place.

    >>> as_matrix([[1, 2], [3, 4]]).shape
    (2, 2)
    """
    if isinstance(x, Operand):
        return x
    adapter = kinds.find(x)
    if adapter is not None:
        return adapter(x)
    if isinstance(x, Matrix):
        return products(x)
    raise UsageError(
        f"{type(x).__module__}.{type(x).__qualname__} is not a matrix",
        fix="pass an array, a sparse matrix, or an object with shape, dtype, matmat and rmatmat",
    )


def as_matrices(x: object) -> tuple[tuple[int, ...] | None, list[Operand]]:
    """Return the leading dimensions of a stack (..., m, n), None for one matrix, and the matrices in order."""
    if frameworks.find(x) is not None and not torch_tensors.is_sparse(x):
        outer, matrices = dense.stack(x)
        return outer, [*matrices]
    return None, [as_matrix(x)]
