"""The figures of a comparison as text: the one place where they are formatted, for terminal, Markdown and report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from eckart._result import Model, Quality, Result, Spread, parse
from eckart.errors import printable

__all__ = [
    "asked",
    "count",
    "grown",
    "headline",
    "interval",
    "is_faster",
    "markdown_table",
    "megabytes",
    "number",
    "percent",
    "perplexity_change",
    "ratio_interval",
    "recovered",
    "rows",
    "size",
    "speed_verdict",
    "times",
]

NOT_MEASURED = "–"
NOT_FINITE = "not finite"


def rows(result: Result | Mapping[str, Any]) -> list[list[str]]:
    """Return the table: a header, then a line a figure, each with a label and a cell for every model.

    Where weight files are larger than the input file, the first line says so. InputError: malformed.
    """
    result = parse(result)
    base = result.baseline
    table = [["", *(printable(model.label) for model in result.models)]]
    if grown(result):
        table.append(["LARGER than the input file", *(_against_input(model, base) for model in result.models)])
    table.append(["parameters", *(_share(count(m.parameters), m.parameters, base.parameters) for m in result.models)])
    table.append(["weight files", *(_weight_files(model, base) for model in result.models)])
    if base.input_bytes is not None and not grown(result):
        table.append(
            ["read from", *(NOT_MEASURED if m.input_bytes is None else size(m.input_bytes) for m in result.models)]
        )
    for text in result.texts:
        table += _quality_rows(result, text.name)
    if any(model.prefill for model in result.models):
        table.append(["prefill, tokens/s", *(speed(model.prefill) for model in result.models)])
    if any(model.decode for model in result.models):
        table.append(["decode, tokens/s", *(speed(model.decode) for model in result.models)])
    return table


def markdown_table(result: Result | Mapping[str, Any]) -> str:
    """Return the headline and the table of `rows` in Markdown. InputError: malformed."""
    result = parse(result)
    head, *lines = [[_markdown(cell) for cell in line] for line in rows(result)]
    table = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "\n".join([_markdown(headline(result)), "", *(f"| {' | '.join(line)} |" for line in table)])


def headline(result: Result | Mapping[str, Any]) -> str:
    """Return one sentence: that the result is larger than its input, if it is; else sizes, perplexities and speed.

    InputError: malformed.
    """
    result = parse(result)
    base, larger = result.baseline, grown(result)
    if larger:
        sizes = " and ".join(f"{printable(model.label)} takes {size(model.file_bytes)}" for model in larger)
        return f"LARGER than the input file, which has {size(base.input_bytes or 0)}: {sizes}."
    return "; ".join(_verdicts(result)) + "."


def grown(result: Result) -> list[Model]:
    """Return the models whose weight files are larger than the file that the baseline was read from."""
    limit = result.baseline.input_bytes
    return [] if limit is None else [model for model in result.others if model.file_bytes > limit]


def _verdicts(result: Result) -> Iterator[str]:
    base = result.baseline
    if not result.others:
        yield f"{printable(base.label)}: {count(base.parameters)} parameters, {size(base.file_bytes)}"
        return
    model = result.others[0]
    yield (
        f"{printable(model.label)}: {percent(model.parameters / base.parameters)} of the parameters of "
        f"{printable(base.label)}, {megabytes(base.file_bytes)} → {megabytes(model.file_bytes)}"
    )
    for text in result.texts:
        change = perplexity_change(result, model, text.name)
        if change:
            yield f"perplexity on {printable(text.name)} {change}"
    for name, spread in (("prefill", model.prefill), ("decode", model.decode)):
        if spread is not None and spread.ratio is not None:
            yield f"{name}: {speed_verdict(spread)}"


def perplexity_change(result: Result, model: Model, text: str) -> str:
    """Return "before → after (ratio)", or "" where the baseline has no perplexity on this text."""
    before, after = result.baseline.quality.get(text), model.quality.get(text)
    if before is None or before.perplexity is None or after is None:
        return ""
    if after.perplexity is None:
        return f"{number(before.perplexity)} → {NOT_FINITE}"
    return f"{number(before.perplexity)} → {number(after.perplexity)} ({times(after.perplexity / before.perplexity)})"


def speed(spread: Spread | None) -> str:
    """Return median [quartiles] and the ratio to the baseline with its quartiles, or that there is none."""
    if spread is None:
        return NOT_MEASURED
    rates = interval(spread)
    return rates if spread.ratio is None else f"{rates}; {speed_verdict(spread)}"


def interval(spread: Spread) -> str:
    return f"{number(spread.median)} [{number(spread.low)}, {number(spread.high)}]"


def speed_verdict(spread: Spread) -> str:
    """Return the ratio with its quartiles, after "no speed-up" or "faster"; the ratio must be known."""
    return f"{'faster' if is_faster(spread) else 'no speed-up'} {ratio_interval(spread)}"


def ratio_interval(spread: Spread) -> str:
    assert spread.ratio is not None
    low, median, high = spread.ratio
    return f"{times(median)} [{low:.2f}, {high:.2f}]"


def is_faster(spread: Spread) -> bool:
    """Whether even the lower quartile of the ratio, as it is printed, is above 1."""
    return spread.ratio is not None and float(f"{spread.ratio[0]:.2f}") > 1


def recovered(recovery: Any) -> str:
    """Return in one clause what training after compression did; recovery: either class of that name."""
    clause = (
        f"{count(recovery.steps)} steps of training on {count(recovery.tokens)} tokens took the divergence from the "
        f"dense model on held-out text from {number(recovery.before)} to {number(recovery.after)}"
    )
    return clause if recovery.kept else f"{clause}, which is no better, so that the result is the untrained one"


def asked(plan: Any) -> str:
    """Return what a plan was asked for; plan: either class of that name."""
    if plan.keep is not None:
        part = f"{percent(plan.keep)} of the {_COUNTED[plan.cost]}"
        return part if plan.size is None else f"{part} and at most {size(plan.size)}"
    if plan.size is not None:
        return f"at most {size(plan.size)}"
    if plan.max_loss_increase is not None:
        return f"a predicted loss of at most {number(plan.max_loss_increase)} {plan.unit}"
    if plan.method == "int8":
        return "every layer in int8"
    return "given ranks"


_COUNTED = {"params": "parameters", "bytes": "bytes", "ms": "time"}


def count(n: int) -> str:
    return f"{n:,}"


def megabytes(size_in_bytes: int) -> str:
    """Return decimal megabytes.

    >>> megabytes(98_362_432), megabytes(71_200)
    ('98.4 MB', '0.0712 MB')
    """
    value = size_in_bytes / 1e6
    return f"{value:,.1f} MB" if value >= 1 else f"{value:.3g} MB"


def size(size_in_bytes: int) -> str:
    return f"{megabytes(size_in_bytes)} ({size_in_bytes:,} bytes)"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def times(ratio: float) -> str:
    return f"×{ratio:.2f}" if ratio < 100 else f"×{number(ratio)}"


def number(value: float) -> str:
    """Return about four digits.

    >>> number(23.1), number(1234.5), number(0.0123456), number(3.2e9), number(1e-7)
    ('23.10', '1,234', '0.01235', '3.200e+09', '1.000e-07')
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def _share(text: str, after: int, before: int) -> str:
    return text if after == before else f"{text}; {percent(after / before)}"


