"""A matrix from a file of NumPy, SciPy or Eckart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eckart.errors import InputError

__all__ = ["read_array", "read_matrix"]


def read_array(path: Path) -> Any:
    """Return the one array or scipy.sparse matrix of a file. InputError: as for read_matrix, or it holds neither."""
    found = read_matrix(path)
    if len(getattr(found, "shape", ())) != 2:
        held = f"an array of shape {found.shape}" if hasattr(found, "shape") else "an SVD"
        raise InputError(f"{path} holds {held}, and one matrix is wanted", fix="save A, m x n", file=str(path))
    return found


def read_matrix(path: Path) -> Any:
    """Return the array of a .npy file, the scipy.sparse matrix of a .npz file, or the SVD that SVD.save wrote.

    InputError: no such file, another kind of file, or one that is damaged. Nothing in it is executed.
    """
    import numpy as np

    from eckart._decomposed import MALFORMED, SVD

    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = set(found.files)
        if "shape" in names and "format" in names:
            from scipy.sparse import load_npz

            matrix = load_npz(path)
            if hasattr(matrix, "check_format"):
                matrix.check_format(full_check=True)  # an index outside the matrix would be followed
            return matrix
    except OSError as error:
        raise InputError(f"{path} cannot be read", why=error.strerror or str(error), file=str(path)) from error
    except MemoryError as error:
        raise InputError(f"{path} holds, or claims to hold, more than fits into memory", file=str(path)) from error
    except MALFORMED as error:
        raise InputError(
            f"{path} is no matrix",
            why=str(error),
            fix="write it with numpy.save, scipy.sparse.save_npz or SVD.save",
            file=str(path),
        ) from error
    return SVD.load(path)
