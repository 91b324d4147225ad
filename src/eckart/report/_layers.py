"""The table of layers: what each became, exactly; and what was predicted of it, said to be predicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from eckart import _table as figures
from eckart._result import Layer, Result
from eckart.report._html import Html, element

__all__ = ["layers"]

BAR = 48  # px


class _Cell(NamedTuple):
    """What is shown, and the number or text to sort by; None sorts last whichever way."""

    shown: str
    value: str | float | None


COLUMNS = (
    ("layer", False),
    ("rows × columns", False),
    ("becomes", False),
    ("break-even rank", False),
    ("parameters", False),
    ("after", False),
    ("bytes", False),
    ("kept", False),
    ("loss increase", True),
    ("relative error", True),
)  # heading, and whether it is predicted


def layers(result: Result) -> Html:
    """Return the section, or nothing without a plan. The script adds sorting and makes the filter appear."""
    plan = result.plan
    if plan is None or not plan.layers:
        return Html()
    head = (
        element("th", heading, element("span", "predicted", class_="tag") if predicted else Html(), scope="col")
        for heading, predicted in COLUMNS
    )
    body = (_line(i, layer) for i, layer in enumerate(plan.layers))
    whole = element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *body),
        id="layers",
        class_="layers",
        aria_label="Layers",
    )
    return element(
        "section",
        element("h2", "Layer by layer"),
        element("p", f"The loss increase is in {plan.unit}.", class_="note"),
        _filter(len(plan.layers)),
        element("div", whole, class_="scroll tall", tabindex="0", role="group", aria_label="Layers"),
    )


def _filter(number: int) -> Html:
    choices = (element("option", text, value=value) for value, text in _STATES.items())
    return element(
        "div",
        element("label", "Name contains ", element("input", type="search", id="name", autocomplete="off")),
        element("label", "Show ", element("select", *choices, id="state")),
        element("output", f"{figures.count(number)} layers", id="shown", aria_live="polite"),
        class_="filter",
        id="filter",
        hidden=True,
    )


_STATES = {"": "all", "factored": "factored", "int8": "int8, not factored", "dense": "dense"}


def _line(i: int, layer: Layer) -> Html:
    first, *others = _cells(layer)
    return element(
        "tr",
        element("th", first.shown, scope="row", data_v=first.value),
        *(element("td", shown, data_v=value) for shown, value in others),
        id=f"layer-{i}",
        data_state="dense" if layer.stays else "factored" if layer.rank is not None else "int8",
    )


def _cells(layer: Layer) -> Iterator[_Cell]:
    yield _Cell(layer.name, layer.name)
    yield _Cell(f"{layer.rows} × {layer.columns}", layer.rows * layer.columns)
    if layer.stays:
        yield _Cell(Html(element("span", "dense", class_="state", title=layer.kept or None) + _reason(layer)), None)
    else:
        yield _Cell(layer.becomes, layer.rank)
    yield _Cell(f"{layer.break_even_rank:.1f}", layer.break_even_rank)
    yield _Cell(figures.count(layer.params_before), layer.params_before)
    yield _Cell(figures.count(layer.params), layer.params)
    yield _Cell(figures.count(layer.bytes), layer.bytes)
    yield _Cell(Html(_bar(layer.kept_fraction) + figures.percent(layer.kept_fraction)), layer.kept_fraction)
    for predicted in (layer.loss_increase, layer.relative_error):
        yield _Cell("–" if predicted is None else figures.number(predicted), predicted)


def _reason(layer: Layer) -> Html:
    return element("small", layer.kept) if layer.kept else Html()


def _bar(fraction: float) -> Html:
    full = element("rect", width=BAR, height=6, rx=1, class_="track")
    part = element("rect", width=round(BAR * min(1.0, fraction), 1), height=6, rx=1, class_="part")
    return element("svg", full, part, width=BAR, height=6, class_="bar", aria_hidden="true")