def _against_input(model: Model, base: Model) -> str:
    assert base.input_bytes is not None
    if model is base:
        return size(base.input_bytes)
    return f"{size(model.file_bytes)}; {times(model.file_bytes / base.input_bytes)}"


def _weight_files(model: Model, base: Model) -> str:
    cell = size(model.file_bytes) + (f"; {printable(model.file_bytes_note)}" if model.file_bytes_note else "")
    return cell if model is base else f"{cell}; {percent(model.file_bytes / base.file_bytes)}"


def _quality_rows(result: Result, text: str) -> Iterator[list[str]]:
    name = printable(text)
    found = [model.quality.get(text) for model in result.models]
    if any(q is not None and (q.perplexity is not None or q.top1_agreement is not None) for q in found):
        yield [f"perplexity, {name}", *(_perplexity(q, found[0]) for q in found)]
    for label, field, form in (
        (f"KL from the baseline, {name}", "kl", lambda value: f"{number(value)} nats"),
        (f"same likeliest token, {name}", "top1_agreement", percent),
        (f"relative output error, {name}", "relative_error", number),
    ):
        values = [None if q is None else getattr(q, field) for q in found]
        if any(value is not None for value in values):
            yield [label, *(NOT_MEASURED if value is None else form(value) for value in values)]


def _perplexity(quality: Quality | None, base: Quality | None) -> str:
    if quality is None:
        return NOT_MEASURED
    if quality.perplexity is None:
        return NOT_FINITE
    if quality is base or base is None or base.perplexity is None:
        return number(quality.perplexity)
    return f"{number(quality.perplexity)}; {times(quality.perplexity / base.perplexity)}"


def _markdown(text: str) -> str:
    """Escape what Markdown or HTML would read as more than text; brackets only where they could begin a link."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*_|~$!]|\](?=[(\[:])", r"\\\g<0>", text)
