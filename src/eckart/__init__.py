"""Eckart: the singular value decomposition for deep learning.

Names are imported when they are first asked for, so that `import eckart` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eckart._svd import SVD as SVD
    from eckart._svd import svd as svd
    from eckart._svd import svd_full as svd_full
    from eckart.errors import EckartError as EckartError
    from eckart.matrix import Matrix as Matrix
    from eckart.matrix import as_matrix as as_matrix

HOME = {
    "EckartError": "eckart.errors",
    "Matrix": "eckart.matrix",
    "SVD": "eckart._svd",
    "as_matrix": "eckart.matrix",
    "compress": "eckart._compress",
    "measure": "eckart.models",
    "open_model": "eckart.models",
    "plan": "eckart._compress",
    "svd": "eckart._svd",
    "svd_full": "eckart._svd",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("eckart")
    if name not in HOME:
        raise AttributeError(f"module 'eckart' has no attribute {name!r}; it has {', '.join(HOME)}")
    return getattr(import_module(HOME[name]), name)


def __dir__() -> list[str]:
    return [*HOME, "__version__"]
