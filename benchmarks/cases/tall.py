"""Tall matrices: the whole thin SVD, U wanted, of 500,000 x 200.

Singular values fall from 1 in equal ratios; they are known. The bar is NumPy's qr, then svd of R, then Q times U of R.
U must be as orthonormal as NumPy's and the values as exact, up to a factor that is stated with the bar.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.case import ENGINE, Cell, Claim, Measured
from benchmarks.timing import claim_ratio, take_turns

CODE = ENGINE
ORDER = 4
FASTER = 4.0
AS_EXACT = 10.0  # times NumPy's own deviation, or eps where NumPy's is below that
ROWS = (("float32", 1e4), ("float64", 1e4), ("float64", 1e10))


def cells(tiny: bool) -> list[Cell]:
    m, n = (3000, 20) if tiny else (500_000, 200)
    return [
        Cell(f"{dtype}, condition {c:.0e}", {"m": m, "n": n, "decay": f"condition {c:g}", "seed": 0, "dtype": dtype})
        for dtype, c in ROWS
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    import eckart

    A = data.dense(**settings)

    def by_qr() -> Any:
        Q, R = np.linalg.qr(A)
        U, s, Vt = np.linalg.svd(R)
        return Q @ U, s, Vt

    eckart.svd(A[:1000])
    turns = take_turns({"numpy": by_qr, "eckart": lambda: eckart.svd(A)})
    exact = data.singular_values(settings["n"], settings["decay"])
    eps = float(np.finfo(A.dtype).eps)
    off = {name: _deviations(turn.result, exact) for name, turn in turns.items()}
    claims = [Claim("NumPy's QR and SVD / Eckart, time", wanted=FASTER, **claim_ratio(turns["numpy"], turns["eckart"]))]
    for quantity in off["numpy"]:
        allowed = AS_EXACT * max(off["numpy"][quantity], eps)
        claims.append(Claim(quantity, off["eckart"][quantity], allowed, at_most=True))
    table = [
        {"solver": name, "median s": turn.median, "rounds": len(turn.seconds)} | off[name]
        for name, turn in turns.items()
    ]
    method = turns["eckart"].result.method
    return Measured(claims, table, data.describe(A) | {"condition": settings["decay"].split()[-1], "method": method})


def _deviations(factors: Any, exact: np.ndarray) -> dict[str, float]:
    U, s, Vt = factors
    eye = np.eye(len(s))
    return {
        "largest error of s / s_1": float(np.abs(s.astype(np.float64) - exact).max()),
        "‖UᵀU - I‖": float(np.linalg.norm(_gram(U) - eye, 2)),
        "‖VᵀV - I‖": float(np.linalg.norm(_gram(Vt.T) - eye, 2)),
    }


def _gram(U: np.ndarray) -> np.ndarray:
    """Return UᵀU in float64, some rows at a time."""
    total = np.zeros((U.shape[1], U.shape[1]))
    for start in range(0, len(U), 65_536):
        block = U[start : start + 65_536].astype(np.float64)
        total += block.T @ block
    return total
