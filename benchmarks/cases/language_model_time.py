"""A language model chosen by measured time.

SmolLM2-135M-Instruct at 60 % of its parameters' bytes, where the options of each layer are weighed by the milliseconds
that they take on this machine, prefill of 256 tokens and decode counting alike. What was saved is timed beside the
dense model in a fresh process: same type, threads and cache, in turns. Ratios above one are in its favour.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Cell, Claim, Measured
from benchmarks.language_models import CACHE, CODE, DATA, OTHER, TEST, compared, eckart, row_of

__all__ = ["CODE", "ORDER", "cells", "measure", "together"]

ORDER = 0.7
BARS = {"prefill": 1.25, "decode": 1.2}
PERPLEXITY = 2.8  # the bar of the row by parameters at 60 %


def cells(tiny: bool) -> list[Cell]:
    settings = {"data": DATA, "tokens": 32768, "context": 512, "evaluated": [20480, 8192], "size": 0.6, "time": 0.79}
    if tiny:
        job = {"tokens": 1024, "evaluated": [512, 512], "time": 0.9}
        return [Cell("tiny", settings | job | {"seed": 0}, (2,))]
    return [Cell(f"seed {seed}", settings | {"seed": seed}, (2,), 3600.0) for seed in (0, 1, 2)]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    data = settings["data"]
    model = CACHE / data["model"]
    dense_bytes = eckart(["plan", model, "--keep", 1, "--method", "plain"])[0]["bytes_after"]
    with tempfile.TemporaryDirectory(prefix="eckart-bench-") as temporary:
        out = Path(temporary) / "out"
        eckart([
            "compress", model, "--cost", "ms", "--keep", settings["time"],
            "--size", int(settings["size"] * dense_bytes), "--data", CACHE / "texts" / data["train"],
            "--tokens", settings["tokens"], "--context", settings["context"], "--seed", settings["seed"], "-o", out,
        ])  # fmt: skip
        dense, one = compared(settings, [out])
    row = row_of(one, dense) | {"parameters kept": one["parameters"] / dense["parameters"]}
    claims = [
        Claim(phase, one[phase]["ratio"][1], bar, low=one[phase]["ratio"][0], high=one[phase]["ratio"][2])
        for phase, bar in BARS.items()
    ]
    facts = {"dense bytes": dense["file_bytes"], "bytes": one["file_bytes"]}
    return Measured(claims, [row], facts)


def together(found: Sequence[tuple[Mapping[str, Any], Measured]]) -> Measured:
    """Return the means over seeds beside the bars."""
    rows = [row for _, measured in found for row in measured.table]
    claims = [_mean(phase, [row[phase] for row in rows], bar) for phase, bar in BARS.items()]
    for name, bar in ((TEST, PERPLEXITY), (OTHER, None)):
        ratios = [row[f"ratio on {name}"] for row in rows]
        claims.append(_mean(f"perplexity ratio on {name}", ratios, bar, at_most=True))
    claims.append(_mean("parameters kept", [row["parameters kept"] for row in rows], 0.6, at_most=True))
    return Measured(claims, rows)


def _mean(what: str, values: Sequence[float], bar: float | None, *, at_most: bool = False) -> Claim:
    note = f"{len(values)} seeds, lowest and highest"
    return Claim(what, statistics.fmean(values), bar, at_most=at_most, low=min(values), high=max(values), note=note)
