"""`eckart inspect MODEL`: what a model is, and which of its matrices could be compressed, from file headers alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from eckart.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

    from eckart.models._inspect import Inspection

__all__ = ["SORTS", "inspection_shown", "render"]

_Row = Mapping[str, Any]
_PIPE_WIDTH = 200

SORTS: dict[str, Callable[[_Row], Any]] = {
    "name": lambda row: 0,  # the files' order
    "params": lambda row: -row["parameters"],
    "bytes": lambda row: -row["bytes"],
}


def inspection_shown(found: Inspection, *, sort: str = "name", limit: int = 0, tree: bool = False) -> None:
    """Print what was found on stdout; see `render`. A pipe gets long lines, so that a name stays in one of them."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(render(found.to_json(), sort=sort, limit=limit, tree=tree))


def render(document: _Row, *, sort: str = "name", limit: int = 0, tree: bool = False) -> RenderableType:
    """Return a document of schema eckart.inspect/1 for a terminal: a summary, then the matrices, like ones in one row.

    limit: the number of rows, 0 for all. tree: all tensors as a tree in their place, whatever the limit. UsageError:
    `sort` is not one of SORTS.
    """
    if sort not in SORTS:
        raise UsageError(f"cannot sort by {sort!r}", fix=f"one of {', '.join(SORTS)}")
    from rich.console import Group

    return Group(_summary(document), "", _tree(document, sort) if tree else _table(document, sort, limit))


def _summary(document: _Row) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from eckart.models._sizes import format_size

    total = max(1, document["parameters"])
    dtypes = ", ".join(f"{dtype} {_percent(count / total)}" for dtype, count in document["dtypes"].items())
    share = sum(matrix["share"] for matrix in document["matrices"])
    rows = {
        "model": document["name"],
        "kind": " ".join(filter(None, (document["kind"], document["architecture"]))),
        "licence": document["licence"],
        "blocks": document["blocks"],
        "parameters": f"{document['parameters']:,} in {len(document['tensors'])} tensors",
        "on disk": f"{format_size(document['bytes'])} ({document['bytes']:,} B) in {_count(document['files'], 'file')}",
        "types": dtypes,
        "tied": "; ".join(" = ".join(group) for group in document["tied"]),
        "matrices": f"{len(document['matrices'])} that could be compressed, {_percent(share)} of the parameters",
        "code": "asks to run code from the hub; Eckart does not" if document["remote_code"] else "",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value not in (None, ""):
            table.add_row(Text(name, style="dim"), Text(printable(str(value))))
    return table


def _table(document: _Row, sort: str, limit: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    alike: dict[tuple[Any, ...], list[_Row]] = {}
    for matrix in document["matrices"]:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", matrix["name"])
        key = (pattern, matrix["rows"], matrix["columns"], matrix["rank"], matrix["dtype"])
        alike.setdefault(key, []).append(matrix)
    factored = any(matrix["rank"] is not None for matrix in document["matrices"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("matrix", overflow="fold")
    headings = ["count", "rows × columns", "type", *(["rank"] if factored else []), "saves below rank", "share"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    rows = sorted(((key, _total(group)) for key, group in alike.items()), key=lambda row: SORTS[sort](row[1]))
    for (pattern, m, n, rank, dtype), total in rows[: limit or None]:
        cells = [str(total["count"]), f"{m} × {n}", dtype, *([str(rank or "")] if factored else [])]
        cells += [f"{total['break_even_rank']:.1f}", _percent(total["share"])]
        table.add_row(Text(printable(pattern)), *cells)
    if 0 < limit < len(rows):
        table.add_row(Text(f"… and {_count(len(rows) - limit, 'row')} more", style="dim"))
    return table


def _tree(document: _Row, sort: str) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from eckart.models._sizes import format_size

    rows = [{**tensor, "parameters": prod(tensor["shape"])} for tensor in document["tensors"]]
    root = Tree(Text(printable(document["name"])))
    branches: dict[tuple[str, ...], Tree] = {(): root}
    for row in sorted(rows, key=SORTS[sort]):
        *modules, leaf = row["name"].split(".")
        for depth in range(len(modules)):
            path, parent = tuple(modules[: depth + 1]), branches[tuple(modules[:depth])]
            if path not in branches:
                branches[path] = parent.add(Text(printable(modules[depth])))
        shape = " × ".join(str(length) for length in row["shape"]) or "scalar"
        details = f"  {row['dtype']}  {shape}  {format_size(row['bytes'])}"
        branches[tuple(modules)].add(Text(printable(leaf)).append(details, style="dim"))
    return root


def _total(group: Sequence[_Row]) -> dict[str, Any]:
    """Return what like matrices come to together."""
    sums = {key: sum(matrix[key] for matrix in group) for key in ("bytes", "parameters", "share")}
    return {**sums, "count": len(group), "break_even_rank": group[0]["break_even_rank"]}


def _percent(share: float) -> str:
    return "under 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
