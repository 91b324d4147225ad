"""Who truncates the layers: threads of this process, processes of this machine, or the workers of a Dask cluster.

A truncation is a function of one layer's arrays and takes one thread wherever it runs, so that its bits do not depend
on who makes it. A worker gets the arrays when it begins and keeps nothing; as many layers are under way as there are
workers. Layers that share an input Gram each send it: it takes a small part of the time of the eigenproblem.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eckart._factorise import Truncation, truncation
from eckart._rounding import Rounding, rounding
from eckart.errors import EckartError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Crew", "check_workers", "crew"]

Submit = Callable[..., Any]  # of a function and its arguments; the result has a method result()


@dataclass(frozen=True)
class Crew:
    """pool: a thread for each worker, that waits for it, or does the work itself where `submit` is None."""

    pool: ThreadPoolExecutor
    submit: Submit | None = None

    def truncation(
        self, weight: torch.Tensor, inputs: torch.Tensor | None, outputs: torch.Tensor | None, keep_rank: int
    ) -> tuple[Truncation, Rounding]:
        """Return `truncation(…).stored()` and what rounding it costs; called in a thread of the pool.

        EckartError: the worker was lost.
        """
        weight = weight.contiguous()  # what is sent arrives so, and products of transposed matrices round otherwise
        if self.submit is None:
            return _truncated(weight, inputs, outputs, keep_rank)
        arrays = (None if part is None else part.numpy() for part in (weight, inputs, outputs))
        found: tuple[Truncation, Rounding] = self.submit(_truncated_there, _facts(), *arrays, keep_rank).result()
        return found


def check_workers(workers: Any, device: Any) -> None:
    """Raise UsageError unless `workers` is None, a number of processes, or a Dask client or its scheduler's address."""
    if workers is None:
        return
    if not isinstance(workers, str) and not hasattr(workers, "submit") and (type(workers) is not int or workers < 1):
        raise UsageError(
            f"workers = {workers!r:.80} is neither a number of processes nor a Dask client",
            fix="an integer from 1 on, a dask.distributed.Client, or the address of a scheduler, such as tcp://…:8786",
        )
    if str(device or "cpu") != "cpu":
        raise UsageError(f"workers= are CPUs, and the work was to be done on {device}", fix="drop workers= or device=")


def crew(workers: Any, device: Any) -> contextlib.AbstractContextManager[Crew]:
    """Give the workers that `workers` asks for: None, as many threads as torch has; otherwise as `check_workers` says.

    Where the work is another device's, one thread: it has no use for more, and torch loads its solvers from one only.
    When the block ends, however it does, nothing is left running that was begun here.
    """
    import torch

    if workers is None:
        return _threads(None if torch.device(device).type == "cpu" else 1)
    return _processes(workers) if isinstance(workers, int) else _dask(workers)


@contextlib.contextmanager
def _threads(count: int | None = None) -> Iterator[Crew]:
    """Give threads with one thread of torch's each.

    An eigenproblem of this size gains little from threads of its own, and on a busy machine it waits in thousands of
    barriers; and with one thread its bits do not depend on how many workers there are.
    """
    import torch

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(count or threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield Crew(pool)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Crew]:
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin_process)
    try:
        with _threads(count) as waiting:
            yield Crew(waiting.pool, executor.submit)
    except BrokenProcessPool as error:
        raise EckartError(
            "a worker process ended before its layer was finished",
            why="it was killed, which the system does when memory runs out; or a script used workers= outside of "
            "`if __name__ == '__main__':`, which every new process runs again",
            fix="fewer workers",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """Leave interruptions to the parent, and end with it however it ends."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _dask(workers: Any) -> Iterator[Crew]:
    try:
        import dask
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise MissingExtraError("distributed", "dask", "spreading work over a Dask cluster") from error
    with contextlib.ExitStack() as ending:
        try:
            client = ending.enter_context(Client(workers)) if isinstance(workers, str) else workers  # type: ignore[no-untyped-call]
        except OSError as error:
            raise UsageError(f"there is no Dask scheduler at {workers}: {error}", fix="check the address") from error
        size, pending = sum(client.nthreads().values()), dict[int, Any]()
        if not size:
            raise UsageError("the Dask cluster has no workers", fix="start some, or drop workers=")

        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            # The arrays go with the task, so that another worker can do it when one is lost.
            future = pending[threading.get_ident()] = client.submit(function, *arguments, pure=False)
            return future

        ending.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}))
        try:
            with _threads(size) as waiting:
                try:
                    yield Crew(waiting.pool, submit)
                finally:
                    client.cancel(list(pending.values()))
        except KilledWorker as error:
            raise EckartError(
                "a layer was given to several Dask workers, and each was lost",
                why="the system ends a process when memory runs out",
                fix="workers with fewer threads or more memory",
            ) from error


def _truncated(
    weight: torch.Tensor, inputs: torch.Tensor | None, outputs: torch.Tensor | None, keep_rank: int
) -> tuple[Truncation, Rounding]:
    found = truncation(weight, inputs=inputs, outputs=outputs, keep_rank=keep_rank)
    return found.stored(), rounding(weight, found, inputs=inputs, outputs=outputs)


def _truncated_there(facts: str, weight: Any, inputs: Any, outputs: Any, keep_rank: int) -> tuple[Truncation, Rounding]:
    """Return the same from arrays: what a worker does."""
    import torch

    if (here := _facts()) != facts:
        raise UsageError(
            f"a worker has {here} and this process {facts}, so that their results differ",
            fix="the same versions and the same kind of processor everywhere",
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        w, x, y = (None if part is None else torch.tensor(part) for part in (weight, inputs, outputs))
        assert w is not None
        return _truncated(w, x, y, keep_rank)
    finally:
        torch.set_num_threads(threads)


def _facts() -> str:
    import torch

    import eckart

    return f"eckart {eckart.__version__}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
