"""The sections about the models as a whole: functions from the result to HTML, "" where there is nothing to say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from eckart import _table as figures
from eckart._result import Model, Result, Spread
from eckart.report._html import Html, element, table

__all__ = ["measured", "provenance", "title", "verdict", "warnings"]


def title(result: Result) -> str:
    """Return the name of the model that the result is about."""
    return PurePosixPath(result.baseline.path).name or result.baseline.label


def verdict(result: Result) -> Html:
    """What a reader wants to know first; where the result is larger than its input, that before anything else."""
    base, grown = result.baseline, figures.grown(result)
    model = result.others[0] if result.others else base
    alarm = element("p", figures.headline(result), _why_larger(result, grown[0]), class_="alarm") if grown else Html()
    subject = "measured" if model is base else f"{base.label} against {model.label}"
    return element(
        "header",
        alarm,
        element("p", f"Eckart report · {base.model_type} · {subject}", class_="eyebrow"),
        element("h1", title(result)),
        element("dl", *_cards(result, base, model), class_="strip"),
        _origin(result),
    )


def warnings(result: Result) -> Html:
    if not result.warnings:
        return Html()
    return _section("Warnings", element("ul", *(element("li", warning) for warning in result.warnings)), class_="warn")


def measured(result: Result) -> Html:
    """The table, as the terminal and the model card show it."""
    head, *lines = figures.rows(result)
    kind = "figures grown" if figures.grown(result) else "figures"
    trained = "" if result.recovery is None else element("p", f"Then {figures.recovered(result.recovery)}.")
    return _section("Measured", _how_measured(result), trained, table(head, lines, class_=kind, aria_label="Measured"))


def provenance(result: Result) -> Html:
    """Where every figure comes from: machine, versions, texts with their hashes, files, and the JSON itself."""
    machine = result.machine
    rate = machine.gflops_float32
    facts = {
        "processor": f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads, on {machine.device}",
        "float32 matrix product": "not measured" if rate is None else f"{figures.number(rate)} GFLOP/s",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items())),
        "eckart": result.eckart,
    }
    models = [[m.label, m.model_type, m.dtype, m.path] for m in result.models]
    texts = [[t.name, figures.count(t.tokens), figures.count(t.context), t.sha256] for t in result.texts]
    return _section(
        "Where this comes from",
        element("dl", *(_pair(name, fact) for name, fact in facts.items()), class_="facts"),
        table(["model", "type", "dtype", "path"], models, class_="plain", aria_label="Models"),
        table(["text", "tokens", "context", "SHA-256"], texts, class_="plain", aria_label="Texts") if texts else Html(),
        element(
            "p",
            element("button", "Download the JSON", type="button", id="download", hidden=True),
            element("span", f"schema {result.version}", class_="note"),
        ),
    )


def _cards(result: Result, base: Model, model: Model) -> Iterator[Html]:
    alone = model is base
    yield _size_card(result, base, model)
    yield _card(
        "parameters",
        figures.percent(model.parameters / base.parameters) if not alone else figures.count(base.parameters),
        "" if alone else f"{figures.count(base.parameters)} → {figures.count(model.parameters)}",
    )
    for text in result.texts:
        quality = model.quality.get(text.name)
        change = figures.perplexity_change(result, model, text.name)
        if alone and quality is not None and quality.perplexity is not None:
            change = figures.number(quality.perplexity)
        if change:
            where = f"on {text.name}, {figures.count(text.tokens)} tokens in pieces of {figures.count(text.context)}"
            yield _card("perplexity, lower is better", change, where)
    for name, spread, slow in (("prefill", model.prefill, base.prefill), ("decode", model.decode, base.decode)):
        if spread is not None:
            yield _speed_card(name, spread, None if alone else slow)


def _size_card(result: Result, base: Model, model: Model) -> Html:
    """Return before → after; before is the input file itself where the result is larger than that."""
    before, after = figures.megabytes(base.file_bytes), figures.megabytes(model.file_bytes)
    source = "" if base.input_bytes is None else figures.megabytes(base.input_bytes)
    if model in figures.grown(result):
        dense = f"{base.label} {base.file_bytes_note}: {before}"
        return _card("input file, weight files", f"{source} → {after}", f"LARGER than the input; {dense}")
    notes = (base.file_bytes_note and f"{base.label} {base.file_bytes_note}", source and f"input file {source}")
    change = before if model is base else f"{before} → {after}"
    return _card("weight files", change, "; ".join(note for note in notes if note))


def _speed_card(name: str, spread: Spread, before: Spread | None) -> Html:
    rates = f"{figures.interval(spread)} tokens/s"
    if spread.ratio is None:
        return _card(name, f"{figures.number(spread.median)} tokens/s", f"{rates}, {spread.runs} runs")
    against = "" if before is None else f" against {figures.interval(before)}"
    word = figures.times(spread.ratio[1]) if figures.is_faster(spread) else "no speed-up"
    return _card(f"{name} speed", word, f"{figures.ratio_interval(spread)}; {rates}{against}, {spread.runs} runs")


def _why_larger(result: Result, model: Model) -> str:
    """Return the arithmetic behind it: bits a parameter."""
    base = result.baseline
    had, has = (8 * n / p for n, p in ((base.input_bytes or 0, base.parameters), (model.file_bytes, model.parameters)))
    return f" The input spends {figures.number(had)} bits on a parameter, {model.label} {figures.number(has)}."


def _origin(result: Result) -> Html:
    date = f"{result.created[:10]} {result.created[11:16]} UTC"
    made = element("p", f"{date} · seed {result.seed} · Eckart {result.eckart}", class_="note")
    if not result.command:
        return made
    command = element("code", result.command, id="command")
    button = element("button", "Copy this command", type="button", id="copy", hidden=True)
    return Html(made + element("div", element("pre", command), button, class_="command"))


def _how_measured(result: Result) -> Html:
    speed = result.speed_settings
    if speed is None:
        return Html()
    return element(
        "p",
        f"Speed: median [quartiles] of {speed.runs} runs, the models in turns; {speed.prefill_tokens} tokens read at "
        f"once, then {speed.decode_tokens} generated, in {speed.dtype}. Ratios are taken run by run.",
        class_="note",
    )


def _card(label: str, value: str, note: str) -> Html:
    return element(
        "div", element("dt", label), element("dd", value, class_="value"), element("dd", note) if note else Html()
    )


def _pair(name: str, fact: str) -> Html:
    return element("div", element("dt", name), element("dd", fact))


def _section(heading: str, *children: str, class_: str | None = None) -> Html:
    return element("section", element("h2", heading), *children, class_=class_)
