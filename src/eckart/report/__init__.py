"""The report: one HTML file, without a network or a library, from the JSON of `compare` or `compress`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eckart._files import write_whole
from eckart._result import parse, read_result

__all__ = ["read_result", "write_report"]


def write_report(result: Mapping[str, Any] | Path, out: Path) -> Path:
    """Write the report of a result, schema "eckart.compare/1", given as JSON values or as the file of them; return out.

    Whole or not at all; a report that is there already is replaced. InputError: another schema, or malformed.
    OutputError: it cannot be written.
    """
    from eckart.report._page import page

    value = read_result(result) if isinstance(result, Path) else result
    html = page(parse(value), value)
    with write_whole(out) as file:
        file.write(html.encode())
    return out
