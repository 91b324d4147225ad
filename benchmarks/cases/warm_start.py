"""A second SVD of a matrix that changed a little, started from the first.

Passes over the data, counted by the engine itself, of a cold start and of `start=` with the SVD before the change.
Every stored entry is multiplied by 1 + change times a standard normal number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.case import ENGINE, Cell, Claim, Measured
from benchmarks.timing import Errors

CODE = ENGINE
ORDER = 6
WANTED = 3.0
W1S = {"name": "topics", "documents": 30_000, "words": 20_000, "tokens": 60.0, "count": 80, "seed": 0}
BARRED = 1e-4  # the change for which the bar is; larger ones are printed


def cells(tiny: bool) -> list[Cell]:
    spec = W1S | ({"documents": 2000, "words": 1000} if tiny else {})
    return [
        Cell(
            f"change {change:g}",
            {"data": spec, "k": 10 if tiny else 50, "tol": 1e-4, "change": change, "seed": 1},
            (1,),
        )
        for change in (BARRED, 1e-2)
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    import eckart

    A = data.sparse(settings["data"])
    k, tol, change = settings["k"], settings["tol"], settings["change"]
    first = eckart.svd(A, k, tol=tol)
    noise = np.random.default_rng(settings["seed"]).standard_normal(A.nnz)
    B = A.copy()
    B.data *= (1 + change * noise).astype(A.dtype)
    errors = Errors(B)
    cold, warm = eckart.svd(B, k, tol=tol), eckart.svd(B, k, tol=tol, start=first)
    table = [
        {"start": n, "passes": r.passes, "error": errors(r), "method": r.method}
        for n, r in (("cold", cold), ("warm", warm))
    ]
    claims = [
        Claim("passes, cold / warm", cold.passes / warm.passes, WANTED if change == BARRED else None),
        Claim("error of the warm start", errors(warm), tol, at_most=True),
    ]
    return Measured(claims, table, data.describe(A) | {"k": k, "tol": tol})
