"""The solvers that are compared, each with the literal grid of settings that is searched for it.

A ladder is a list of settings in which each costs at least as much as the one before; a solver may have several.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ARPACK", "ECKART", "FBPCA", "LOBPCG", "PRIMME", "PROPACK", "SKLEARN", "Factors", "Setting", "Solver"]

Factors = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # U (m, k), s (k,), Vt (k, n), in any order
Setting = dict[str, Any]
SEED = 0


@dataclass(frozen=True)
class Solver:
    """A way to the k largest singular triplets. ladders(k, target): the settings to search; needs: its distribution."""

    name: str
    run: Callable[[Any, int, Mapping[str, Any]], Factors]
    ladders: Callable[[int, float], list[list[Setting]]]
    needs: str = "numpy"

    @property
    def installed(self) -> bool:
        return any(importlib.metadata.distributions(name=self.needs))


def _eckart(A: Any, k: int, setting: Mapping[str, Any]) -> Factors:
    import eckart

    U, s, Vt = eckart.svd(A, k, seed=SEED, **setting)
    return U, s, Vt


def _svds(name: str) -> Callable[[Any, int, Mapping[str, Any]], Factors]:
    def run(A: Any, k: int, setting: Mapping[str, Any]) -> Factors:
        from scipy.sparse.linalg import svds

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lobpcg: not converged, which the error will show
            U, s, Vt = svds(A, k, solver=name, rng=SEED, **setting)
        return U, s, Vt

    return run


def _sklearn(A: Any, k: int, setting: Mapping[str, Any]) -> Factors:
    from sklearn.utils.extmath import randomized_svd

    U, s, Vt = randomized_svd(A, k, random_state=SEED, **setting)
    return U, s, Vt


def _fbpca(A: Any, k: int, setting: Mapping[str, Any]) -> Factors:
    import fbpca

    np.random.seed(SEED)  # noqa: NPY002 - the one generator that fbpca knows
    U, s, Vt = fbpca.pca(A, k, raw=True, **setting)
    return U, s, Vt


def _primme(A: Any, k: int, setting: Mapping[str, Any]) -> Factors:
    import primme

    U, s, Vt = primme.svds(A, k, which="LM", **setting)
    return U, s, Vt


def _tols(*tols: float, **fixed: Any) -> list[Setting]:
    return [{"tol": tol, **fixed} for tol in tols]


ECKART = Solver("Eckart", _eckart, lambda k, target: [_tols(10 * target, 4 * target, target)])
# svds squares tol before it hands it on. ncv: 2 k + 1 by default; more of it means fewer restarts.
ARPACK = Solver(
    "ARPACK", _svds("arpack"), lambda k, target: [_tols(0.1, 0.01, 1e-3, 0), _tols(0.1, 0.01, 1e-3, 0, ncv=3 * k)]
)
PROPACK = Solver("PROPACK", _svds("propack"), lambda k, target: [_tols(0.3, 0.1, 0.01, 1e-3, 1e-4, 0)])
LOBPCG = Solver("LOBPCG", _svds("lobpcg"), lambda k, target: [[{"maxiter": i} for i in (5, 10, 20, 40, 80)]])
SKLEARN = Solver("randomized_svd", _sklearn, lambda k, target: [[{}, *({"n_iter": i} for i in (15, 30, 60))]])
FBPCA = Solver("fbpca", _fbpca, lambda k, target: [[{"n_iter": i} for i in (2, 7, 20, 60)]], needs="fbpca")
PRIMME = Solver("PRIMME", _primme, lambda k, target: [_tols(1e-2, 1e-3, 1e-4, 1e-6, 1e-8)], needs="primme")
