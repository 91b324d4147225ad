"""The report: what is refused, that no text becomes markup, and where each layer is."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eckart._result import parse
from eckart._table import headline, markdown_table, rows
from eckart.errors import InputError, OutputError
from eckart.report import read_result, write_report
from eckart.report._heat_map import places
from report_cases import HOSTILE, layer, result

Change = Callable[[dict[str, Any]], Any]


def cells(value: dict[str, Any]) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in rows(value)}


def page(value: dict[str, Any], folder: Path) -> str:
    return write_report(value, folder / "report.html").read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """Every start tag of a page with its attributes, and the text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.words.append(data)


def test_bad_news_comes_first_on_the_page(tmp_path: Path) -> None:
    value = result()
    value["models"][1]["quality"]["pydoc.txt"]["perplexity"] = None
    words = "".join(Elements(page(value, tmp_path)).words)
    assert words[words.index("Eckart report") + len("Eckart report") :].startswith(headline(value))
    assert headline(value).startswith("LARGER than the input file")
    assert "14.48 → not finite" in words


def remove(name: str) -> Change:
    return lambda value: value.pop(name)


def put(new: Any, *place: Any) -> Change:
    def change(value: Any) -> None:
        for part in place[:-1]:
            value = value[part]
        value[place[-1]] = new

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("eckart.compare/2", "schema"), r"'eckart.compare/2'; understood: eckart.compare/1"),
        (remove("schema"), "schema None; understood: eckart.compare/1"),
        (remove("models"), "models: Field required"),
        (put([], "models"), "models: "),
        (put("many", "models", 1, "parameters"), r"models\[1\].parameters: "),
        (put(True, "models", 1, "parameters"), r"models\[1\].parameters: "),
        (put(10**30, "models", 0, "file_bytes"), r"models\[0\].file_bytes: "),
        (put(-1, "models", 0, "input_bytes"), r"models\[0\].input_bytes: "),
        (put(0.0, "models", 0, "prefill", "median"), r"models\[0\].prefill.median: "),
        (put([1.0], "models", 1, "prefill", "ratio"), r"models\[1\].prefill.ratio"),
        (put(1.01, "models", 1, "quality", "pydoc.txt", "top1_agreement"), r"quality.pydoc.txt.top1_agreement: "),
        (put({}, "models", 1, "quality", "pydoc.txt"), r"quality.pydoc.txt.tokens: Field required"),
        (put([], "texts"), "quality has the text '(bbc-test|pydoc).txt', which texts does not list"),
        (put("yesterday", "created"), "created: "),
        (put("abc", "texts", 0, "sha256"), r"texts\[0\].sha256: "),
        (put(1, "surprise"), "surprise: "),
        (put(float("nan"), "machine", "gflops_float32"), "not JSON compliant"),
        (put("eckart.plan/9", "plan", "schema"), "plan.schema: "),
        (put([3, 4], "plan", "layers", 0, "option", "ranks"), r"plan.layers\[0\].option"),
        (put("model.layers.0.self_attn.q_proj", "plan", "layers", 1, "name"), "is there twice"),
        (put("\ud800", "command"), "malformed"),
        (put({1, 2}, "warnings"), "malformed"),
    ],
)
def test_a_malformed_result_is_refused_by_the_name_of_the_field(tmp_path: Path, change: Change, message: str) -> None:
    value = result(blocks=2)
    parse(value)
    change(value)
    out = tmp_path / "report.html"
    with pytest.raises(InputError, match=message):
        write_report(value, out)
    for use in (rows, headline, markdown_table):
        with pytest.raises(InputError, match=message):
            use(value)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_a_file_that_is_no_result_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"result\.json") as caught:
        write_report(file, tmp_path / "report.html")
    assert caught.value.file == str(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file") as caught:
        read_result(tmp_path / "none.json")
    assert caught.value.code == "E-missing"


def test_a_file_and_its_values_give_the_same_bytes_twice(tmp_path: Path) -> None:
    value = result(blocks=3)
    file = tmp_path / "result.json"
    file.write_text(json.dumps(value))
    before = copy.deepcopy(value)
    assert write_report(file, tmp_path / "a.html") == tmp_path / "a.html"
    assert page(value, tmp_path) == (tmp_path / "a.html").read_text(encoding="utf-8")
    assert value == before == read_result(file)


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_report(result(blocks=1), tmp_path / "none" / "report.html")


def hostile(value: Any) -> Any:
    """Return the JSON value with the hostile text in place of every free text that is not empty, and of two keys."""
    fixed = {"schema", "created", "sha256", "format", "cost"}
    if isinstance(value, dict):
        return {
            (HOSTILE if key in ("bbc-test.txt", "torch") else key): part if key in fixed else hostile(part)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) and value else value


def test_no_text_of_the_result_becomes_markup(tmp_path: Path) -> None:
    plain = result(blocks=1)
    plain["plan"]["layers"] = [layer("model.layers.0.q_proj", 8, 8, None, kept="excluded")]
    del plain["texts"][1]
    for model in plain["models"]:
        del model["quality"]["pydoc.txt"]
    bad = hostile(plain)
    source = page(bad, tmp_path)
    found, expected = Elements(source), Elements(page(plain, tmp_path))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in expected.tags]
    assert {tag for tag, _ in found.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "script"),
        *("p", "h1", "h2", "dl", "dt", "dd", "div", "ul", "li", "pre", "code", "span", "b", "small", "button"),
        *("table", "thead", "tbody", "tr", "th", "td", "label", "input", "select", "option", "output"),
        *("svg", "defs", "pattern", "path", "rect", "text", "title"),
    }
    for _, attributes in found.tags:
        assert not any(name.startswith("on") or name in ("style", "src", "href") for name in attributes)
    for character in "\x1b\u202e\u2028":
        assert character not in source
    assert source.count("alert(1)") >= 12
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
    assert json.loads(data) == bad
    assert not set(data) & set("<>&\u2028")


