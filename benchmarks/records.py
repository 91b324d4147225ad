"""Lines of results/*.jsonl: one for each finished cell and number of threads, in the order in which they were made."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.case import Cell, Claim, Measured

__all__ = ["BadLine", "Record", "append", "cells_of", "code_hash", "key", "load_case", "load_cases", "read"]

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {"case", "cell", "settings", "threads", "code", "machine", "seconds", "measured"}
SHARED = ("case.py", "data.py", "timing.py")  # what cases import,
MORE = {  # and some of them besides
    "contest": ("contest.py", "solvers.py"),
    "language_models": ("language_models.py",),
    "text_models": ("text_models.py",),
}


class BadLine(Exception):
    """A line of a results file that is not a record; names the file and the line."""


@dataclass(frozen=True)
class Record:
    """A finished cell. code: hash of the code that was measured; machine: facts; seconds: wall time of the process."""

    case: str
    cell: str
    settings: dict[str, Any]
    threads: int
    code: str
    machine: dict[str, Any]
    seconds: float
    measured: Measured

    @property
    def key(self) -> str:
        return key(self.case, self.cell, self.settings, self.threads)


def key(case: str, cell: str, settings: Mapping[str, Any], threads: int) -> str:
    """Return what makes two measurements the same one: case, cell, settings (data included) and threads."""
    return json.dumps([case, cell, settings, threads], sort_keys=True)


def append(path: Path, record: Record) -> None:
    """Add one line, whole or not at all: a single write, taken back where the disk took only a part of it."""
    text = json.dumps(asdict(record), allow_nan=False, ensure_ascii=False)
    line = (text + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(file).st_size
        if os.write(file, line) != len(line):
            os.ftruncate(file, before)
            raise OSError(f"no room for a line of {len(line)} bytes in {path}")
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[Record]:
    """Return the records of a results file; none where there is no file. BadLine: a line is cut, or is no record."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [_record(path, number, line) for number, line in enumerate(text.splitlines(), 1)]


def _record(path: Path, number: int, line: str) -> Record:
    try:
        values = json.loads(line, parse_constant=_refuse)
        if not isinstance(values, dict) or set(values) != FIELDS:
            raise ValueError(f"it must have exactly the fields {', '.join(sorted(FIELDS))}")
        measured = values.pop("measured")
        claims = [Claim(**claim) for claim in measured.pop("claims")]
        record = Record(**values, measured=Measured(claims=claims, **measured))
        if path.stem != record.case:
            raise ValueError(f"it is of case {record.case!r}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadLine(f"{path}, line {number}: {error}; take the line out, and measure that cell again") from error
    return record


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a figure")


def finite(x: float | None) -> float | None:
    """Return x, or None for NaN and infinity, which JSON does not have."""
    return None if x is None or not math.isfinite(x) else float(x)


def load_cases(folder: Path) -> dict[str, ModuleType]:
    """Return the modules of all cases by name, most important first: by their ORDER, a number."""
    modules = {path.stem: load_case(folder, path.stem) for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"}
    return dict(sorted(modules.items(), key=lambda item: item[1].ORDER))


def load_case(folder: Path, name: str) -> ModuleType:
    """Return the module of a case, which need not be part of a package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks.cases.{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up
    spec.loader.exec_module(module)
    return module


def code_hash(folder: Path, case: str, root: Path = ROOT) -> str:
    """Return a hash of the code that a case measures, the case and what cases share: names and bytes.

    Results of another one are stale.
    """
    digest = hashlib.sha256()
    for path in _measured_files(folder, case, load_case(folder, case).CODE, root):
        data = path.read_bytes()
        digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def _measured_files(folder: Path, case: str, code: Sequence[str], root: Path) -> Iterator[Path]:
    for part in sorted(code):
        source = root / "src" / "eckart" / part
        if not source.exists():
            raise FileNotFoundError(f"case {case} measures {source}, which is not there")
        files = source.rglob("*") if source.is_dir() else [source]
        yield from sorted(path for path in files if path.suffix in (".py", ".c", ".h", ".toml"))
    yield root / "CMakeLists.txt"
    text = (folder / f"{case}.py").read_text(encoding="utf-8")
    more = [name for module, names in MORE.items() if f"benchmarks.{module}" in text for name in names]
    yield from (path for name in (*SHARED, *more) if (path := root / "benchmarks" / name).exists())
    yield folder / f"{case}.py"


def cells_of(module: ModuleType, tiny: bool) -> list[Cell]:
    """Return the cells of a case, their settings as JSON would give them back."""
    return [Cell(c.name, json.loads(json.dumps(c.settings)), c.threads, c.limit_s) for c in module.cells(tiny)]
