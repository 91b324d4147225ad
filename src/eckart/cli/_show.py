"""Results on stdout: tables for people, JSON for programs; and the report beside them."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eckart.cli._run import print_json

__all__ = ["command_line", "show_comparison", "show_plan", "show_svd"]

PIPE_WIDTH = 160  # columns, where no terminal says how many it has


def command_line() -> str:
    """Return what the user typed, as a shell would take it."""
    return shlex.join(["eckart", *sys.argv[1:]])


def show_comparison(result: dict[str, Any], *, as_json: bool, report: Path | None) -> None:
    """Print a measurement, schema "eckart.compare/1", its bad news first, and write its report."""
    from eckart._table import headline, rows
    from eckart.report import write_report

    if report is not None:
        write_report(result, report)
    if as_json:
        print_json(result)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head, *lines = ([Text(cell) for cell in line] for line in rows(result))
    table = Table(title=Text(headline(result)), title_justify="left", title_style="bold")
    for cell in head:
        table.add_column(cell)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if report is not None:
        print(f"report: {report}", file=sys.stderr)


def show_plan(plan: Any, *, as_json: bool, saved: Any = None) -> None:
    """Print a plan; and where the model was saved, if it was, with the sizes of input and output."""
    if as_json:
        sizes = {} if saved is None else {"bytes": saved.input_bytes, "input_bytes": saved.source_bytes}
        recovery = None if saved is None or saved.recovery is None else asdict(saved.recovery)
        where = None if saved is None else {"path": saved.path, **sizes}
        print_json({**plan.to_json(), "recovery": recovery, "saved": where})
        return
    if saved is not None:
        grown = "" if saved.input_bytes <= saved.source_bytes else " (MORE than the input file's)"
        print(f"{saved.path}: {saved.input_bytes:,} bytes of weights{grown}, from {saved.source_bytes:,} in the input")
        if plan.options and not saved.replaced:
            print("an ordinary dense checkpoint: it saves nothing; the sizes below are those of the factored format")
        print(plan.summary())
        if saved.recovery is not None:
            from eckart._table import recovered

            print(f"recovery: {recovered(saved.recovery)}")
        if Path(saved.path).is_dir():  # what is saved as one file is no language model, which compare is for
            print(f"next: eckart compare MODEL {shlex.quote(saved.path)} --evaluate test.txt", file=sys.stderr)
    else:
        print(plan)


def show_svd(found: Any, *, as_json: bool, values_only: bool, saved: Path | None) -> None:
    """Print singular values with their residuals, what they leave out, and how they were found: schema "eckart.svd/1".

    A bound of which nothing is known is null in JSON.
    """
    (m, n), s, residuals = (found.U.shape[0], found.Vt.shape[1]), found.s.tolist(), found.residuals.tolist()
    bounds = {name: getattr(found.error, name) for name in ("spectral", "frobenius", "failure")}
    if as_json:
        print_json(
            {
                "schema": "eckart.svd/1",
                "shape": [m, n],
                "s": s,
                "residuals": residuals,
                "error": {name: bound if math.isfinite(bound) else None for name, bound in bounds.items()},
                "method": found.method,
                "passes": found.passes,
                "converged": found.converged,
                "saved": None if saved is None else str(saved),
            }
        )
    elif values_only:
        for value in s:
            print(value)
    else:
        print(f"{m} x {n}: {len(s)} singular values by {found.method}, which read the matrix {found.passes} times")
        chance = f", but for a probability of {bounds['failure']:.0e}" if bounds["failure"] else ""
        print(f"left out: at most {bounds['spectral']:.4g} spectral, {bounds['frobenius']:.4g} Frobenius{chance}")
        print(f"{'i':>6}  {'s':>14}  {'residual':>10}")
        for i, (value, residual) in enumerate(zip(s, residuals, strict=True), start=1):
            print(f"{i:6}  {value:14.8g}  {residual:10.2g}")
    if not found.converged:
        print("warning: the residuals are above what was asked for, or a larger value was missed", file=sys.stderr)
    if saved is not None and not as_json:
        print(f"saved: {saved}", file=sys.stderr)
