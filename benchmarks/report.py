"""Write docs/benchmarks.md from results/: every figure on the page was measured by a cell, none is typed."""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import records
from benchmarks.case import Claim
from benchmarks.records import ROOT, Record
from eckart._files import write_whole

HERE = Path(__file__).resolve().parent
INTRODUCTION = """\
# Benchmarks

`make bench` wrote this page from `benchmarks/results`, and measures what is missing there; `make bench REDO=CASE`
measures a case again. Ratios are medians of rounds in which Eckart and its peers took turns in one process, with the
quartiles over the rounds in brackets; a ratio above one is in Eckart's favour. An error is the larger of
‖A v - s u‖ and ‖Aᵀ u - s v‖ over all triplets, divided by s_1, computed in float64 outside the timing. Each solver
runs at the loosest setting of a fixed grid that reaches the target; rounds = 0 stands for the one run of that search,
of a solver that does not contend. PRIMME has no wheels: it takes part where it could be compiled and linked with a BLAS
and a LAPACK of the system, and rows without it say so. Rows marked *stale* were measured with older code.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md from benchmarks/results.")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md", metavar="FILE")
    page = parser.parse_args().page
    write(page, HERE / "cases", HERE / "results")


def write(page: Path, cases: Path, results: Path, limits: Path = HERE / "limits.toml") -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(page) as file:
        file.write(render(cases, results, limits).encode())


def render(cases: Path, results: Path, limits: Path) -> str:
    """Return the page: a summary of all bars, then each case with its tables."""
    why = tomllib.loads(limits.read_text(encoding="utf-8")) if limits.exists() else {}
    modules = records.load_cases(cases)
    latest = {name: _together(module, _latest(results / f"{name}.jsonl")) for name, module in modules.items()}
    codes = {name: records.code_hash(cases, name) for name in modules}
    parts = [INTRODUCTION, _machines([record for rows in latest.values() for record in rows]), "## Bars\n"]
    parts.append(_bars(latest, codes))
    for name, module in modules.items():
        title, _, text = (module.__doc__ or name).partition("\n")
        parts += [f"## {title.rstrip('.')}\n", text.strip() + "\n"]
        groups: dict[str, list[Record]] = {}
        for record in latest[name]:
            groups.setdefault(record.cell, []).append(record)
        if not groups:
            parts.append("Not measured yet.\n")
        for cell, rows in groups.items():
            parts.append(_cell(cell, rows, codes[name], why.get(name, {}).get(cell, "")))
    return "\n".join(part for part in parts if part)


def show(record: Record) -> None:
    """Print one record as the page would show it."""
    print(_cell(f"{record.case}: {record.cell}", [record], record.code, ""), flush=True)


def _latest(path: Path) -> list[Record]:
    """Return the last record of each cell, in the order in which the cells were first measured."""
    found: dict[str, Record] = {}
    for record in records.read(path):
        found[record.key] = record
    by_cell: dict[tuple[str, int], Record] = {}  # settings that no longer exist give way to later ones
    for record in found.values():
        by_cell[record.cell, record.threads] = record
    return list(by_cell.values())


def _together(module: ModuleType, rows: list[Record]) -> list[Record]:
    """Return the records with, before them, what the case makes of all of them, if it does."""
    if not rows or not hasattr(module, "together"):
        return rows
    made = module.together([(record.settings, record.measured) for record in rows])
    stale = next((record for record in rows if record.code != rows[-1].code), rows[-1])
    return [replace(stale, cell="All cells together", settings={}, measured=made), *rows]


def _machines(rows: list[Record]) -> str:
    lines = sorted({_machine(record.machine) for record in rows})
    return "\n".join(f"Measured on: {line}\n" for line in lines)


def _machine(m: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    blas = ", ".join(m["blas"]) or "none found"
    return (
        f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}; {versions}; BLAS: {blas}; "
        f"kernels: {m['kernels']}."
    )


def _bars(latest: dict[str, list[Record]], codes: dict[str, str]) -> str:
    """Return one line for each claim that has a bar, with a column for each number of threads."""
    threads = sorted({record.threads for rows in latest.values() for record in rows})
    lines: dict[tuple[str, str, str], dict[int, str]] = {}
    for name, rows in latest.items():
        for record in rows:
            for claim in record.measured.claims:
                if claim.wanted is not None:
                    stale = " *stale*" if record.code != codes[name] else ""
                    line = lines.setdefault((name, record.cell, claim.what), {})
                    line[record.threads] = f"{_reached(claim)} of {_wanted(claim)}: {verdict(claim)}{stale}"
    if not lines:
        return "Nothing has been measured yet.\n"
    head = ["case", "row", "figure", *(f"{t} thread{'s'[: t > 1]}" for t in threads)]
    return _table(head, [[*which, *(line.get(t, "") for t in threads)] for which, line in lines.items()])


def verdict(claim: Claim) -> str:
    """Return "pass" or "miss", or "" for a claim without a bar; no figure misses."""
    if claim.wanted is None:
        return ""
    if claim.reached is None:
        return "**miss**"
    good = claim.reached <= claim.wanted if claim.at_most else claim.reached >= claim.wanted
    return "pass" if good else "**miss**"


def _cell(cell: str, rows: list[Record], code: str, limit: str) -> str:
    parts = [f"### {cell}\n"]
    if facts := rows[-1].measured.facts:
        parts.append("; ".join(f"{name}: {_text(value)}" for name, value in facts.items()) + ".\n")
    for record in rows:
        stale = ", stale" if record.code != code else ""
        parts.append(f"**{record.threads} thread{'s'[: record.threads > 1]}**{stale}\n")
        claims = record.measured.claims
        if claims:
            body = [[c.what, _reached(c), _wanted(c), verdict(c), c.note] for c in claims]
            parts.append(_table(["figure", "reached", "wanted", "", "remark"], body))
        if table := record.measured.table:
            parts.append(_table(list(table[0]), [[_text(value) for value in row.values()] for row in table]))
    if limit and any(verdict(c) == "**miss**" for record in rows for c in record.measured.claims):
        parts.append(f"What limits it: {limit.strip()}\n")
    return "\n".join(parts)


def _reached(claim: Claim) -> str:
    if claim.reached is None:
        return "none"
    if claim.low is None or claim.high is None:
        return _text(claim.reached)
    return f"{_text(claim.reached)} [{_text(claim.low)}, {_text(claim.high)}]"


def _wanted(claim: Claim) -> str:
    return "" if claim.wanted is None else f"{'≤' if claim.at_most else '≥'} {_text(claim.wanted)}"


def _text(value: Any) -> str:
    """Return a value as the page shows it: floats with three digits, which is more than repeats agree in."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_text(item)}" for name, item in value.items()) or "defaults"
    if isinstance(value, list):
        return " x ".join(map(_text, value))
    return str(value).replace("|", r"\|").replace("\n", " ")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
