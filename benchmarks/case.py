"""What a file in cases/ offers, and what it gives back.

A case is a module. The first line of its docstring is its title on the page, the rest the text below it. It has

    CODE: tuple[str, ...]                            what of src/eckart it measures; a change there makes results stale
    ORDER: float                                     the page shows, and a run measures, the smallest first
    cells(tiny) -> list[Cell]                        what there is to measure; tiny: a version of seconds, for tests
    measure(settings, threads, before) -> Measured   one cell; runs in a process of its own

`before` is the Measured of the same cell at fewer threads, made by the same code, or None: settings that were searched
for once need no second search. Data is named in the settings and comes from `benchmarks.data`, which caches it; what is
drawn, is drawn from a seed in the settings. No number is printed that a cell did not measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ENGINE", "RANK", "Cell", "Claim", "Measured"]

ENGINE = (
    "_algorithms",
    "_arguments.py",
    "_arrays.py",
    "_decomposed.py",
    "_kernels",
    "_registry.py",
    "_svd.py",
    "matrix",
)
RANK = (*ENGINE, "_rank")


@dataclass(frozen=True)
class Cell:
    """One row: what is measured, at which numbers of threads, and the seconds after which a process is stopped.

    settings: JSON, with the data and every size in it; two cells with the same settings are the same measurement.
    """

    name: str
    settings: Mapping[str, Any]
    threads: tuple[int, ...] = (1, 2)
    limit_s: float = 900.0


@dataclass(frozen=True)
class Claim:
    """A figure beside the one that is wanted; wanted = None: printed, and no bar.

    at_most: the bar is an upper one. low, high: quartiles over the repeats. reached = None: there is no figure, and
    `note` says why; that misses every bar.
    """

    what: str
    reached: float | None
    wanted: float | None = None
    at_most: bool = False
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a cell found: claims; a table, rows with the same keys, printed as it is; facts, such as sizes of data."""

    claims: list[Claim] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
