"""The figures of a comparison as text: every cell, what is said first, and what is not claimed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eckart._result import parse
from eckart._table import headline, is_faster, markdown_table, megabytes, number, rows
from report_cases import result, spread


def cells(value: dict[str, Any]) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in rows(value)}


def test_cells_say_what_was_measured() -> None:
    value = result(grown=False)
    value["models"][1] |= {"parameters": 100_000_000, "file_bytes": 200_070_000}
    value["models"][0] |= {"parameters": 125_000_000, "file_bytes": 250_070_000, "input_bytes": 250_070_000}
    table = cells(value)
    assert table[""] == ["dense", "eckart", "plain"]
    assert table["parameters"][:2] == ["125,000,000", "100,000,000; 80.0%"]
    assert table["weight files"][0] == "250.1 MB (250,070,000 bytes); if saved as safetensors in float16"
    assert table["weight files"][1] == "200.1 MB (200,070,000 bytes); 80.0%"
    assert table["perplexity, bbc-test.txt"] == ["23.10", "29.91; ×1.29", "412.8; ×17.87"]
    assert table["KL from the baseline, pydoc.txt"] == ["–", "0.1180 nats", "0.2360 nats"]
    assert table["same likeliest token, pydoc.txt"] == ["–", "83.1%", "41.6%"]
    assert table["prefill, tokens/s"][:2] == ["901.3 [865.2, 937.4]", "955.2 [917.0, 993.4]; faster ×1.06 [1.03, 1.09]"]
    assert table["decode, tokens/s"][1] == "30.90 [29.66, 32.14]; no speed-up ×0.97 [0.95, 1.00]"


@pytest.mark.parametrize(
    ("ratio", "faster"),
    [
        ([0.80, 0.85, 0.90], False),
        ([0.95, 1.20, 1.40], False),
        ([1.00, 1.20, 1.40], False),
        ([1.004, 1.2, 1.4], False),
        ([1.01, 1.02, 1.03], True),
    ],
)
def test_a_speed_up_is_claimed_only_where_the_interval_as_printed_is_above_one(
    ratio: list[float], faster: bool
) -> None:
    value = result(grown=False)
    value["models"][1]["prefill"] = {**spread(900.0, 1.0, 1), "ratio": ratio}
    found = parse(value).models[1].prefill
    assert found is not None
    assert is_faster(found) is faster
    for text in (cells(value)["prefill, tokens/s"][1], headline(value)):
        assert ("faster ×" in text, "prefill: no speed-up" in text or "]; no speed-up" in text) == (faster, not faster)


def test_a_result_larger_than_its_input_says_so_first() -> None:
    value = result()
    before, after = value["models"][0]["input_bytes"], value["models"][1]["file_bytes"]
    assert after > before
    sentence = headline(value)
    assert sentence.startswith(f"LARGER than the input file, which has {megabytes(before)} ({before:,} bytes): ")
    assert f"eckart takes {megabytes(after)} ({after:,} bytes)" in sentence
    first = rows(value)[1]
    assert first[0] == "LARGER than the input file"
    assert f"{before:,} bytes" in first[1]
    assert f"{after:,} bytes); ×{after / before:.2f}" in first[2]
    assert markdown_table(value).startswith(sentence)


@pytest.mark.parametrize("grown_by", [0, 1])
def test_larger_means_by_a_single_byte(grown_by: int) -> None:
    value = result(models=2, grown=False)
    value["models"][0]["input_bytes"] = value["models"][1]["file_bytes"] - grown_by
    assert headline(value).startswith("LARGER") == rows(value)[1][0].startswith("LARGER") == bool(grown_by)


def test_an_input_of_unknown_size_is_not_compared() -> None:
    value = result()
    value["models"][0]["input_bytes"] = None
    assert headline(value).startswith("eckart: 83")
    assert "read from" not in cells(value)


def test_headline_has_size_quality_and_speed() -> None:
    value = result(grown=False)
    base, small = value["models"][:2]
    assert headline(value) == (
        f"eckart: {100 * small['parameters'] / base['parameters']:.1f}% of the parameters of dense, "
        f"{base['file_bytes'] / 1e6:.1f} MB → {small['file_bytes'] / 1e6:.1f} MB; "
        "perplexity on bbc-test.txt 23.10 → 29.91 (×1.29); perplexity on pydoc.txt 14.48 → 21.07 (×1.45); "
        "prefill: faster ×1.06 [1.03, 1.09]; decode: no speed-up ×0.97 [0.95, 1.00]."
    )


def test_a_perplexity_that_is_not_finite_is_said_to_be() -> None:
    value = result(grown=False)
    value["models"][1]["quality"]["pydoc.txt"]["perplexity"] = None
    assert cells(value)["perplexity, pydoc.txt"][1] == "not finite"
    assert "perplexity on pydoc.txt 14.48 → not finite" in headline(value)


def test_what_was_not_measured_is_left_out_and_never_a_number() -> None:
    value = result(speed=False, plan=False)
    value["texts"] = []
    for model in value["models"]:
        model["quality"] = {}
    assert list(cells(value)) == ["", "LARGER than the input file", "parameters", "weight files"]


def test_a_model_without_next_token_prediction_has_output_errors() -> None:
    value = result(grown=False, models=2)
    for i, model in enumerate(value["models"]):
        for found in model["quality"].values():
            found |= {"perplexity": None, "kl": None, "top1_agreement": None, "relative_error": 0.0625 if i else None}
    table = cells(value)
    assert table["relative output error, bbc-test.txt"] == ["–", "0.06250"]
    assert not any("perplexity" in label for label in table)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (23.1, "23.10"), (999.96, "1000"), (1234.5, "1,234"), (9e9, "9.000e+09"), (-0.5, "-0.5000")],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_markdown_has_one_line_a_row_and_escapes_names() -> None:
    value = result(models=2)
    value["models"][1]["label"] = "a|b\n<img src=x> [x](http://evil) `_*"
    lines = markdown_table(value).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == len(rows(value)) + 1
    assert len(lines) == len(table) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {4}
    assert r"a\|b\\n&lt;img src=x&gt; [x\](http://evil) \`\_\*" in table[0]
