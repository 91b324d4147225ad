"""Layers truncated by threads, by processes and by Dask workers are the same bit for bit, and nothing stays running."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.children import HEED_INTERRUPTS, prepared

import eckart
from eckart.errors import EckartError, UsageError

Tiny = Callable[..., Path]
KINDS = ("llama", "gpt2")  # matrices stored as they are, and transposed


def job(texts: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {"data": texts["train"], "tokens": 512, "context": 64, **more}


@pytest.fixture(scope="module")
def by_threads(tiny: Tiny, texts: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    return {kind: dict(eckart.compress(tiny(kind), 0.75, **job(texts)).tensors()) for kind in KINDS}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Dask cluster of two worker processes."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, worker_dashboard_address=None
    ) as made:
        yield made


def same(small: Any, expected: dict[str, torch.Tensor]) -> bool:
    found = dict(small.tensors())
    assert list(found) == list(expected)
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("kind", "count"), [("llama", 1), ("gpt2", 2)])
def test_processes_give_the_bits_of_threads(
    tiny: Tiny, texts: dict[str, Path], by_threads: dict[str, Any], kind: str, count: int
) -> None:
    before = set(multiprocessing.active_children())
    assert same(eckart.compress(tiny(kind), 0.75, workers=count, **job(texts)), by_threads[kind])
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_dask_workers_give_the_bits_of_threads(
    tiny: Tiny, texts: dict[str, Path], by_threads: dict[str, Any], cluster: Any, kind: str
) -> None:
    with cluster.get_client() as client:
        assert same(eckart.compress(tiny(kind), 0.75, workers=client, **job(texts)), by_threads[kind])
        assert client.futures == {}, "a result was left on the cluster"
    address = cluster.scheduler_address
    made = eckart.plan(tiny(kind), 0.75, workers=address, **job(texts))
    assert made == eckart.plan(tiny(kind), 0.75, **job(texts))


def test_what_a_lost_dask_worker_had_is_done_by_another(
    tiny: Tiny, texts: dict[str, Path], by_threads: dict[str, Any], cluster: Any
) -> None:
    with cluster.get_client() as client:
        victims = list(client.run(os.getpid).values())[:1]

        def kill(stage: str, done: int, total: int) -> None:
            if stage == "calibrating" and 2 * done > total and victims:
                os.kill(victims.pop(), signal.SIGKILL)

        assert same(
            eckart.compress(tiny("llama"), 0.75, workers=client, progress=kill, **job(texts)), by_threads["llama"]
        )
        assert not victims


def test_a_lost_process_is_a_clear_error(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())  # those of a cluster

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "calibrating" and 2 * done > total:
            for child in set(multiprocessing.active_children()) - before:
                child.kill()

    with pytest.raises(EckartError, match="a worker process ended before its layer was finished"):
        eckart.compress(tiny("llama"), 0.75, workers=2, progress=kill, out=tmp_path / "small", **job(texts))
    assert list(tmp_path.iterdir()) == []
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_no_worker_outlives_a_run_that_is_ended(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, ending: signal.Signals
) -> None:
    slow = "import eckart._compress._journal as j, time\nput = j.Journal.put\n" \
        "j.Journal.put = lambda *a: (put(*a), time.sleep(0.3))\nfrom eckart.cli import main; main()"  # fmt: skip
    command = [sys.executable, "-c", slow, "compress", str(tiny("llama")), "--keep", "0.75", "--workers", "2", "--data",
               str(texts["train"]), "--tokens", "512", "--context", "64", "-o", str(tmp_path / "small")]  # fmt: skip
    run = subprocess.Popen(prepared(command, HEED_INTERRUPTS), stderr=subprocess.DEVNULL)
    workers = waited_for(lambda: children(run.pid) if list(tmp_path.glob(".small.journal/*.safetensors")) else [])
    assert len(workers) >= 2
    run.send_signal(ending)
    assert run.wait(60) == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    assert waited_for(lambda: not any(map(running, workers)))


def waited_for(found: Callable[[], Any]) -> Any:
    for _ in range(600):
        if answer := found():
            return answer
        time.sleep(0.1)
    pytest.fail("nothing happened for a minute")


def children(pid: int) -> list[int]:
    return [int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()]


def running(pid: int) -> bool:
    """Whether there is such a process, other than as a name that nobody has asked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, object()])
def test_workers_that_cannot_be_are_refused(tiny: Tiny, workers: Any) -> None:
    with pytest.raises(UsageError, match="neither a number of processes nor a Dask client"):
        eckart.plan(tiny("llama"), 0.75, method="plain", workers=workers)


def test_workers_and_another_device_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"workers= are CPUs, and the work was to be done on cuda"):
        eckart.plan(tiny("llama"), 0.75, method="plain", workers=2, device="cuda")


def test_a_scheduler_that_is_not_there_is_said(tiny: Tiny, texts: dict[str, Path]) -> None:
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UsageError, match=r"there is no Dask scheduler at tcp://127\.0\.0\.1:1"),
    ):
        eckart.plan(tiny("llama"), 0.75, workers="tcp://127.0.0.1:1", **job(texts))
