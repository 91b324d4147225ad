"""How a block Krylov process is run until k triplets are found: when to look at them, to restart, to probe, to stop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._algorithms._block import Basis
from eckart._algorithms._factors import Factors, Task
from eckart._arrays import Array
from eckart.matrix import Operand

__all__ = ["SAFETY", "Process", "Ritz", "basis_columns", "search"]

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


class Process(ABC):
    """A basis V that grows by a block a step, and the problem projected on it.

    width: of the newest block, which is part of the basis but not yet of the projected problem. before: of the block
    before it. R: what the last product leaves outside the basis is (newest block) R, in the columns of that block.
    """

    def __init__(self, A: Operand, task: Task, overlap: float | None = None) -> None:
        space, n = A.space, A.shape[1]
        self.A, self.task = A, task
        self.V = Basis(space, n, _room_for(A, task), task.draws(space, n), overlap)
        self.projected = np.zeros((self.V.capacity, self.V.capacity))
        self.R = np.zeros((0, 0))
        self.scale = 0.0
        self.size, self.before = 0, 0
        self.width = _first_block(self.V, task, A.in_memory)

    @property
    def full(self) -> bool:
        """Say whether there is no room for another step."""
        return self.exhausted or (self.V.room < self.width and self.V.capacity < self.V.length)

    @property
    def exhausted(self) -> bool:
        """Say whether the projected problem is the whole one."""
        return self.size == self.V.length

    @abstractmethod
    def step(self) -> None:
        """Multiply the newest block and let the basis grow by what is new in the product."""

    @abstractmethod
    def ritz(self) -> Ritz:
        """Solve the projected problem."""

    @abstractmethod
    def factors(self, ritz: Ritz, count: int) -> Factors:
        """Return the triplets of so many Ritz vectors."""

    @abstractmethod
    def values_projected(self, s: Any) -> Any:
        """Return the diagonal of the projected problem of triplets with these singular values."""

    def restart(self, ritz: Ritz, keep: int, fresh: int) -> None:
        """Keep so many Ritz vectors, and the newest block or, where fresh > 0, so many random columns instead."""
        keep = min(keep, self.size)
        self.V.rotate(ritz.right[:, :keep], 0 if fresh else self.width)
        self.projected[:] = 0
        self.projected[range(keep), range(keep)] = self.values_projected(ritz.values[:keep])
        self.size, self.before = keep, keep
        if fresh:
            self.width = self.V.append_random(fresh)

    def grow(self, W: Array) -> None:
        """Count the newest block to the projected problem, and add what is left of its product as the next one."""
        self.size, self.before = self.V.size, self.width
        self.R = self.V.append(W, self.scale)
        self.width = len(self.R)


def _first_block(V: Basis, task: Task, in_memory: bool) -> int:
    """Put the first block into the basis and return its width: random columns, or the start and a few of these."""
    if task.start is None:
        return V.append_random(block_width(in_memory))
    V.append(task.start, 1.0)
    V.append_random(PROBE_WIDTH if task.probe else 0)
    return V.size


def _room_for(A: Operand, task: Task) -> int:
    """Return how many columns the basis may take."""
    wide = 0 if task.start is None else task.start.shape[1] + PROBE_WIDTH
    return max(basis_columns(task.k, A.in_memory), 4 * wide)


def block_width(in_memory: bool) -> int:
    return DENSE_WIDTH if in_memory else SPARSE_WIDTH


def basis_columns(k: int, in_memory: bool) -> int:
    """Return how many columns a basis takes that starts from random ones."""
    return max(BASIS_RANKS * k, k + BASIS_BLOCKS * block_width(in_memory))


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
