"""HTML and SVG by function calls: every string is escaped unless it is Html already."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any

from eckart.errors import printable

__all__ = ["Html", "csp_hash", "element", "json_for_script", "table"]

_EMPTY = frozenset({"meta", "input", "br"})


class Html(str):
    """Text that is markup, and safe to be put into a page as it is."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | bool | None) -> Html:
    """Return the element; control and bidirectional characters in text and attributes become visible escapes.

    Attributes: class_ is class, data_x is data-x, True is an attribute without a value, None and False are none.

    >>> element("td", "a < b", class_="number", hidden=True)
    '<td class="number" hidden>a &lt; b</td>'
    """
    opening = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Html(f"<{opening}>")
    inside = "".join(child if isinstance(child, Html) else html.escape(printable(child)) for child in children)
    return Html(f"<{opening}>{inside}</{name}>")


def table(head: list[str], lines: list[list[str]], **attributes: str) -> Html:
    """Return a table whose first column heads its rows, in a box that scrolls sideways where it is too wide.

    A cell is broken into lines after a semicolon and nowhere else.
    """
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = (
        element("tr", element("th", line[0], scope="row"), *(element("td", _unbroken(cell)) for cell in line[1:]))
        for line in lines
    )
    whole = element("table", element("thead", top), element("tbody", *body), **attributes)
    return element("div", whole, class_="scroll", tabindex="0", role="group", aria_label=attributes.get("aria_label"))


def _unbroken(cell: str) -> Html:
    *before, last = cell.split("; ")
    return Html(" ".join(element("span", part, class_="whole") for part in (*(f"{part};" for part in before), last)))


def json_for_script(value: Any) -> Html:
    """Return JSON that no HTML parser ends early: ASCII, without <, > and &."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, indent=1)  # ASCII: U+2028 and U+2029 are escaped as well
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def csp_hash(source: str) -> str:
    """Return the source expression by which a content security policy allows exactly this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(printable(str(value)))}"'
