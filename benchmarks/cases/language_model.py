"""Compression of a language model by every method, at equal parameters.

SmolLM2-135M-Instruct, calibrated on BBC news of which duplicates were dropped and a fifth of the documents held out.
Perplexity in non-overlapping pieces of 512 tokens on the held-out news (20,480 tokens) and on Python's documentation
(8,192 tokens), which the calibration has not seen the like of; divergence is KL(dense ‖ compressed) in nats a token.
Each row is a folder that `eckart compress` saved, measured by `eckart compare` in a fresh process beside the dense
model; a figure that is not finite is shown as such. Time is what the processors spent, not what passed: the machine did
other work meanwhile, and prefill and decode, timed by turns with the dense model, are only roughly so many times faster
(`language_model_time` measures them on a quiet machine). "pair" and "pifa" are how a layer of rank k is stored, so that
method and storage can be told apart. The weights are 4-bit values dequantised, so that no 4-bit row would mean
anything.

Recovery trains on the calibration text towards the outputs of the dense model. The dense model itself, given the same
training, stays as it is: its divergence from itself is zero, and so is the gradient. The minutes of a row are those of
the whole command, compression included.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Cell, Claim, Measured
from benchmarks.language_models import CACHE, CODE, DATA, OTHER, TEST, average, compared, eckart, row_of

__all__ = ["CODE", "ORDER", "cells", "measure", "together"]

ORDER = 0.5
SIZES = (0.9, 0.8, 0.6)
UNTRAINED = {0.9: 1.04, 0.8: 1.22, 0.6: 2.8}  # perplexity as a ratio to the dense model's, in domain: the bars
TRAINED = {0.9: 1.02, 0.8: 1.12, 0.6: 1.8}
OURS = "two-sided"
SEEDS = (0, 1, 2)
FOUR = ("two-sided", "lems", "mpifa", "kfac")  # the best four at 8,192 tokens: three seeds each, the others one
STORED = ("lems", "mpifa", "kfac", "svd-llm-update", "svd-llm", "svd-llm-v2", "input", "asvd", "fwsvd", "plain")
WHOLE = ("drop-layers", "slicegpt")  # change the model as a whole, so that neither storage nor a calibration is kept
ALONE = ("basis-sharing", *WHOLE)  # have one form of storage
GRID = [
    (OURS, "auto"),
    *((name, "pifa") for name in STORED),
    *((name, "auto") for name in ALONE),
    *((name, "pair") for name in (OURS, *STORED)),
]
STEPS = {0.9: 150, 0.8: 150, 0.6: 150}  # of 1,024 tokens


def cells(tiny: bool) -> list[Cell]:
    if tiny:
        job = {"tokens": 1024, "evaluated": [512, 512], "sizes": [0.8]}
        return [Cell("tiny", _settings("plain", "auto", 0) | job, (2,))]
    limit = 3 * 3600.0
    first = [(OURS, "auto", seed) for seed in SEEDS] + [(*each, 0) for each in GRID[1:]]
    more = [(*each, seed) for seed in SEEDS[1:] for each in GRID[1:] if each[0] in FOUR and each[1] != "pair"]
    found = [
        Cell(f"{method}, {storage}, seed {seed}", _settings(method, storage, seed), (2,), limit)
        for method, storage, seed in first + more
    ]
    trained = [
        Cell(
            f"{OURS}, recovery at {size:.0%}, seed {seed}",
            _settings(OURS, "auto", seed) | {"sizes": [size], "recover": f"{STEPS[size]} steps"},
            (2,),
            limit,
        )
        for seed in SEEDS
        for size in SIZES
    ]
    return [*found[: len(first)], *trained[: len(SIZES)], *found[len(first) :], *trained[len(SIZES) :]]


def _settings(method: str, storage: str, seed: int) -> dict[str, Any]:
    return {
        "data": DATA,
        "method": method,
        "storage": storage,
        "tokens": 32768,
        "context": 512,
        "evaluated": [20480, 8192],
        "sizes": list(SIZES),
        "seed": seed,
    }


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    data, recover = settings["data"], settings.get("recover")
    with tempfile.TemporaryDirectory(prefix="eckart-bench-") as temporary:
        folder = Path(temporary)
        kept = [] if settings["method"] in WHOLE else ["--calibration", folder / "calibration"]
        made = {}
        for size in settings["sizes"]:
            before = _processor_seconds()
            plan, wall, peak = eckart([
                "compress", CACHE / data["model"], "--keep", size, "--method", settings["method"],
                "--storage", settings["storage"], "--data", CACHE / "texts" / data["train"],
                "--tokens", settings["tokens"], "--context", settings["context"],
                "--seed", settings["seed"], *kept, "-o", folder / str(size),
                *(["--recover", recover] if recover else []),
            ])  # fmt: skip
            made[size] = plan, wall, _processor_seconds() - before, peak
        dense, *models = compared(settings, [folder / str(size) for size in settings["sizes"]])
    table = []
    for size, one in zip(settings["sizes"], models, strict=True):
        plan, wall, seconds, peak = made[size]
        table.append({"keep": size} | row_of(one, dense) | {
            "predicted loss": plan["predicted_loss_increase"],
            "processor seconds": round(seconds), "peak MB": round(peak / 1e6),
            **(_recovered(plan["recovery"], wall) if recover else {}),
        })  # fmt: skip
    facts = {f"dense perplexity on {name}": dense["quality"][name]["perplexity"] for name in (TEST, OTHER)}
    return Measured([], table, facts)


def _processor_seconds() -> float:
    """Return the seconds that the processors worked for the processes started here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _recovered(recovery: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {"steps": recovery["steps"], "kept": recovery["kept"], "minutes": round(seconds / 60, 1)}


def together(found: Sequence[tuple[Mapping[str, Any], Measured]]) -> Measured:
    """Return the means over seeds, our bars, and whether every baseline is worse at every size, in and out of domain.

    found: settings and figures of every finished cell.
    """
    runs: dict[tuple[str, str, bool, float], list[dict[str, Any]]] = {}
    for settings, measured in found:
        for row in measured.table:
            of = (settings["method"], settings["storage"], "recover" in settings, row["keep"])
            runs.setdefault(of, []).append(row)
    table = [_mean(*of, rows) for of, rows in sorted(runs.items(), key=lambda item: (item[0][2], -item[0][3]))]
    return Measured([*_bars(runs), *_against(runs)], table)


def _mean(method: str, storage: str, trained: bool, size: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means: dict[str, Any] = {"keep": size, "method": f"{method}, {storage}" + (" + recovery" if trained else "")}
    means["seeds"] = len(rows)
    for name in (TEST, OTHER):
        for figure in ("ratio", "divergence"):
            means[f"{figure} on {name}"] = average([row[f"{figure} on {name}"] for row in rows])
    for figure in (f"same likeliest token on {TEST}", "bytes", "prefill", "decode", "processor seconds", "peak MB"):
        means[figure] = average([row.get(figure) for row in rows])
    return means


def _bars(runs: Mapping[tuple[str, str, bool, float], Sequence[Mapping[str, Any]]]) -> Iterator[Claim]:
    for trained, wanted in ((False, UNTRAINED), (True, TRAINED)):
        for size, bar in wanted.items():
            ratios = [row[f"ratio on {TEST}"] for row in runs.get((OURS, "auto", trained, size), ())]
            what = f"perplexity ratio at {size:.0%}" + (", with recovery" if trained else "")
            if len(ratios) < len(SEEDS):
                yield Claim(what, None, bar, at_most=True, note=f"{len(ratios)} of {len(SEEDS)} seeds measured")
            else:
                yield Claim(what, statistics.fmean(ratios), bar, at_most=True, low=min(ratios), high=max(ratios),
                            note="low and high of the seeds")  # fmt: skip


def _against(runs: Mapping[tuple[str, str, bool, float], Sequence[Mapping[str, Any]]]) -> Iterator[Claim]:
    """The smallest perplexity of any baseline over the largest of ours."""
    for size in SIZES:
        for name in (TEST, OTHER):
            ours = [row[f"ratio on {name}"] for row in runs.get((OURS, "auto", False, size), ())]
            others = {
                of: average([row[f"ratio on {name}"] for row in rows])
                for of, rows in runs.items()
                if of[0] not in (OURS, "input") and not of[2] and of[3] == size
            }
            finite = {of: value for of, value in others.items() if isinstance(value, float)}
            if ours and finite:
                best = min(finite, key=finite.__getitem__)
                yield Claim(f"best baseline / ours, perplexity on {name} at {size:.0%}", finite[best] / max(ours), 1.0,
                            note=f"{best[0]}, {best[1]}, of {len(others)} baselines")  # fmt: skip
