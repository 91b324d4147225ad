"""Eckart: the singular value decomposition for deep learning.

Names are imported when they are first asked for, so that `import eckart` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eckart._compress import Plan as Plan
    from eckart._compress import compress as compress
    from eckart._compress import plan as plan
    from eckart._decomposed import SVD as SVD
    from eckart._rank import Rank as Rank
    from eckart._rank import choose_rank as choose_rank
    from eckart._svd import svd as svd
    from eckart._svd import svd_full as svd_full
    from eckart.errors import EckartError as EckartError
    from eckart.matrix import Matrix as Matrix
    from eckart.matrix import as_matrix as as_matrix
    from eckart.models import Measurement as Measurement
    from eckart.models import load as load
    from eckart.models import measure as measure
    from eckart.models import open_model as open_model

    __version__: str

HOME = {
    "EckartError": "eckart.errors",
    "Matrix": "eckart.matrix",
    "Measurement": "eckart.models",
    "Plan": "eckart._compress",
    "Rank": "eckart._rank",
    "SVD": "eckart._decomposed",
    "as_matrix": "eckart.matrix",
    "choose_rank": "eckart._rank",
    "compress": "eckart._compress",
    "load": "eckart.models",
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