def test_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    source = page(result(), tmp_path)
    assert set(re.findall(r"(?:https?:)?//[\w.]+", source)) <= {"http://www.w3.org"}  # the name space of SVG
    (policy,) = [a["content"] for tag, a in Elements(source).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.layers.0.self_attn.q_proj", "model.layers.11.q_proj"], [(0, "q_proj"), (11, "q_proj")]),
        (["lm_head"], [(None, "lm_head")]),
        (["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.c_fc"], [(0, "attn.c_proj"), (0, "mlp.c_proj"), (0, "c_fc")]),
        (["h.0.a.proj", "h.0.b.proj", "h.1.a.proj"], [(0, "a.proj"), (0, "b.proj"), (1, "a.proj")]),
        (["e.0.experts.3.w1", "e.0.experts.4.w1"], [(0, "3.w1"), (0, "4.w1")]),
        (["encoder.0.fc", "decoder.0.fc"], [(0, "encoder.#.fc"), (0, "decoder.#.fc")]),
        (["a.1.w", "a.01.w"], [(1, "a.1.w"), (1, "a.01.w")]),
        (["", "."], [(None, ""), (None, ".")]),
    ],
)  # fmt: skip
def test_layers_are_placed_by_block_and_kind(names: list[str], expected: list[tuple[int | None, str]]) -> None:
    assert list(places(names).values()) == expected


def test_map_and_table_hold_every_layer_once_and_mark_the_dense(tmp_path: Path) -> None:
    value = result(blocks=5)
    planned = value["plan"]["layers"]
    planned.append(layer("lm_head", 1000, 576, None, kept="tied to the embedding"))
    planned.append(layer("model.layers.0.odd", 64, 64, 40))
    found = Elements(page(value, tmp_path))
    cells = {a["data-layer"]: a["class"] or "" for tag, a in found.tags if tag == "rect" and "data-layer" in a}
    lines = {a["id"]: a["data-state"] for tag, a in found.tags if tag == "tr" and "id" in a}
    assert len(cells) == len(lines) == len(planned)
    for i, one in enumerate(planned):
        pair = one["option"]["format"] == "pair"
        step = min(9, int(10 * one["params"] / one["params_before"]))
        assert cells[str(i)] == "cell " + (f"f{step}" if pair else "dense")
        assert lines[f"layer-{i}"] == ("factored" if pair else "dense")
    words = " ".join(found.words)
    assert "tied to the embedding" in words
    assert "above 100%" in words


def test_what_is_predicted_is_called_predicted(tmp_path: Path) -> None:
    value = result(blocks=1)
    value["plan"]["predicted_loss_increase"] = 0.123456
    source = page(value, tmp_path)
    assert '<span class="tag">predicted</span> loss increase over all layers: 0.1235 nats a token' in source
    for heading in ("loss increase", "relative error"):
        assert f'<th scope="col">{heading}<span class="tag">predicted</span></th>' in source
    assert not any("0.1235" in cell for line in rows(value) for cell in line)
    value["plan"]["predicted_loss_increase"] = None
    assert "over all layers" not in page(value, tmp_path)


def test_measure_and_plan_write_what_is_read_here(tmp_path: Path) -> None:
    """The schema and those who write it cannot drift apart unseen."""
    from eckart._compress._plan import LayerPlan, Plan
    from eckart.models._measure import Measured, Measurement
    from eckart.models._option import dense, pair
    from eckart.models._quality import Quality
    from eckart.models._speed import SpeedSettings, Spread

    value = result(blocks=1, models=2)
    option = pair(8, 6, True, "float16", 2)
    planned = LayerPlan("layers.0.q", 8, 6, True, option, dense(8, 6, True, "float16"), 0.1, 0.2)
    plan = Plan("m", "two-sided", None, "float16", 0, "nats", (planned,), 100, 78, 200, 156)
    measured = [
        Measured(
            **{
                **{field.name: model[field.name] for field in dataclasses.fields(Measured)},
                "quality": {"t": dataclasses.asdict(Quality(4, float("inf"), 0.1, 0.5))},
                "prefill": dataclasses.asdict(Spread(2.0, 1.0, 3.0, 5, (1.0, 2.0, 3.0) if i else None)),
                "decode": None,
            }
        )
        for i, model in enumerate(value["models"])
    ]
    written = Measurement(
        models=tuple(measured),
        texts=({**value["texts"][0], "name": "t"},),
        speed_settings=dataclasses.asdict(SpeedSettings()),
        machine=value["machine"],
        versions=value["versions"],
        created=value["created"],
        seed=0,
        plan=plan.to_json(),
    ).to_json()
    assert "not finite" in " ".join(cells(written)["perplexity, t"])
    assert "models[0].quality.t.perplexity = inf is not finite" in page(written, tmp_path)
