"""What compressing a language model takes.

Time and memory of a run at 80 % of the parameters, from a folder of safetensors to the checked folder of the result.
Time beside a forward pass of the dense model over the same calibration tokens, in the same run, before and after;
memory above what the process held once torch, transformers and Eckart were imported, beside the weights in float32.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.case import Cell, Claim, Measured
from benchmarks.language_models import CACHE, CODE, DATA, measured

__all__ = ["CODE", "ORDER", "cells", "measure"]

ORDER = 0.8
PASSES, WEIGHTS = 12.0, 2.5
FORWARD = """
import json, sys, time, torch, eckart
from eckart.models._texts import contexts, read_texts
model, text, tokens, context = eckart.open_model(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
(pieces,) = (contexts(model.tokenizer, t, context=context, count=tokens // context, seed=0) for t in read_texts(text))
batches = pieces.split(max(1, 1024 // context))
model.run(batches[0])
start = time.perf_counter()
for batch in batches:
    model.run(batch)
print(json.dumps({"seconds": time.perf_counter() - start, "tokens": pieces.numel(), "parameters": model.parameters}))
"""
COMPRESS = """
import json, os, resource, sys, time, torch, transformers, eckart, eckart.hf
from pathlib import Path
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, start = held(), time.perf_counter()
eckart.compress(sys.argv[1], float(sys.argv[5]), data=sys.argv[2], tokens=int(sys.argv[3]), context=int(sys.argv[4]),
                out=sys.argv[6], dtype="float16")
seconds = time.perf_counter() - start
peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
print(json.dumps({"seconds": seconds, "bytes": peak - before}))
"""
DENSE = """
import json, sys, eckart
eckart.compress(sys.argv[1], 1.0, method="plain", dtype="float16", format="dense", out=sys.argv[2])
print(json.dumps({}))
"""


def cells(tiny: bool) -> list[Cell]:
    settings = {"data": {name: DATA[name] for name in ("model", "train")}, "context": 512, "keep": 0.8}
    if tiny:
        return [Cell("tiny", settings | {"tokens": 1024}, (2,))]
    return [
        Cell(f"{tokens:,} calibration tokens", settings | {"tokens": tokens}, (2,), 3600.0) for tokens in (32768, 8192)
    ]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    data, text = settings["data"], str(CACHE / "texts" / settings["data"]["train"])
    with tempfile.TemporaryDirectory(prefix="eckart-bench-") as temporary:
        dense, out = str(Path(temporary) / "dense"), str(Path(temporary) / "out")
        _run(DENSE, CACHE / data["model"], dense)
        job = (dense, text, settings["tokens"], settings["context"])
        first = _run(FORWARD, *job)
        made = _run(COMPRESS, *job, settings["keep"], out)
        second = _run(FORWARD, *job)
    forward = [run["seconds"] for run in (first, second)]
    passes, weights = made["seconds"] / statistics.fmean(forward), made["bytes"] / (4 * first["parameters"])
    claims = [
        Claim("time / forward pass over the calibration tokens", passes, PASSES, at_most=True,
              low=made["seconds"] / max(forward), high=made["seconds"] / min(forward), note="beside either pass"),
        Claim("memory above imports / weights in float32", weights, WEIGHTS, at_most=True),
    ]  # fmt: skip
    facts = {"calibration tokens": first["tokens"], "seconds": round(made["seconds"]), "bytes": made["bytes"]}
    return Measured(claims, [], facts)


def _run(code: str, *arguments: Any) -> Any:
    return measured([sys.executable, "-c", code, *map(str, arguments)])[0]
