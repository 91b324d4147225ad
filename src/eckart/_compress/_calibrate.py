"""From calibration text to the best approximations of every layer at every rank, one block in work at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from eckart._compress._journal import Journal
from eckart._compress._tables import groups_of, metric_of, row_weights
from eckart._factorise import Cut, Gram, truncation
from eckart._rounding import rounding

if TYPE_CHECKING:
    import torch

    from eckart._compress._methods import Method
    from eckart.models._blocks import BlockRunner
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._model import Progress
    from eckart.models._taps import Taps

__all__ = ["BATCH_TOKENS", "truncations"]

BATCH_TOKENS = 1024  # run through a block at once

Kept = Callable[[str], Sequence[int]]


def truncations(
    model: HuggingFaceModel,
    names: Sequence[str],
    pieces: torch.Tensor | None,
    method: Method,
    kept_ranks: Kept,
    journal: Journal,
    *,
    device: Any,
    progress: Progress,
) -> dict[str, Cut]:
    """Return the truncation of every layer in `names`, with factors up to kept_ranks(name), in float32, in the journal.

    kept_ranks: one for a matrix, one a group for a table, which the method then must take in.
    pieces: calibration tokens, (count, context); None for a method that looks at the weights alone. Only one block's
    Gram matrices, gradients, activations and factors are in memory at once; hidden states wait on disk. What the
    journal holds already is not made again.
    """

    def cut(name: str, taps: Taps | None) -> None:
        inputs, outputs = method.metric(taps, name) if taps else (None, None)
        weight = model.weight(name).to(device)
        (k,) = kept_ranks(name)
        found = truncation(weight, inputs=inputs, outputs=outputs, keep_rank=k)
        journal.put(name, found.stored(), rounding(weight, found, inputs=inputs, outputs=outputs))

    def cut_table(name: str, gradients: Gram) -> None:
        seen, weight = journal.seen(name), model.weight(name).to(device)
        shares, metric = row_weights(seen).to(weight.device), metric_of(seen, gradients).to(weight.device)
        rows = groups_of(shares)
        cuts = []
        for some, k in zip(rows, kept_ranks(name), strict=True):
            part, grams = weight[some], {"inputs": metric, "outputs": shares[some]}
            found = truncation(part, keep_rank=min(k, len(some)), **grams)
            cuts.append((found.stored(), rounding(part, found, pivoting=False, **grams)))
        journal.put_table(name, rows, cuts)

    with _one_thread_each(device or model.module.device) as pool:

        def take(some: Sequence[str], taps: Taps | None) -> Iterator[str]:
            left = [name for name in some if not journal.has(name)]
            yield from (name for name in some if name not in left)
            yield from (name for name, _ in zip(left, pool.map(cut, left, [taps] * len(left)), strict=True))

        if pieces is None:
            for done, _ in enumerate(take(names, None), 1):
                progress("factorising", done, len(names))
        elif not all(map(journal.has, names)):
            batches = pieces.split(max(1, BATCH_TOKENS // pieces.shape[1]))
            with contextlib.closing(model.runner(batches, device, journal.folder)) as runner:
                tables = [name for name in names if model.layers()[name].table]
                others = [name for name in names if name not in tables]
                gradients = _sweep(
                    runner, model, others, tables, method, lambda some, taps: list(take(some, taps)), journal, progress
                )
                for name in tables:
                    gram = Gram(model.weight(name).shape[1], device)
                    for rows in runner.before(model.module.get_submodule(name), gradients):
                        gram.add(rows.reshape(-1, rows.shape[-1]))
                    cut_table(name, gram)
    layers = model.layers()
    return {
        name: journal.get_table(name, model.weight(name)) if layers[name].table else journal.get(name) for name in names
    }


@contextlib.contextmanager
def _one_thread_each(device: Any) -> Iterator[ThreadPoolExecutor]:
    """Give workers for one layer each, as many as torch has threads, each with one thread of its own.

    Where the work is another device's, one: it has no use for more, and torch loads its solvers from one thread only.

    An eigenproblem of this size gains little from threads of its own, and on a busy machine it waits in thousands of
    barriers; and with one thread its bits do not depend on how many workers there are.
    """
    import torch

    threads = torch.get_num_threads()
    workers = threads if torch.device(device).type == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _sweep(
    runner: BlockRunner,
    model: HuggingFaceModel,
    names: Sequence[str],
    tables: Sequence[str],
    method: Method,
    take: Callable[[Sequence[str], Taps | None], object],
    journal: Journal,
    progress: Progress,
) -> list[torch.Tensor]:
    """Run forward block by block, then the head, then backward block by block, and hand over each block's Grams.

    Returns the gradients that reach the first block. What is seen of `tables` goes to the journal.
    Where the journal holds gradients at a block boundary, nothing beyond it is run again.
    """
    from eckart.models._quality import next_token_loss

    blocks = model.blocks()
    home = {name: next((i for i, block in enumerate(blocks) if name.startswith(block + ".")), -1) for name in names}
    backward, reached = method.gradients != "none", journal.gradients()
    last = len(blocks) if reached is None else reached[0]
    steps = 2 * last + 1
    runner.start()
    for i in range(last):
        progress("calibrating", i, steps)
        runner.forward(i)
    gradients: list[torch.Tensor] = []
    if reached is None:
        outside = [name for name in names if home[name] < 0]
        with contextlib.ExitStack() as listening:
            taps = listening.enter_context(model.tap(outside, gradients=method.gradients))
            seen = {name: listening.enter_context(model.tap_table(name)) for name in tables}
            if backward:
                gradients = runner.tail(lambda output, tokens: next_token_loss(output[0], tokens))
            else:
                for b in range(len(runner.batches)):
                    runner.outputs(b)
        for name in tables:
            journal.put_seen(name, seen[name])
        take(outside, taps)
    else:
        gradients = reached[1]
    for i in reversed(range(last)):
        progress("calibrating", 2 * last - i, steps)
        inside = [name for name in names if home[name] == i]
        with model.tap(inside, gradients=method.gradients) as taps:
            if backward:
                gradients = runner.backward(i, gradients)
            else:
                runner.forward(i)
        take(inside, taps)
        if backward:
            journal.put_gradients(i, gradients)
    progress("calibrating", steps, steps)
    return gradients
