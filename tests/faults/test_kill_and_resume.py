"""A compression that is killed at any point goes on with --resume, to the same bytes; a mismatch is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.children import HEED_INTERRUPTS, prepared

import eckart
from eckart.errors import OutputError, UsageError

Tiny = Callable[..., Path]

# Ends its own process without a chance to clean up, the n-th time that a function is called.
KILLER = """
import os, signal, sys
import eckart._compress._journal as journal, eckart._compress._finish as finish, eckart._files as files
where, count = sys.argv[1], int(sys.argv[2])

def deadly(function):
    def called(*arguments, **more):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return called

owner, name = {"layer": (journal.Journal, "put"), "gradients": (journal.Journal, "put_gradients"),
               "refit": (journal.Journal, "put_refit"), "metric": (journal.Journal, "put_metric"),
               "training": (journal.Journal, "put_training"), "rename": (os, "replace"),
               "saving": (finish, "save"), "checking": (finish, "_check_reloaded")}[where]
setattr(owner, name, deadly(getattr(owner, name)))
from eckart.cli import main
sys.argv[1:] = sys.argv[3:]
main()
"""


@pytest.fixture(scope="module")
def arguments(tiny: Tiny, texts: dict[str, Path]) -> list[str]:
    return ["compress", str(tiny("llama")), "--keep", "0.75", "--data", str(texts["train"]), "--tokens", "1024",
            "--context", "64", "--recover", "60 steps", "--quiet"]  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run that nobody interrupts writes."""
    out = tmp_path_factory.mktemp("whole") / "small"
    subprocess.run([sys.executable, "-m", "eckart", *arguments, "-o", str(out)], check=True)
    assert [path.name for path in out.parent.iterdir()] == ["small"]
    return contents(out)


@pytest.mark.parametrize(
    ("where", "count"),
    [("layer", 0), ("layer", 4), ("gradients", 0), ("training", 0), ("training", 1), ("rename", 0),
     ("rename", 1), ("rename", 9), ("saving", 0), ("checking", 0)],
)  # fmt: skip
def test_killed_at_any_point_it_goes_on_to_the_same_bytes(
    arguments: list[str], expected: dict[str, str], tmp_path: Path, where: str, count: int
) -> None:
    out = tmp_path / "small"
    killed = subprocess.run([sys.executable, "-c", KILLER, where, str(count), *arguments, "-o", str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    if (where, count) != ("rename", 0):  # before the fingerprint is written there is nothing to lose
        again = [sys.executable, "-m", "eckart", *arguments, "-o", str(out)]
        refused = subprocess.run(again, capture_output=True, text=True, check=False)
        assert refused.returncode == OutputError.status
        assert "--resume" in refused.stderr
    subprocess.run([sys.executable, "-m", "eckart", *arguments, "-o", str(out), "--resume"], check=True)
    assert contents(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_killed_while_factors_are_corrected_it_goes_on_to_the_same_bytes(arguments: list[str], tmp_path: Path) -> None:
    command = [*arguments, "--correct", "-o", str(tmp_path / "small")]
    for count in (1, 9):  # each run goes on from the last one's end
        begun = tmp_path.joinpath(".small.journal").exists()
        more = [*command, "--resume"] if begun else command
        killed = subprocess.run([sys.executable, "-c", KILLER, "refit", str(count), *more], check=False)
        assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "eckart", *command, "--resume"], check=True)
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, "-m", "eckart", *arguments, "--correct", "-o", str(whole)], check=True)
    assert contents(tmp_path / "small") == contents(whole)


def test_killed_between_blocks_that_share_it_goes_on_to_the_same_bytes(arguments: list[str], tmp_path: Path) -> None:
    command = [*arguments, "--method", "basis-sharing", "-o", str(tmp_path / "small")]
    killed = subprocess.run([sys.executable, "-c", KILLER, "metric", "3", *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "eckart", *command, "--resume"], check=True)
    command[-1] = str(tmp_path / "whole")
    subprocess.run([sys.executable, "-m", "eckart", *command], check=True)
    assert contents(tmp_path / "small") == contents(tmp_path / "whole")


