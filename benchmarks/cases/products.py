"""The product of a sparse matrix with 16 columns, and of its transpose.

The engine's product beside SciPy's, which has one thread. Bandwidth is that of adding two arrays into a third, at the
same number of threads in the same process (STREAM's "add", three streams like its "triad"); the share counts the CSR
arrays, X and Y once, as if nothing but them were moved.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.case import ENGINE, Cell, Claim, Measured
from benchmarks.timing import claim_ratio, take_turns

CODE = ENGINE
ORDER = 0
WANTED = {1: 2.0, 2: 4.0}  # at this number of threads
STREAM_BYTES = 2**27  # of each of the three arrays: several times the last cache
CALLS = 20  # products in a round: the first ones find the other solver's data in the caches


def cells(tiny: bool) -> list[Cell]:
    rows = {
        "Pareto columns": {"name": "ratings", "users": 100_000, "items": 50_000, "per_user": 76.0, "seed": 0},
        "PPMI": {"name": "ppmi", "window": 5, "minimum": 5},
    }
    if tiny:
        rows = {"Pareto columns": rows["Pareto columns"] | {"users": 2000, "items": 1000, "per_user": 10.0}}
    return [
        Cell(f"{name}, {dtype}", {"data": spec, "columns": 16, "dtype": dtype})
        for name, spec in rows.items()
        for dtype in ("float32", "float64")
        if dtype == "float32" or name != "PPMI"
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    from eckart.matrix import as_matrix

    A = data.sparse(settings["data"]).astype(settings["dtype"])
    ours, columns = as_matrix(A), settings["columns"]
    rng = np.random.default_rng(0)
    claims, table = [], []
    bandwidth = _bandwidth(threads)
    for name, length, theirs, mine in (
        ("A X", A.shape[1], lambda X: A @ X, ours.matmat),
        ("Aᵀ Y", A.shape[0], lambda Y: A.T @ Y, ours.rmatmat),
    ):
        X = np.ascontiguousarray(rng.standard_normal((length, columns)), dtype=A.dtype)
        Y, expected = mine(X), theirs(X)
        np.testing.assert_allclose(Y, expected, rtol=0, atol=1e3 * np.finfo(A.dtype).eps * np.abs(expected).max())
        turns = take_turns({"scipy": _repeated(theirs, X), "eckart": _repeated(mine, X)}, seconds=8.0)
        moved = A.data.nbytes + A.indices.nbytes + A.indptr.nbytes + X.nbytes + Y.nbytes
        share = moved * CALLS / turns["eckart"].median / bandwidth
        wanted = WANTED.get(threads)
        claims.append(
            Claim(f"SciPy / Eckart, time of {name}", wanted=wanted, **claim_ratio(turns["scipy"], turns["eckart"]))
        )
        claims.append(Claim(f"share of bandwidth, {name}", share))
        table += [
            {
                "product": name,
                "by": by,
                "median ms": 1e3 * turn.median / CALLS,
                "GB/s": moved * CALLS / turn.median / 1e9,
            }
            for by, turn in turns.items()
        ]
    table.append({"product": "add of two arrays", "by": "numpy", "median ms": None, "GB/s": bandwidth / 1e9})
    return Measured(claims, table, data.describe(A) | {"columns": columns})


def _repeated(product: Any, X: np.ndarray) -> Any:
    def run() -> None:
        for _ in range(CALLS):
            product(X)

    return run


def _bandwidth(threads: int) -> float:
    """Return bytes per second of a = b + c, three arrays of STREAM_BYTES, by all threads: the best of five."""
    a, b, c = (np.ones(STREAM_BYTES // 8) for _ in range(3))
    blocks = np.array_split(np.arange(len(a)), threads)
    parts = [slice(int(block[0]), int(block[-1]) + 1) for block in blocks]

    def add(part: slice) -> None:
        np.add(b[part], c[part], out=a[part])

    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(add, parts))
            times.append(time.perf_counter() - start)
    return 3 * STREAM_BYTES / min(times)
