"""From calibration text to the best approximations of every layer at every rank, one block in work at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from eckart._compress._journal import Journal, StoredTruncation
from eckart._factorise import truncation

if TYPE_CHECKING:
    import torch

    from eckart._compress._methods import Method
    from eckart.models._blocks import BlockRunner
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._model import Progress
    from eckart.models._taps import Taps

__all__ = ["BATCH_TOKENS", "truncations"]

BATCH_TOKENS = 1024  # run through a block at once

Kept = Callable[[str], int]


def truncations(
    model: HuggingFaceModel,
    names: Sequence[str],
    pieces: torch.Tensor | None,
    method: Method,
    kept_rank: Kept,
    journal: Journal,
    *,
    device: Any,
    progress: Progress,
) -> dict[str, StoredTruncation]:
    """Return the truncation of every layer in `names`, with factors up to kept_rank(name), in float32, in the journal.

    pieces: calibration tokens, (count, context); None for a method that looks at the weights alone. Only one block's
    Gram matrices, gradients, activations and factors are in memory at once; hidden states wait on disk. What the
    journal holds already is not made again.
    """

    def cut(name: str, taps: Taps | None) -> None:
        inputs, outputs = method.metric(taps, name) if taps else (None, None)
        weight = model.weight(name).to(device)
        journal.put(name, truncation(weight, inputs=inputs, outputs=outputs, keep_rank=kept_rank(name)).stored())

    with _one_thread_each() as pool:

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
                _sweep(runner, model, names, method, lambda some, taps: list(take(some, taps)), journal, progress)
    return {name: journal.get(name) for name in names}


@contextlib.contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Give workers for one layer each, as many as torch has threads, each with one thread of its own.

    An eigenproblem of this size gains little from threads of its own, and on a busy machine it waits in thousands of
    barriers; and with one thread its bits do not depend on how many workers there are.
    """
    import torch

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _sweep(
    runner: BlockRunner,
    model: HuggingFaceModel,
    names: Sequence[str],
    method: Method,
    take: Callable[[Sequence[str], Taps | None], object],
    journal: Journal,
    progress: Progress,
) -> None:
    """Run forward block by block, then the head, then backward block by block, and hand over each block's Grams.

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
        with model.tap(outside, gradients=method.gradients) as taps:
            if backward:
                gradients = runner.tail(lambda output, tokens: next_token_loss(output[0], tokens))
            else:
                for b in range(len(runner.batches)):
                    runner.outputs(b)
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
