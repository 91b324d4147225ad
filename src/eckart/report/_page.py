"""The page: policy, style, sections in their order, data, script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from eckart._result import Result
from eckart.report._heat_map import heat_map
from eckart.report._html import Html, csp_hash, element, json_for_script
from eckart.report._layers import layers
from eckart.report._sections import measured, provenance, title, verdict, warnings

__all__ = ["page"]

Section = Callable[[Result], str]

SECTIONS: tuple[Section, ...] = (verdict, warnings, measured, heat_map, layers, provenance)  # "" where nothing to show


def page(result: Result, data: Mapping[str, Any]) -> str:
    """Return the whole HTML document; data: the JSON values of the result, which the page carries along."""
    style, script = (resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; script-src {csp_hash(script)}; style-src {csp_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title(result)} – Eckart report"),
        element("style", Html(style)),
    )
    body = element(
        "body",
        element("main", *(Html(section(result)) for section in SECTIONS)),
        element("script", json_for_script(data), type="application/json", id="data"),
        element("script", Html(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
