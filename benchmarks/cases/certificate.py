"""The certificate: bounds against the true errors, on matrices that every solver must face.

Every method in turn, on an array and on a CSR matrix, wherever it applies. The truth is computed in extended precision.
A bound is violated where it lies below the truth; residuals, which are measured and not bounds, where they lie below it
by more than rounding, 2 eps ‖A‖ sqrt(m n). A tolerance is broken where a method other than "sketch", which is coarse by
design, does not converge, and where any result says that it converged and a true residual is above tol s_1.

Ratios are bound / truth. The bar takes a truth below the rounding of float64, eps ‖A‖ sqrt(m n), for that much, since
nothing is measured better; the ratio to the truth as it is stands beside it. Some of the seeds make larger matrices,
which no Krylov basis spans.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks.case import ENGINE, Cell, Claim, Measured

Array = NDArray[Any]
CODE = ENGINE
ORDER = 7
K = 8
SMALL, LARGE, LARGE_EVERY = (90, 60), (400, 300), 20
TOL = {"float32": 1e-4, "float64": 1e-8}
ROUTES = ("entries", "probes")  # by which the engine measures small matrices, and those that are too large for that
HIGHEST_MEDIAN = 30.0
ROUNDING = 2.0  # units of eps ‖A‖ sqrt(m n) by which a measured residual may be off
QUANTITIES = ("spectral", "frobenius", "residuals")


def cells(tiny: bool) -> list[Cell]:
    seeds, every = (1, 0) if tiny else (200, LARGE_EVERY)
    return [
        Cell(
            f"{dtype}, from {route}",
            {"dtype": dtype, "route": route, "seeds": seeds, "large_every": every},
            threads=(1,),
            limit_s=3600.0,
        )
        for dtype in TOL
        for route in ROUTES
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    """Return the claims over all matrices, methods and seeds; seeds are shared out among the cores."""
    one_seed = partial(tallies, **{name: settings[name] for name in ("dtype", "route", "large_every")})
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(one_seed, range(settings["seeds"]))
        return summary(found, settings["dtype"])


def summary(found: Iterable[dict[str, Tally]], dtype: str) -> Measured:
    """Return the claims about what `tallies` found; tests call the two for a few seeds."""
    total: dict[str, Tally] = {name: Tally() for name in MATRICES}
    for tally in found:
        for name, part in tally.items():
            total[name].add(part)
    return Measured(_claims(total), [_row(name, tally) for name, tally in total.items()], {"tol": TOL[dtype]})


@dataclass
class Tally:
    """What was seen on one matrix: ratios by quantity, and what must not be seen."""

    ratios: dict[str, list[float]] = field(default_factory=lambda: {quantity: [] for quantity in QUANTITIES})
    plain: dict[str, list[float]] = field(default_factory=lambda: {quantity: [] for quantity in QUANTITIES})
    below: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUANTITIES, 0))
    broken: int = 0
    left_out: int = 0
    worst: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for quantity in QUANTITIES:
            self.ratios[quantity] += other.ratios[quantity]
            self.plain[quantity] += other.plain[quantity]
            self.below[quantity] += other.below[quantity]
        self.broken += other.broken
        self.left_out += other.left_out
        self.worst += other.worst[: max(0, 3 - len(self.worst))]


def tallies(seed: int, dtype: str, route: str, large_every: int = 0) -> dict[str, Tally]:
    """Return what all methods show on all matrices of one seed."""
    m, n = LARGE if large_every and seed % large_every == 0 else SMALL
    found = {}
    with _measured_by(route):
        for number, (name, make) in enumerate(MATRICES.items()):
            A, k = make(np.random.default_rng([seed, number]), m, n)
            found[name] = _tally(A.astype(dtype), k, seed, TOL[dtype])
    return found


@contextlib.contextmanager
def _measured_by(route: str) -> Iterator[None]:
    """Let no matrix be small enough for its entries to be compared, where the route is by probes."""
    from eckart._algorithms import _accuracy

    limits = {name: getattr(_accuracy, name) for name in ("FREE_ENTRIES", "FREE_FLOPS", "MOST_ENTRIES")}
    for name in limits if route == "probes" else ():
        setattr(_accuracy, name, 0)
    try:
        yield
    finally:
        for name, value in limits.items():
            setattr(_accuracy, name, value)


def _tally(A: Array, k: int, seed: int, tol: float) -> Tally:
    import eckart
    from eckart.errors import UsageError

    tally, exact = Tally(), np.linalg.svd(A.astype(np.float64), compute_uv=False)
    eps, norm = float(np.finfo(A.dtype).eps), float(exact[0])
    unit = ROUNDING * eps * norm * np.sqrt(A.size)
    floor = max(float(np.finfo(np.float64).eps) * norm * np.sqrt(A.size), float(np.finfo(A.dtype).tiny))
    for kind, matrix, method in _runs(A):
        try:
            result = eckart.svd(matrix, k, tol=tol, method=method, seed=seed)
        except UsageError:  # this method does not apply here
            continue
        truth = _truth(A, result)
        bounds = {"spectral": result.error.spectral, "frobenius": result.error.frobenius}
        below = {quantity: truth[quantity] > bound * (1 + 1e-12) for quantity, bound in bounds.items()}
        below["residuals"] = np.any(truth["residuals"] > result.residuals + unit)
        for quantity in QUANTITIES:
            bound = float(np.max(bounds.get(quantity, result.residuals)))
            actual = float(np.max(truth[quantity]))
            tally.below[quantity] += bool(below[quantity])
            tally.ratios[quantity].append(bound / max(actual, floor))
            if actual > 0:
                tally.plain[quantity].append(bound / actual)
        met = bool(truth["residuals"].max() <= tol * result.s[0] * (1 + 1e-3))
        broken = (result.converged and not met) or (not result.converged and method != "sketch")
        tally.broken += broken
        tally.left_out += bool(
            result.converged and exact[k - 1] - result.s[-1] > 0.01 * exact[k - 1] + tol * norm + unit
        )
        if broken or any(below.values()):
            tally.worst.append(f"{kind}, {method}, seed {seed}")
    return tally


def _runs(A: Array) -> Iterator[tuple[str, Any, str]]:
    from eckart._algorithms import METHODS

    for kind, matrix in (("array", A), ("CSR", sp.csr_array(A))):
        for method in METHODS:
            yield kind, matrix, method


def _truth(A: Array, result: Any) -> dict[str, Any]:
    """Return ‖A - U diag(s) Vt‖ in both norms and the residuals; products in extended precision."""
    A, U, s, Vt = (np.asarray(x, np.longdouble) for x in (A, *result))
    difference = (A - (U * s) @ Vt).astype(np.float64)
    right, left = A @ Vt.T - U * s, A.T @ U - Vt.T * s
    residuals = np.sqrt(np.maximum((right**2).sum(axis=0), (left**2).sum(axis=0))).astype(np.float64)
    return {
        "spectral": float(np.linalg.norm(difference, 2)),
        "frobenius": float(np.linalg.norm(difference)),
        "residuals": residuals,
    }


def _claims(total: dict[str, Tally]) -> list[Claim]:
    runs = sum(len(tally.ratios["spectral"]) for tally in total.values())
    worst = "; ".join(f"{name}: {', '.join(tally.worst)}" for name, tally in total.items() if tally.worst)
    claims = [
        Claim(
            f"{quantity} below the truth, of {runs:,} results", sum(t.below[quantity] for t in total.values()), 0, True
        )
        for quantity in QUANTITIES
    ]
    claims.append(Claim("tolerance broken", sum(t.broken for t in total.values()), 0, True, note=worst))
    claims.append(Claim("s_k too small by over 1 % and tol s_1, unnoticed", sum(t.left_out for t in total.values())))
    for quantity in QUANTITIES:
        for seen, note, bar in (("ratios", "", HIGHEST_MEDIAN), ("plain", ", the truth as it is", None)):
            medians = {name: median(r) for name, tally in total.items() if (r := getattr(tally, seen)[quantity])}
            name = max(medians, key=lambda name: medians[name])
            what = f"{quantity}: the highest median of bound / truth{note}"
            claims.append(Claim(what, medians[name], bar, True, note=name))
    return claims


def _row(name: str, tally: Tally) -> dict[str, Any]:
    row: dict[str, Any] = {"matrix": name, "results": len(tally.ratios["spectral"])}
    for quantity in QUANTITIES:
        row[f"{quantity}: median"] = median(tally.ratios[quantity])
        row[f"{quantity}: largest"] = max(tally.ratios[quantity])
    return row | {"broken": tally.broken}


def _basis(rng: np.random.Generator, m: int, r: int) -> Array:
    return np.linalg.qr(rng.standard_normal((m, r)))[0]


def _spectrum(values: Callable[[np.random.Generator, int], Array], k: int | None = K) -> Any:
    """Return a maker of matrices with these singular values between random bases."""

    def make(rng: np.random.Generator, m: int, n: int) -> tuple[Array, int]:
        if k is None:  # all of them: extended precision would take minutes on the large ones
            m, n = SMALL
        return (_basis(rng, m, n) * values(rng, n)) @ _basis(rng, n, n).T, k or n

    return make


def _slow(rng: np.random.Generator, n: int) -> Array:
    return np.arange(1.0, n + 1) ** -0.5


def _shaped(change: Callable[[np.random.Generator, Array], Array]) -> Any:
    """Return a maker of matrices of normal noise that `change` gives a structure."""
    return lambda rng, m, n: (change(rng, rng.standard_normal((m, n))), K)


def _zero_lines(rng: np.random.Generator, A: Array) -> Array:
    A[::2], A[:, ::3] = 0, 0
    return A


def _huge_row(rng: np.random.Generator, A: Array) -> Array:
    A[rng.integers(len(A))] *= 1e8
    return A


def _few_columns(rng: np.random.Generator, m: int, n: int) -> tuple[Array, int]:
    return rng.standard_normal((40, 7)), 3


MATRICES: dict[str, Callable[[np.random.Generator, int, int], tuple[Array, int]]] = {
    "slow decay": _spectrum(_slow),
    "all equal": _spectrum(lambda rng, n: np.ones(n)),
    "multiplicity n / 2": _spectrum(lambda rng, n: np.repeat([3.0, 1.0], [n // 2, n - n // 2])),
    "cluster 1e-8 wide": _spectrum(
        lambda rng, n: np.concatenate([1 + 1e-8 * rng.random(n // 2), rng.random(n - n // 2) / 2])
    ),
    "gap of 1e-9 at k": _spectrum(lambda rng, n: 1 - 1e-9 * (np.arange(n) >= K)),
    "graded to 1e-6": _spectrum(lambda rng, n: np.geomspace(1, 1e-6, n)),
    "graded to 1e-12": _spectrum(lambda rng, n: np.geomspace(1, 1e-12, n)),
    "graded to 1e-12 at k": _spectrum(lambda rng, n: 10.0 ** (-12.0 * np.arange(n) / K)),
    "rank k / 2": _spectrum(lambda rng, n: np.where(np.arange(n) < K // 2, 1.0 + rng.random(n), 0.0)),
    "k = 1": _spectrum(_slow, 1),
    "k = min(m, n)": _spectrum(_slow, None),
    "scale 1e30": lambda rng, m, n: (1e30 * _spectrum(_slow)(rng, m, n)[0], K),
    "scale 1e-30": lambda rng, m, n: (1e-30 * _spectrum(_slow)(rng, m, n)[0], K),
    "wide": lambda rng, m, n: (_spectrum(_slow)(rng, m, n)[0].T, K),
    "zero": _shaped(lambda rng, A: 0 * A),
    "noise": _shaped(lambda rng, A: A),
    "zero rows and columns": _shaped(_zero_lines),
    "one huge row": _shaped(_huge_row),
    "diagonal": _shaped(lambda rng, A: A * np.eye(*A.shape)),
    "one entry in ten": _shaped(lambda rng, A: A * (rng.random(A.shape) < 0.1)),
    "n below a block": _few_columns,
}
