"""Measure what results/ does not hold yet, and write the page; called by `make bench`.

    python -m benchmarks.run [CASE ...] [--redo CASE ...] [--tiny] [--list]

A cell that is finished for the same case, settings, data and threads is skipped, whatever code and machine it was
measured with; --redo measures it again, "all" stands for every case. Each cell runs in a process of its own and becomes
one line of results/CASE.jsonl. Exit status: 1 a cell failed, 2 a wrong call or a bad line, 130 Ctrl-C; what is
finished stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records, report
from benchmarks.case import Cell, Claim, Measured
from benchmarks.records import ROOT, BadLine, Record

HERE = Path(__file__).resolve().parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # would make BLAS take kernels of another processor


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        return run(options)
    except BadLine as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; finished cells are kept, and `make bench` goes on from there")
        return 130


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Measure, and write docs/benchmarks.md.")
    parser.add_argument("case", nargs="*", help="the cases to look at; all of them where none is named")
    parser.add_argument("--redo", nargs="+", default=[], metavar="CASE", help='measure again; "all" for every case')
    parser.add_argument("--tiny", action="store_true", help="small versions, to test the cases; nothing is kept")
    parser.add_argument("--list", action="store_true", help="say what is finished, stale or missing; measure nothing")
    parser.add_argument("--cases", type=Path, default=HERE / "cases", metavar="DIR")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", metavar="FILE")
    options = parser.parse_args(arguments)
    known = list(records.load_cases(options.cases))
    if unknown := sorted({*options.case, *options.redo} - {*known, "all"}):
        parser.error(f"no case is called {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = {*options.case, *options.redo} or {"all"}
    options.case = [case for case in known if case in chosen or "all" in chosen]
    return options


def run(options: argparse.Namespace) -> int:
    failed = 0
    for case in options.case:
        redo = bool({case, "all"} & set(options.redo))
        failed += _run_case(case, redo, options)
    if not options.tiny and not options.list:
        report.write(options.page, options.cases, options.results)
    return 1 if failed else 0


def _run_case(case: str, redo: bool, options: argparse.Namespace) -> int:
    path = options.results / f"{case}.jsonl"
    code = records.code_hash(options.cases, case)
    finished = {} if options.tiny else {record.key: record for record in records.read(path)}
    failed = 0
    for cell in records.cells_of(records.load_case(options.cases, case), options.tiny):
        before: Record | None = None
        for threads in cell.threads:
            label = f"{case} / {cell.name} / {threads} thread{'s'[: threads > 1]}"
            record = finished.get(records.key(case, cell.name, cell.settings, threads))
            if options.list:
                _say(f"{label}: {'missing' if record is None else 'stale' if record.code != code else 'finished'}")
                continue
            if record is not None and not redo:
                _say(f"{label}: {'finished' if record.code == code else 'finished by older code; REDO measures again'}")
            else:
                usable = before.measured if before is not None and before.code == code else None
                record = _measure(case, cell, threads, usable, code, options)
                if record is None:
                    failed += 1
                    continue
                if options.tiny:
                    report.show(record)
                else:
                    records.append(path, record)
            before = record
    return failed


def _measure(
    case: str, cell: Cell, threads: int, before: Measured | None, code: str, options: argparse.Namespace
) -> Record | None:
    """Return what a process of its own measured, or None where it failed or took longer than the cell allows."""
    label = f"{case} / {cell.name} / {threads} thread{'s'[: threads > 1]}"
    _say(f"{label}: measuring (at most {cell.limit_s:g} s)")
    environment = {name: value for name, value in os.environ.items() if name not in FORCED}
    environment |= dict.fromkeys(THREADS, str(threads))
    with tempfile.TemporaryDirectory(prefix="eckart-bench-") as temporary:
        out = Path(temporary) / "result.json"
        job = {
            "folder": str(options.cases.resolve()),
            "case": case,
            "settings": cell.settings,
            "threads": threads,
            "before": None if before is None else dataclasses.asdict(before),
            "out": str(out),
        }
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.cell"],
                input=json.dumps(job), text=True, stdout=sys.stderr, cwd=ROOT, env=environment,
                timeout=cell.limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            _say(f"{label}: stopped after {cell.limit_s:g} s; not recorded")
            return None
        seconds = time.perf_counter() - start
        if done.returncode or not out.exists():
            _say(f"{label}: failed with status {done.returncode}; not recorded")
            return None
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    measured = result["measured"]
    claims = [Claim(**claim) for claim in measured.pop("claims")]
    _say(f"{label}: done in {seconds:.0f} s")
    return Record(
        case, cell.name, dict(cell.settings), threads, code, result["machine"], round(seconds, 1),
        Measured(claims=claims, **measured),
    )  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
