"""Dense matrices in float32: the 100 leading triplets.

Singular values that decay slowly, 1 / sqrt(i), and fast, exp(-i / 18), between cosine transforms with random signs.
The bars are SciPy's ARPACK, and scikit-learn's randomized_svd at its defaults, which must not be faster.
"""

from __future__ import annotations

from typing import Any

from benchmarks import data
from benchmarks.case import ENGINE, Cell, Measured
from benchmarks.contest import Bars, contest
from benchmarks.solvers import ARPACK, FBPCA, PRIMME, SKLEARN

CODE = ENGINE
ORDER = 2
TARGETS = [1e-3, 1e-4, 1e-6]  # the bars hold at the second
LIMIT_S = 3600.0
ERROR_BAR = {"slow": 1000.0}  # times smaller than that of randomized_svd's defaults; no bar where the values decay fast


def cells(tiny: bool) -> list[Cell]:
    m, n, k = (400, 150, 10) if tiny else (20_000, 4_000, 100)
    return [
        Cell(
            f"{decay} decay",
            {"data": {"m": m, "n": n, "decay": decay, "seed": 0}, "k": k, "targets": TARGETS},
            limit_s=LIMIT_S,
        )
        for decay in ("slow", "fast")
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    A = data.dense(**settings["data"], dtype="float32")
    bars = Bars(at=1e-4, best=2.5, default_time=1.0, default_error=ERROR_BAR.get(settings["data"]["decay"]))
    found = contest(A, settings["k"], settings["targets"], [ARPACK], [SKLEARN, FBPCA, PRIMME], bars, before)
    return Measured(found.claims, found.table, data.describe(A) | found.facts)
