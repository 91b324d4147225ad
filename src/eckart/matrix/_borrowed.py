"""Sparse arrays of other frameworks, seen as scipy.sparse matrices that share their memory."""

from __future__ import annotations

from eckart._arrays import Array, Space
from eckart.errors import UsageError
from eckart.matrix._contract import Operand
from eckart.matrix.sparse import sparse

__all__ = ["borrowed"]


def borrowed(form: str, values: Array, places: tuple[Array, Array], shape: tuple[int, ...], space: Space) -> Operand:
    """Return a sparse array as a matrix whose results return to the framework of this space.

    form: "coo" with places (row, column), "csr" or "csc" with places (indices, indptr). values: (nnz,), NumPy, in the
    type of the computation. UsageError: other than two dimensions, or places outside the shape, which frameworks leave
    unchecked and compiled products would follow. NumericalError: NaN or infinity.
    """
    import scipy.sparse

    if len(shape) != 2:
        raise UsageError(f"a sparse array of shape {shape} is not a matrix", fix="reshape it to two dimensions")
    make = getattr(scipy.sparse, f"{form}_array")
    try:
        matrix = make((values, places) if form == "coo" else (values, *places), shape=shape)
    except ValueError as error:
        raise UsageError("a sparse array has places outside its shape", why=str(error), fix="make it anew") from error
    return sparse(matrix, space)
