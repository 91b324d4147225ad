"""Rank rules: how often each finds the number of components exactly.

A matrix is low rank plus noise of mean square 1. Its r components have uniformly random orthonormal vectors and
singular values that fall evenly from 1.6 to 1 times strength times (m n)^(1/4), the BBP threshold of white noise of
that mean square; strength 0 is noise alone. `white`: Gaussian. `column-unequal`: its columns times lognormal(0, 0.5),
scaled to mean square 1. `scaled columns`: the components times the same, so that nothing is gained where there is less
noise. `row-unequal`, and `row- and column-unequal`: accordingly. `t4`: Student's t with 4 degrees of freedom. Seeds
start at 0; the rules were made on seeds from 10000 on. In large matrices only `auto` is asked. The generator is
inferred from the description of an earlier study, which does not say how unequal noise was scaled.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.case import RANK, Cell, Claim, Measured

CODE = RANK
ORDER = 8
RULES = ("auto", "evbmf", "gavish-donoho", "whitened", "parallel")
ALL_RULES = 100_000  # entries up to which all of them are asked
SPREAD = 0.5  # standard deviation of the logarithm of unequal scales
WANTED = {"t4": 0.90}  # of auto, from strength 2 on; other noise, and no component at all: 0.97
WANTED_MANY = 0.90  # with a tenth of all components in the matrix
SMALL = ("white", "column-unequal", "scaled columns", "row-unequal", "row- and column-unequal", "t4")
LARGE = ("white", "column-unequal", "t4")
SIZES = (  # m, n, r, noises, strengths, seconds
    (300, 100, 5, SMALL, (0, 1.3, 2, 4), 1800),
    (100, 300, 5, SMALL, (0, 1.3, 2, 4), 1800),
    (500, 500, 50, LARGE, (2, 4), 3600),
    (1000, 1000, 5, LARGE, (0, 2, 4), 3600),
    (3000, 300, 5, LARGE, (0, 2, 4), 3600),
    (3000, 3000, 5, LARGE, (0, 2), 14400),
)


def cells(tiny: bool) -> list[Cell]:
    chosen = [(60, 40, 2, ("white", "t4"), (0, 4), 600)] if tiny else SIZES
    return [
        Cell(
            f"{m} x {n}, rank {r}, {noise}",
            {"m": m, "n": n, "r": r, "noise": noise, "strengths": list(strengths), "seeds": 3 if tiny else 100},
            threads=(1,),
            limit_s=seconds,
        )
        for m, n, r, noises, strengths, seconds in chosen
        for noise in noises
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    """Return how often `auto` is exact, and the other rules beside it; seeds are shared out among the cores."""
    m, n, r, noise = (settings[name] for name in ("m", "n", "r", "noise"))
    claims, table = [], []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for strength in settings["strengths"]:
            one_seed = partial(answers, m, n, r if strength else 0, strength, noise)
            found = list(pool.map(one_seed, range(settings["seeds"])))
            truth = r if strength else 0
            wanted = _wanted(noise, r / min(m, n), strength)
            claims.append(Claim(f"auto exact at strength {strength:g}", _exact(found, "auto", truth), wanted))
            row: dict[str, Any] = {"strength": strength, "true rank": truth}
            for rule in found[0]:
                row[rule] = f"{_exact(found, rule, truth):.0%} (median {median(a[rule] for a in found):g})"
            table.append(row)
    return Measured(claims, table, {"seeds": settings["seeds"]})


def answers(m: int, n: int, r: int, strength: float, noise: str, seed: int) -> dict[str, int]:
    """Return the rank of one drawn matrix by every rule that finds it without being told how much to keep."""
    import eckart

    A = draw(m, n, r, strength, noise, seed)
    rules = RULES if A.size <= ALL_RULES else RULES[:1]
    return {rule: int(eckart.choose_rank(A, rule=rule)) for rule in rules}


def draw(m: int, n: int, r: int, strength: float, noise: str, seed: int) -> NDArray[np.float64]:
    """Return low rank plus noise, (m, n), as the docstring of the module describes it."""
    random = np.random.default_rng(seed)
    U, V = (np.linalg.qr(random.standard_normal((size, r)))[0] for size in (m, n))
    N = random.standard_t(4, (m, n)) / np.sqrt(2) if noise == "t4" else random.standard_normal((m, n))
    rows = columns = np.ones(1)
    if noise in ("row-unequal", "row- and column-unequal"):
        rows = _scales(random, m)[:, None]
    if noise in ("column-unequal", "scaled columns", "row- and column-unequal"):
        columns = _scales(random, n)
    low = (U * np.linspace(1.6, 1, r) * strength * (m * n) ** 0.25) @ V.T
    return (low + N) * columns if noise == "scaled columns" else low + N * rows * columns


def _scales(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    scales = random.lognormal(0, SPREAD, size)
    return scales / np.sqrt(np.mean(scales**2))


def _exact(found: list[dict[str, int]], rule: str, truth: int) -> float:
    return sum(answer[rule] == truth for answer in found) / len(found)


def _wanted(noise: str, share: float, strength: float) -> float | None:
    if 0 < strength < 2:
        return None
    if strength and share >= 0.1:
        return WANTED_MANY
    return WANTED.get(noise, 0.97) if strength else 0.97
