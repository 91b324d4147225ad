"""The command line as a contract: verbs, help that imports nothing heavy, strict JSON on stdout, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eckart.cli import app

VERBS = ("compress", "plan", "compare", "report", "inspect", "svd", "rank", "doctor")
HEAVY = ("torch", "scipy", "transformers", "sklearn", "tensorflow", "jax", "pandas", "eckart.models._huggingface")


def modules_after(*arguments: str) -> set[str]:
    code = (
        "import sys\nsys.argv = ['eckart', *sys.argv[1:]]\n"
        "from eckart.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("compress", "--help"), ("doctor", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = modules_after(*arguments)
    assert "eckart.cli" in loaded
    assert not loaded & set(HEAVY)


def test_help_names_every_verb() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_ends_in_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example: eckart {verb}" in result.stdout


def test_a_mistyped_verb_is_a_usage_error_that_suggests() -> None:
    result = CliRunner().invoke(app, ["inspct", "x"])
    assert result.exit_code == 2
    assert "inspect" in result.stderr


def test_compress_prints_json_and_compare_agrees(
    tiny: Callable[..., Path],
    texts: dict[str, Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    common = ["--evaluate", str(texts["test"]), "--evaluate-tokens", "512", "--context", "64", "-q", "--json"]
    made = CliRunner().invoke(
        app,
        ["compress", str(tiny("llama")), "--keep", "0.8", "-o", str(out), "--data", str(texts["train"]),
         "--tokens", "1024", *common],
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    first = json.loads(made.stdout)
    assert first["schema"] == "eckart.compare/1"
    assert first["plan"]["schema"] == "eckart.plan/1"
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    compared = CliRunner().invoke(app, ["compare", str(tiny("llama")), str(out), "--no-speed", *common])
    assert compared.exit_code == 0, compared.stderr
    second = json.loads(compared.stdout)
    for one, two in zip(first["models"], second["models"], strict=True):
        for name in ("parameters", "file_bytes", "dtype", "quality"):
            assert one[name] == two[name]
    again = CliRunner().invoke(app, ["report", str(out / "eckart_measurement.json"), "-o", str(tmp_path / "r.html")])
    assert again.exit_code == 0, again.stderr
    assert "perplexity" in again.stdout
    assert (tmp_path / "r.html").exists()


def test_plan_writes_a_file_that_compress_takes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    planned = CliRunner().invoke(
        app, ["plan", str(tiny("llama")), "--keep", "0.8", "--method", "plain", "-o", str(file), "-q"]
    )
    assert planned.exit_code == 0, planned.stderr
    assert "parameters" in planned.stdout
    made = CliRunner().invoke(
        app, ["compress", str(tiny("llama")), "--plan", str(file), "-o", str(tmp_path / "out"), "-q"]
    )
    assert made.exit_code == 0, made.stderr
    assert (
        json.loads((tmp_path / "out" / "eckart_plan.json").read_text())["layers"]
        == json.loads(file.read_text())["layers"]
    )


def test_inspect_needs_no_torch(tiny: Callable[..., Path]) -> None:
    assert not modules_after("inspect", str(tiny("llama"))) & set(HEAVY)


def test_doctor_is_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"] == "eckart.doctor/1"
