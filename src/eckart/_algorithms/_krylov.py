"""How a block Krylov process is run until k triplets are found: when to look at them, to restart, to probe, to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eckart._algorithms._block import Basis
from eckart._algorithms._factors import Factors, Task
from eckart.matrix import Operand

__all__ = ["SAFETY", "Process", "Ritz", "first_block", "room_for", "search"]

DENSE_WIDTH, SPARSE_WIDTH = 32, 16  # columns of a block: a product of fewer takes nearly as long
BASIS_RANKS, BASIS_BLOCKS = 4, 14  # columns of a basis: 4 k, or k and 14 blocks; more cost more than restarts
SPARE = 4  # Ritz vectors beyond k that are carried along, since they separate the k-th from what follows
SAFETY = 0.7  # of the tolerance, for residuals that are estimated
PROBE_WIDTH, PROBE_STEPS = 8, 3  # of the search for copies of a repeated value that the first block did not hold
MOST_STEPS = 3  # between two looks at the projected problem: a look costs less than a step, and convergence is sudden
STALE = 8  # restarts without progress, after which rounding error is what is left


@dataclass(frozen=True, eq=False)
class Ritz:
    """Approximations, best first: singular values, residuals as estimated, and the combinations of the bases.

    floor: the size, for each, below which the process cannot bring its residual.
    """

    values: Any
    errors: Any
    floor: Any
    right: Any
    left: Any = None


class Process(Protocol):
    """A basis that grows by a block a step, and the problem projected on it."""

    width: int  # of the newest block, which is part of the basis but not yet of the projected problem

    @property
    def size(self) -> int:
        """Return how many columns the projected problem has."""

    @property
    def full(self) -> bool:
        """Say whether there is no room for another step."""

    @property
    def exhausted(self) -> bool:
        """Say whether the projected problem is the whole one."""

    def step(self) -> None:
        """Multiply the newest block and let the basis grow by what is new in the product."""

    def ritz(self) -> Ritz:
        """Solve the projected problem."""

    def restart(self, ritz: Ritz, keep: int, fresh: int) -> None:
        """Keep so many Ritz vectors, and the newest block or, where fresh > 0, so many random columns instead."""

    def factors(self, ritz: Ritz, count: int) -> Factors:
        """Return the triplets of so many Ritz vectors."""


def first_block(V: Basis, task: Task, in_memory: bool) -> int:
    """Put the first block into the basis and return its width: random columns, or the start and a few of these."""
    if task.start is None:
        width = min(DENSE_WIDTH if in_memory else SPARSE_WIDTH, V.room)
        V.append_random(width)
        return width
    V.append(task.start, 1.0)
    V.append_random(min(PROBE_WIDTH if task.probe else 0, V.room))
    return V.size


def room_for(A: Operand, task: Task) -> int:
    """Return how many columns the basis may take."""
    width = DENSE_WIDTH if A.in_memory else SPARSE_WIDTH
    wide = 0 if task.start is None else task.start.shape[1] + PROBE_WIDTH
    return max(BASIS_RANKS * task.k, task.k + BASIS_BLOCKS * width, 4 * wide)


def search(process: Process, task: Task) -> Factors:
    """Return the factors that the process ends with: residuals within the tolerance, or at its floor.

    A small residual proves a triplet, not that it is one of the k largest: a block of p columns holds at most p copies
    of a repeated value. So the process goes on for a few steps from random columns, and is done when no value grows.
    """
    k, looks, lowest, stale = task.k, _Looks(), math.inf, 0
    settled = None if task.probe else np.full(task.k, math.inf)
    while True:
        process.step()
        if (process.size <= k and not process.full) or not looks.due(process.full):
            continue
        ritz = process.ritz()
        first = float(ritz.values[0])
        goals = np.maximum(np.maximum(SAFETY * task.tol * first, ritz.floor[:k]), np.finfo(float).tiny)
        task.report(int(np.sum(ritz.errors[:k] <= goals)))
        excess = float(np.max(ritz.errors[:k] / goals))
        looks.note(excess)
        if process.full:
            lowest, stale = (excess, 0) if excess < 0.9 * lowest else (lowest, stale + 1)
        if excess <= 1 or stale == STALE:
            noise = 2 * task.tol * first + ritz.floor[:k]
            grown = settled is None or bool(np.any(ritz.values[:k] - settled > noise))
            if process.exhausted or excess > 1 or not grown:
                return process.factors(ritz, k + SPARE)
            settled, looks = ritz.values[:k], _Looks()
            process.restart(ritz, k, fresh=PROBE_WIDTH)  # what has not converged has residuals that this would hide
            for _ in range(PROBE_STEPS - 1):
                process.step()
        elif process.full:
            process.restart(ritz, k + max(process.width, (process.size - k) // 3), fresh=0)


class _Looks:
    """When to solve the projected problem again, from how fast the excess over the goal fell between two looks."""

    def __init__(self) -> None:
        self.steps, self.wait, self.excess = 0, 0, math.inf

    def due(self, now: bool) -> bool:
        self.steps += 1
        return now or self.steps >= self.wait

    def note(self, excess: float) -> None:
        fall = math.log(self.excess / excess) / self.steps if 0 < excess < self.excess < math.inf else 0.0
        left = math.log(excess) / fall if fall > 0 and excess > 1 else MOST_STEPS
        self.steps, self.wait, self.excess = 0, min(max(int(left / 2), 1), MOST_STEPS), excess
