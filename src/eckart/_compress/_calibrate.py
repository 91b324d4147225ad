"""From calibration text to the best approximations of every layer at every rank, one block in work at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from eckart._factorise import Truncation, truncation

if TYPE_CHECKING:
    import torch

    from eckart._compress._methods import Method
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
    *,
    device: Any,
    progress: Progress,
) -> dict[str, Truncation]:
    """Return the truncation of every layer in `names`, with factors up to kept_rank(name), in float32.

    pieces: calibration tokens, (count, context); None for a method that looks at the weights alone. Only one block's
    Gram matrices, gradients and activations exist at once; hidden states are kept at the block boundaries.
    """
    found: dict[str, Truncation] = {}

    def cut(name: str, taps: Taps | None) -> Truncation:
        inputs, outputs = method.metric(taps, name) if taps else (None, None)
        weight = model.weight(name).to(device)
        return truncation(weight, inputs=inputs, outputs=outputs, keep_rank=kept_rank(name)).stored()

    with _one_thread_each() as pool:

        def take(some: Sequence[str], taps: Taps | None) -> Iterator[str]:
            for name, truncated in zip(some, pool.map(cut, some, [taps] * len(some)), strict=True):
                found[name] = truncated
                yield name

        if pieces is None:
            for done, _ in enumerate(take(names, None), 1):
                progress("factorising", done, len(names))
        else:
            batches = pieces.split(max(1, BATCH_TOKENS // pieces.shape[1]))
            _sweep(model, names, batches, method, lambda some, taps: list(take(some, taps)), device, progress)
    return found


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
    model: HuggingFaceModel,
    names: Sequence[str],
    batches: Sequence[torch.Tensor],
    method: Method,
    take: Callable[[Sequence[str], Taps | None], object],
    device: Any,
    progress: Progress,
) -> None:
    """Run forward block by block, then the head, then backward block by block, and hand over each block's Grams."""
    from eckart.models._quality import next_token_loss

    runner = model.runner(batches, device)
    blocks = model.blocks()
    home = {name: next((i for i, block in enumerate(blocks) if name.startswith(block + ".")), -1) for name in names}
    steps, backward = 2 * len(blocks) + 1, method.gradients != "none"
    runner.start()
    for i in range(len(blocks)):
        progress("calibrating", i, steps)
        runner.forward(i)
    outside = [name for name in names if home[name] < 0]
    with model.tap(outside, gradients=method.gradients) as taps:
        if backward:
            gradients = runner.tail(lambda output, tokens: next_token_loss(output[0], tokens))
        else:
            gradients = []
            for b in range(len(batches)):
                runner.outputs(b)
    take(outside, taps)
    for i in reversed(range(len(blocks))):
        progress("calibrating", 2 * len(blocks) - i, steps)
        inside = [name for name in names if home[name] == i]
        with model.tap(inside, gradients=method.gradients) as taps:
            if backward:
                gradients = runner.backward(i, gradients)
            else:
                runner.forward(i)
        take(inside, taps)
    progress("calibrating", steps, steps)
