"""The map of the plan: blocks across, kinds of layer down, coloured by the share of parameters that is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from eckart import _table as figures
from eckart._result import Layer, Plan, Result
from eckart.report._html import Html, element

__all__ = ["Place", "heat_map", "places"]

Place = tuple[int | None, str]  # block, None for a layer outside all blocks; and kind of layer

STEPS = 10  # colours, from nothing kept to all
WIDTH, NARROWEST, WIDEST = 920, 9, 30  # px: what the cells share if they can, and what one may take
HEIGHT, GAP = 26, 2  # px, a row; between cells
LETTER = 7.3  # px, a letter of the labels: 12 px in a monospaced type, rounded up
LABEL = 28  # px, a block's number and some space
TOP, MARGIN = 8, 10  # px


def heat_map(result: Result) -> Html:
    """Return the section, or nothing without a plan."""
    plan = result.plan
    if plan is None or not plan.layers:
        return Html()
    return element(
        "section",
        element("h2", "What became of each layer"),
        element("p", *_summary(plan)),
        _prediction(plan),
        element("div", _drawing(plan.layers), class_="scroll", tabindex="0", role="group", aria_label="Map of layers"),
        _legend(plan),
        element("p", "", id="cell", class_="note", aria_live="polite"),
        class_="map",
    )


def places(names: Sequence[str]) -> dict[str, Place]:
    """Return the block and the kind of each layer, such that no two layers share both.

    The block is the first integer in the dotted name; the kind is the last component, or as many more of the last ones
    as it takes to tell layers of one block apart. names: all different.
    """
    parts, blocks, depth = {}, {}, dict.fromkeys(names, 1)
    for name in names:
        pieces = name.split(".")
        at = next((i for i, piece in enumerate(pieces) if piece.isdecimal() and len(piece) < 10), None)
        blocks[name] = None if at is None else int(pieces[at])
        parts[name] = pieces if at is None else [*pieces[:at], "#", *pieces[at + 1 :]]
    while True:
        found = {name: (blocks[name], ".".join(parts[name][-depth[name] :])) for name in names}
        shared = {place for place, count in Counter(found.values()).items() if count > 1}
        kinds = {kind for _, kind in shared}
        short = [name for name in names if found[name][1] in kinds and depth[name] < len(parts[name])]
        if not short:  # "layers.0" and "layers.00" are all that is left to tell apart
            return found if not shared else {name: (blocks[name], name) for name in names}
        for name in short:
            depth[name] += 1


def _summary(plan: Plan) -> Iterator[str]:
    changed = sum(not layer.stays for layer in plan.layers)
    yield f"{figures.count(changed)} of {figures.count(len(plan.layers))} layers are changed (method "
    yield element("b", plan.method)
    yield f", asked for: {figures.asked(plan)}; {figures.percent(plan.keep_reached)} of the parameters are left)."


def _prediction(plan: Plan) -> Html:
    if plan.predicted_loss_increase is None:
        return Html()
    text = f"{figures.number(plan.predicted_loss_increase)} {plan.unit}"
    return element("p", element("span", "predicted", class_="tag"), f" loss increase over all layers: {text}")


def _drawing(layers: Sequence[Layer]) -> Html:
    where = places([layer.name for layer in layers])
    columns = sorted({place[0] for place in where.values()}, key=lambda block: (block is None, block))
    kinds = list(dict.fromkeys(place[1] for place in where.values()))
    across = {block: i for i, block in enumerate(columns)}
    down = {kind: i for i, kind in enumerate(kinds)}
    cell = max(NARROWEST, min(WIDEST, WIDTH // len(columns)))
    left = round(LETTER * max(len(kind) for kind in kinds)) + MARGIN
    width, height = left + cell * len(columns) + MARGIN, TOP + HEIGHT * len(kinds) + HEIGHT
    drawn = [_hatching()]
    for kind, row in down.items():
        drawn.append(element("text", kind, x=left - MARGIN, y=TOP + HEIGHT * row + 17, class_="kind"))
    step = next(nice for nice in (1, 2, 5, 10) if nice * cell >= LABEL)
    for block, column in across.items():
        if block is None or block % step == 0:
            label = "other" if block is None else str(block)
            drawn.append(element("text", label, x=left + cell * (column + 0.5), y=height - 9, class_="block"))
    for i, layer in enumerate(layers):
        block, kind = where[layer.name]
        drawn.append(_cell(layer, i, left + cell * across[block], TOP + HEIGHT * down[kind], cell))
    return element(
        "svg",
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label="Share of parameters kept, blocks across, kinds of layer down; the table below has the same figures",
    )


def _cell(layer: Layer, i: int, x: int, y: int, width: int) -> Html:
    return element(
        "rect",
        element("title", _in_words(layer)),
        x=x,
        y=y,
        width=width - GAP,
        height=HEIGHT - GAP,
        rx=2,
        class_="cell " + ("dense" if layer.stays else f"f{_step(layer.kept_fraction)}"),
        data_layer=i,
    )


def _in_words(layer: Layer) -> str:
    if layer.stays:
        return f"{layer.name}: stays dense" + (f", {layer.kept}" if layer.kept else "")
    rank = "not factored" if layer.rank is None else f"rank {layer.rank} of {min(layer.rows, layer.columns)}"
    rounded = " in int8" if layer.in_int8 else ""
    return f"{layer.name}: {rank}{rounded}, keeps {figures.percent(layer.kept_fraction)}"


def _step(fraction: float) -> int:
    return min(STEPS - 1, int(STEPS * fraction))


def _hatching() -> Html:
    line = element("path", d="M0 6L6 0M-1 1L1 -1M5 7L7 5", class_="hatch")
    return element("defs", element("pattern", line, id="hatching", width=6, height=6, patternUnits="userSpaceOnUse"))


def _legend(plan: Plan) -> Html:
    """Return the scale; the last step holds whatever is above it as well."""
    box = 26
    drawn = []
    for i in range(STEPS):
        drawn.append(element("rect", x=box * i, y=0, width=box - GAP, height=12, rx=2, class_=f"f{i}"))
    for i in (0, STEPS // 2, STEPS):
        drawn.append(element("text", f"{100 * i // STEPS}%", x=box * i, y=27, class_="scale"))
    scale = element("svg", *drawn, width=box * STEPS + 40, height=32, role="img", aria_label="Scale of the colours")
    dense = element("rect", x=0, y=0, width=box - GAP, height=12, rx=2, class_="dense")
    key = element("svg", dense, width=box, height=12, role="img", aria_label="Hatched")
    more = any(layer.rank is not None and layer.kept_fraction > 1 for layer in plan.layers)
    note = "; the darkest also above 100%: a rank past break-even" if more else ""
    return element(
        "div",
        element("span", "parameters kept", note),
        scale,
        element("span", key, " stays dense", class_="key"),
        class_="legend",
    )
