"""Size and quality of a language model in bytes, with int8.

SmolLM2-135M-Instruct, float16 in 269 MB, at fractions of these bytes: of low rank in float16 alone; of low rank and
int8, of which every layer takes what is predicted to lose least; and int8 alone, which has one size. All of method
two-sided with 32,768 calibration tokens, perplexity as in the table by parameters. Norms stay float16 throughout. The
weights are 4-bit values dequantised, which flatters int8: it rounds what was rounded before.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Cell, Claim, Measured
from benchmarks.language_models import CACHE, CODE, DATA, OTHER, TEST, average, compared, eckart, row_of

__all__ = ["CODE", "ORDER", "cells", "measure", "together"]

ORDER = 0.6
SIZES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3)
FORMS = {"low rank": "float16", "low rank and int8": "float16,int8"}
INT8 = "int8"


def cells(tiny: bool) -> list[Cell]:
    settings = {"data": DATA, "tokens": 32768, "context": 512, "evaluated": [20480, 8192], "sizes": list(SIZES)}
    if tiny:
        job = {"tokens": 1024, "evaluated": [512, 512], "sizes": [0.7]}
        return [Cell("tiny", settings | job | {"seed": 0}, (2,))]
    return [Cell(f"seed {seed}", settings | {"seed": seed}, (2,), 4 * 3600.0) for seed in (0, 1, 2)]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    data = settings["data"]
    model = CACHE / data["model"]
    with tempfile.TemporaryDirectory(prefix="eckart-bench-") as temporary:
        folder = Path(temporary)
        outs = {(INT8, None): folder / INT8}
        eckart(["compress", model, "--method", INT8, "-o", outs[INT8, None]])
        for form, dtype in FORMS.items():
            for size in settings["sizes"]:
                outs[form, size] = folder / f"{form} {size}"
                eckart([
                    "compress", model, "--cost", "bytes", "--keep", size, "--dtype", dtype,
                    "--data", CACHE / "texts" / data["train"], "--tokens", settings["tokens"],
                    "--context", settings["context"], "--seed", settings["seed"],
                    "--calibration", folder / "calibration", "-o", outs[form, size],
                ])  # fmt: skip
        dense, *models = compared(settings, list(outs.values()))
    table = [{"form": form, "keep": size} | row_of(one, dense) for (form, size), one in zip(outs, models, strict=True)]
    return Measured([], table, {"dense bytes": dense["file_bytes"]})


def together(found: Sequence[tuple[Mapping[str, Any], Measured]]) -> Measured:
    """Return the means over seeds, and at each size below int8's whether both beat low rank alone, and int8."""
    runs: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for _, measured in found:
        for row in measured.table:
            runs.setdefault((row["form"], row["keep"]), []).append(row)
    columns = [f"{figure} on {name}" for name in (TEST, OTHER) for figure in ("ratio", "divergence")]
    means: dict[tuple[str, float | None], dict[str, Any]] = {
        of: {column: average([row[column] for row in rows]) for column in ("bytes", *columns)}
        for of, rows in sorted(runs.items(), key=lambda item: -statistics.fmean(row["bytes"] for row in item[1]))
    }
    table = [{"form": form, "seeds": len(runs[form, keep])} | row for (form, keep), row in means.items()]
    return Measured([claim for name in (TEST, OTHER) for claim in _claims(means, name)], table)


def _claims(means: Mapping[tuple[str, float | None], Mapping[str, Any]], name: str) -> Iterator[Claim]:
    low, both = FORMS
    whole, column = means[INT8, None], f"ratio on {name}"
    for form, keep in means:
        mixed = means[form, keep]
        if form == both and mixed["bytes"] < whole["bytes"] and isinstance(mixed[column], float):
            size = mixed["bytes"] / whole["bytes"]
            alone = means[low, keep][column]
            if isinstance(alone, float):
                yield Claim(f"low rank alone / with int8, perplexity on {name} at {size:.0%} of int8's bytes",
                            alone / mixed[column], 1.0)  # fmt: skip
            yield Claim(f"int8 alone / low rank with int8, perplexity on {name} at {size:.0%} of int8's bytes",
                        whole[column] / mixed[column], note="below one: the bytes saved cost quality")  # fmt: skip
