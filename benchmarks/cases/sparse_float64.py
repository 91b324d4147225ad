"""Sparse matrices in float64, to a residual of 1e-8.

Two of the matrices above, in float64. The bar is the better of ARPACK and PROPACK.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.case import ENGINE, Cell, Measured
from benchmarks.contest import Bars, contest
from benchmarks.solvers import ARPACK, PRIMME, PROPACK

CODE = ENGINE
ORDER = 3
TARGET = 1e-8
BARS = Bars(at=TARGET, best=1.5)
W2 = {"name": "ratings", "users": 300_000, "items": 30_000, "per_user": 39.0, "seed": 0}


def cells(tiny: bool) -> list[Cell]:
    if tiny:
        small = W2 | {"users": 3000, "items": 1000, "per_user": 20.0}
        return [Cell("W2-like", {"data": small, "k": 10, "targets": [TARGET]})]
    rows = {
        "W2-like": (W2, 50),
        "WordNet": ({"name": "wordnet"}, 50),
    }
    return [Cell(name, {"data": spec, "k": k, "targets": [TARGET]}) for name, (spec, k) in rows.items()]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    A = data.sparse(settings["data"]).astype(np.float64)
    found = contest(A, settings["k"], settings["targets"], [ARPACK, PROPACK], [PRIMME], BARS, before)
    return Measured(found.claims, found.table, data.describe(A) | found.facts)
