"""A matrix from a file of NumPy, SciPy or Eckart."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

from eckart.errors import InputError

__all__ = ["read_matrix"]


def read_matrix(path: Path) -> Any:
    """Return the array of a .npy file, the scipy.sparse matrix of a .npz file, or the SVD that SVD.save wrote.

    InputError: no such file, another kind of file, or one that is damaged. Nothing in it is executed.
    """
    import numpy as np

    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = set(found.files)
        if "shape" in names and "format" in names:
            from scipy.sparse import load_npz

            return load_npz(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read", why=error.strerror or str(error), file=str(path)) from error
    except (EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is no matrix",
            why=str(error),
            fix="write it with numpy.save, scipy.sparse.save_npz or SVD.save",
            file=str(path),
        ) from error
    from eckart import SVD

    return SVD.load(path)
