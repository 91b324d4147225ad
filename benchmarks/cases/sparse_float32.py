"""Sparse matrices in float32: the k leading triplets.

Two are generated and three are real: the pointers of WordNet 3.0, the PPMI matrix of the words of four packaged texts,
and MovieLens-100k. The bar is the best of SciPy's solvers, in float32 like Eckart. randomized_svd is scikit-learn's, at
its defaults and on a ladder of iterations.
"""

from __future__ import annotations

from typing import Any

from benchmarks import data
from benchmarks.case import ENGINE, Cell, Measured
from benchmarks.contest import Bars, contest
from benchmarks.solvers import ARPACK, FBPCA, LOBPCG, PRIMME, PROPACK, SKLEARN

CODE = ENGINE
ORDER = 1
TARGETS = [1e-3, 1e-4, 1e-6]  # the bars hold at the second
LIMIT_S = 3600.0
BARS = Bars(at=1e-4, best=3, default_time=4, default_error=100)
W1 = {"name": "topics", "documents": 100_000, "words": 50_000, "tokens": 96.0, "count": 150, "seed": 0}
W2 = {"name": "ratings", "users": 300_000, "items": 30_000, "per_user": 39.0, "seed": 0}
PPMI = {"name": "ppmi", "window": 5, "minimum": 5}


def cells(tiny: bool) -> list[Cell]:
    if tiny:
        small = W1 | {"documents": 3000, "words": 2000, "tokens": 40.0, "count": 20}
        return [Cell("W1-like", {"data": small, "k": 10, "targets": TARGETS})]
    rows = {
        "W1-like": (W1, 100),
        "W2-like": (W2, 50),
        "PPMI": (PPMI, 100),
        "WordNet": ({"name": "wordnet"}, 50),
        "MovieLens-100k": ({"name": "movielens"}, 20),
    }
    return [Cell(name, {"data": spec, "k": k, "targets": TARGETS}, limit_s=LIMIT_S) for name, (spec, k) in rows.items()]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    A = data.sparse(settings["data"])
    found = contest(
        A, settings["k"], settings["targets"], [ARPACK, PROPACK, LOBPCG], [SKLEARN, FBPCA, PRIMME], BARS, before
    )
    return Measured(found.claims, found.table, data.describe(A) | found.facts)