def test_killed_twice_and_finished_layers_are_not_made_again(
    arguments: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    out, journal = tmp_path / "small", tmp_path / ".small.journal"
    made: dict[str, int] = {}
    for count in (5, 3):
        resume = ["--resume"] if journal.exists() else []
        command = [sys.executable, "-c", KILLER, "layer", str(count), *arguments, "-o", str(out), *resume]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        layers = [path for path in journal.glob("*.safetensors") if path.name != "gradients.safetensors"]
        now = {path.name: path.stat().st_mtime_ns for path in layers}
        assert len(now) >= len(made) + count - 1  # another thread's may be half-written
        assert made.items() <= now.items()
        made = now
    subprocess.run([sys.executable, "-m", "eckart", *arguments, "-o", str(out), "--resume"], check=True)
    assert contents(out) == expected


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(
    arguments: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    out, journal = tmp_path / "small", tmp_path / ".small.journal"
    child = slow_run([*arguments, "-o", str(out)], journal)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "--resume goes on" in said
    assert journal.exists()
    subprocess.run([sys.executable, "-m", "eckart", *arguments, "-o", str(out), "--resume"], check=True)
    assert contents(out) == expected


SLOW = """
import eckart._compress._journal as j, time, sys
put = j.Journal.put
j.Journal.put = lambda *a: (put(*a), time.sleep(0.3))
from eckart.cli import main
main()
"""


def slow_run(arguments: list[str], journal: Path) -> subprocess.Popen[str]:
    """Return a run that has finished two layers, and takes its time for the others."""
    command = prepared([sys.executable, "-c", SLOW, *arguments], HEED_INTERRUPTS)
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if journal.exists() and len(list(journal.glob("*.safetensors"))) >= 2:
            break
        time.sleep(0.1)
    return child


@pytest.mark.parametrize("kept", [False, True])
def test_two_runs_do_not_work_in_one_folder(
    arguments: list[str], expected: dict[str, str], tmp_path: Path, kept: bool
) -> None:
    out, journal = tmp_path / "small", tmp_path / ("kept" if kept else ".small.journal")
    command = [*arguments, "-o", str(out), *(["--calibration", str(journal)] if kept else [])]
    child = slow_run(command, journal)
    for more in ([], ["--resume"]):
        other = [sys.executable, "-m", "eckart", *command, *more]
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
        assert refused.returncode == OutputError.status
        assert "another process is at work in" in refused.stderr
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert contents(out) == expected


def test_what_a_killed_run_was_saving_is_removed_by_the_next(arguments: list[str], tmp_path: Path) -> None:
    command = [*arguments, "-o", str(tmp_path / "small"), "--calibration", str(tmp_path / "kept")]
    killed = subprocess.run([sys.executable, "-c", KILLER, "checking", "0", *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".small.unfinished-*"))) == 1
    subprocess.run([sys.executable, "-m", "eckart", *command], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "small"]


@pytest.fixture
def interrupted(tiny: Tiny, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of a run that was stopped after its first layers."""
    job = {"data": texts["train"], "tokens": 1024, "context": 64, "out": tmp_path / "small"}

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("eckart._compress._journal.Journal.put_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            eckart.compress(tiny("llama"), 0.75, **job)
    return job


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"model": "untied"}),
        ("calibration", {"seed": 1}),
        ("calibration", {"tokens": 512}),
        ("configuration", {"method": "kfac"}),
        ("configuration", {"correct": True}),
        ("configuration", {"storage": "pair"}),
        ("configuration", {"layers": "*mlp*"}),
    ],
)
def test_another_run_is_refused_with_both_hashes(
    tiny: Tiny, interrupted: dict[str, Any], part: str, change: dict[str, Any]
) -> None:
    journal = interrupted["out"].with_name(".small.journal")
    there = json.loads((journal / "fingerprint.json").read_text())[part]
    model = tiny(change.pop("model", "llama"))
    with pytest.raises(UsageError, match=rf"its {part} is {there}, this one's [0-9a-f]{{64}}"):
        eckart.compress(model, 0.75, resume=True, **{**interrupted, **change})
    assert journal.exists()  # nothing is lost by a wrong call


def test_another_size_may_be_asked_for(tiny: Tiny, interrupted: dict[str, Any]) -> None:
    smaller = eckart.compress(tiny("llama"), 0.6, resume=True, **interrupted)
    shutil.rmtree(interrupted["out"])
    assert smaller.plan == eckart.compress(tiny("llama"), 0.6, **interrupted).plan


def test_one_calibration_serves_other_sizes_and_other_runs_are_refused(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"data": texts["train"], "tokens": 1024, "context": 64}
    fresh = {keep: eckart.plan(tiny("llama"), keep, **job) for keep in (0.8, 0.6)}
    kept = {"calibration": tmp_path / "kept", **job}
    assert eckart.plan(tiny("llama"), 0.8, **kept) == fresh[0.8]

    def made_again(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a layer was truncated again")

    monkeypatch.setattr("eckart._compress._calibrate.truncation", made_again)
    assert eckart.plan(tiny("llama"), 0.6, **kept) == fresh[0.6]
    small = eckart.compress(tiny("llama"), 0.6, recover="2 steps", out=tmp_path / "small", **kept)
    assert small.plan == fresh[0.6]
    assert not list((tmp_path / "kept").glob("training*"))
    with pytest.raises(UsageError, match="is of another run: its calibration is"):
        eckart.plan(tiny("llama"), 0.6, seed=1, **kept)
    with pytest.raises(OutputError, match="holds something else"):
        eckart.plan(tiny("llama"), 0.6, calibration=tmp_path / "small", **job)


def test_resume_begins_where_there_is_nothing_and_needs_a_place(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="out="):
        eckart.compress(tiny("llama"), 0.75, method="plain", resume=True)
    assert eckart.compress(tiny("llama"), 0.75, method="plain", resume=True, out=tmp_path / "new").replaced


def test_an_error_leaves_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("eckart._compress._journal.Journal.put", refuse)
    with pytest.raises(OutputError, match="the disk is full"):
        eckart.compress(tiny("llama"), 0.75, method="plain", out=tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
