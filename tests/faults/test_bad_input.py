"""Bad input at the command line: the exit status, the message with its fix, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.children import HEED_INTERRUPTS, prepared
from typer.testing import CliRunner

from eckart.cli import app
from eckart.models._safetensors import open_checkpoint

Tiny = Callable[..., Path]


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    """A private copy of the small Llama, to be broken."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "model"))


def compress(model: Path, out: Path, *more: object, keep: object = 0.8, method: str = "plain") -> tuple[int, str, str]:
    arguments = ["compress", model, "--keep", keep, "--method", method, "-o", out, "-q", *more]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_missing_model(tmp_path: Path) -> None:
    status, out, err = compress(tmp_path / "nowhere", tmp_path / "out")
    assert (status, out) == (3, "")
    assert "error[E-missing]: there is no file or folder" in err
    assert only(tmp_path)


def test_truncated_weights(model: Path, tmp_path: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    status, _, err = compress(model, tmp_path / "out")
    assert status == 3
    assert "error[E-truncated]: model.safetensors is" in err
    assert "cut short" in err
    assert only(tmp_path, "model")


def split(model: Path, shard: str) -> Path:
    """Turn the model into one with an index that names `shard`; return the index."""
    names = list(open_checkpoint(model).tensors)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")


def test_shard_missing_from_the_folder(model: Path, tmp_path: Path) -> None:
    split(model, "model-00001-of-00002.safetensors")
    status, _, err = compress(model, tmp_path / "out")
    assert status == 3
    assert "error[E-shard-missing]" in err
    assert "model-00001-of-00002.safetensors" in err


def test_shard_path_that_leaves_the_folder(model: Path, tmp_path: Path) -> None:
    shutil.copy(split(model, "../stolen.safetensors"), tmp_path / "stolen.safetensors")
    status, _, err = compress(model, tmp_path / "out")
    assert status == 4
    assert "error[E-path]: refusing" in err
    assert "'../stolen.safetensors'" in err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite(model: Path, tmp_path: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    info = open_checkpoint(model).tensors[name]
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(info.offset + 4 * (2 * info.shape[1] + 7))
        file.write(np.float32(value).tobytes())
    status, _, err = compress(model, tmp_path / "out")
    assert status == 7
    assert f"error[E-nonfinite]: {value} in {name}, first at [2, 7]" in err
    assert only(tmp_path, "model")


@pytest.mark.parametrize("keep", ["0", "-0.5", "1.01", "nan"])
def test_keep_out_of_range(model: Path, tmp_path: Path, keep: str) -> None:
    status, _, err = compress(model, tmp_path / "out", keep=keep)
    assert status == 2
    assert "error[E-usage]: keep = " in err
    assert "above 0 and at most 1" in err
    assert only(tmp_path, "model")


def test_keep_impossible_given_what_is_excluded(model: Path, tmp_path: Path) -> None:
    status, _, err = compress(model, tmp_path / "out", "--layers", "*k_proj*", keep=0.8)
    assert status == 6
    assert "error[E-budget]: keep = 0.8 leaves" in err
    assert "fix: keep >= 0." in err
    reachable = err.split("keep >= ")[1].split(",")[0]
    status, _, err = compress(model, tmp_path / "out", "--layers", "*k_proj*", keep=reachable)
    assert status == 0, err


@pytest.mark.parametrize("content", [b"", b"  \n\n "])
def test_empty_calibration_text(model: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    status, _, err = compress(model, tmp_path / "out", "--data", tmp_path / "empty.txt", method="two-sided")
    assert status == 3
    assert "error[E-empty]: the text" in err
    assert only(tmp_path, "model", "empty.txt")


def test_calibration_text_that_is_no_text(model: Path, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"abc\xff\xfe")
    status, _, err = compress(model, tmp_path / "out", "--data", tmp_path / "data.txt", method="two-sided")
    assert status == 3
    assert "is not UTF-8 text: byte 3 is 0xff" in err


def test_output_exists(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    status, _, err = compress(model, tmp_path / "out")
    assert status == 5
    assert "error[E-exists]" in err
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_output_in_a_folder_that_cannot_be_made(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = compress(model, tmp_path / "file" / "out")
    assert status == 5
    assert "error[E-output]" in err


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    status, _, err = compress(model, tmp_path / "out")
    assert status == 3
    assert "error[E-pickle]" in err


def test_code_in_the_folder_is_not_run(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    status, _, err = compress(model, tmp_path / "out")
    assert status == 3, err
    assert only(tmp_path, "model")


def test_json_errors_are_data_on_stdout(tmp_path: Path) -> None:
    status, out, err = compress(tmp_path / "nowhere", tmp_path / "out", "--json")
    assert status == 3
    assert json.loads(out)["error"]["code"] == "E-missing"
    assert err == ""


def command(model: Path, out: Path, texts: dict[str, Path]) -> list[str]:
    return [
        sys.executable, "-m", "eckart", "compress", str(model), "--keep", "0.8", "-o", str(out),
        "--data", str(texts["train"]), "--tokens", "4096", "--context", "64",
    ]  # fmt: skip


def test_disk_full(model: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    limited = prepared(
        command(model, tmp_path / "out", texts),
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
    )
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "error[E-space]" in done.stderr
    assert "fix: " in done.stderr
    assert only(tmp_path, "model")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", ["calibrating", "saving", "checking"])
def test_interrupted(
    model: Path, texts: dict[str, Path], tmp_path: Path, number: signal.Signals, status: int, stage: str
) -> None:
    with subprocess.Popen(
        prepared(command(model, tmp_path / "out", texts), HEED_INTERRUPTS), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any(stage in line for line in process.stderr), f"never came to {stage}"
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == status, rest
    assert "Traceback" not in rest
    assert only(tmp_path, "model", ".out.journal")  # finished layers, for --resume
