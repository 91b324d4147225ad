"""From calibration text to the best approximations of every layer at every rank, one block in work at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from eckart._compress._journal import Journal
from eckart._compress._plan import SQUARES
from eckart._compress._tables import groups_of, metric_of, row_weights
from eckart._compress._workers import crew
from eckart._factorise import Cut, Gram, Truncation, truncation
from eckart._memory import give_back
from eckart._rounding import Rounding, rounding
from eckart.errors import InputError

if TYPE_CHECKING:
    import torch

    from eckart._compress._methods import Method
    from eckart._compress._sharing import Stacks
    from eckart.models._blocks import BlockRunner, Loss
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._model import Progress
    from eckart.models._taps import Taps

__all__ = ["batches_of", "home_blocks", "truncations"]

BATCH_TOKENS = 1024  # run through a block at once


def truncations(
    model: HuggingFaceModel,
    kept_ranks: Mapping[str, Sequence[int]],
    pieces: torch.Tensor | None,
    method: Method,
    stacks: Stacks,
    journal: Journal,
    *,
    device: Any,
    seed: int,
    workers: Any,
    progress: Progress,
) -> dict[str, Cut]:
    """Return the truncation of every layer, with factors up to the rank that is kept, in float32, in the journal.

    kept_ranks: by layer; one for a matrix, one a group for a table, which the method then must take in. stacks: layers
    that are truncated together: kept_ranks has the first of a stack across blocks, and a stack within one under its own
    name. seed: of the random probes of outputs.
    pieces: calibration tokens, (count, context); None for a method that looks at the weights alone. Only one block's
    Gram matrices, gradients, activations and factors are in memory at once; hidden states wait on disk. What the
    journal holds already is not made again. workers: see `crew`.
    """
    import torch

    from eckart.models._table import scale_of

    layers, stacked = model.layers(), stacks.stacked()
    owners = {name: stacks.owner(name) for name in [*kept_ranks, *stacks.rest()]}
    names = [name for name in (*layers, *stacked) if name in owners]
    tables = [name for name in names if name in layers and layers[name].table]

    def finished(name: str) -> bool:
        return journal.has(owners[name] or name) or (name in stacks.rest() and journal.has_metric(name))

    def cut(name: str, taps: Taps | None) -> None:
        if owners[name]:
            assert taps is not None
            cut_member(name, taps)
            return
        together = stacked.get(name, [name])
        if taps is not None and (unused := set(together) - set(taps.inputs)):
            raise InputError(
                f"{min(unused)} is not called on the calibration text, so nothing is known of what it reads",
                fix=f"layers='!*.{min(unused).rpartition('.')[2]}', or where it is an expert, other or more text",
            )
        metrics = [method.metric(taps, one) if taps else (None, None) for one in together]
        inputs, outputs = metrics[0][0], [outputs for _, outputs in metrics if outputs is not None]
        weight = torch.cat([model.weight(one) for one in together]).to(device)
        (k,) = kept_ranks[name]
        journal.put(name, *made_by.truncation(weight, inputs, torch.block_diag(*outputs) if outputs else None, k))

    def cut_member(name: str, taps: Taps) -> None:
        metric, _ = method.metric(taps, name)
        if name != owners[name]:  # of a later block, which comes first
            journal.put_metric(name, metric)
            return
        together = [one.name for one in stacks.members[name]]
        for other in together[1:]:
            metric = metric + journal.metric(other).to(metric.device)
        weight = torch.cat([model.weight(one) for one in together]).to(device)
        (k,) = kept_ranks[name]
        journal.put(name, *made_by.truncation(weight, metric, None, k))

    def cut_table(name: str, gradients: Gram | None) -> None:
        seen, weight = journal.seen(name), model.weight(name).to(device)
        shares, metric = row_weights(seen).to(weight.device), metric_of(seen, gradients).to(weight.device)
        rows = groups_of(shares)

        def cut_group(some: torch.Tensor, k: int) -> tuple[Truncation, Rounding]:
            part, grams = weight[some], {"inputs": metric, "outputs": shares[some]}
            found = truncation(part, keep_rank=min(k, len(some)), **grams)
            return found.stored(), rounding(part, found, pivoting=False, **grams)

        journal.put_table(name, rows, map(cut_group, rows, kept_ranks[name]))

    with crew(workers, device or model.device) as made_by:

        def take(some: Sequence[str], taps: Taps | None) -> Iterator[str]:
            left = [name for name in some if not finished(name)]
            yield from (name for name in some if name not in left)
            yield from (name for name, _ in zip(left, made_by.pool.map(cut, left, [taps] * len(left)), strict=True))

        if pieces is None:
            for done, _ in enumerate(take(names, None), 1):
                progress("factorising", done, len(names))
        elif not all(map(finished, names)):
            with contextlib.closing(model.runner(batches_of(pieces), device, journal.folder)) as runner:
                others = [name for name in names if name not in tables]
                gradients = _sweep(
                    runner,
                    model,
                    others,
                    tables,
                    method,
                    lambda some, taps: list(take(some, taps)),
                    journal,
                    progress,
                    _probed(seed) if method.unit == SQUARES else _predicted,
                    stacked,
                )
                for name in tables:
                    gram = None
                    if layers[name].looked_up:
                        gram = Gram(layers[name].columns, device)
                        embedding = model.module.get_submodule(name)
                        for rows in runner.before(embedding, gradients):
                            gram.add((scale_of(embedding) or 1.0) * rows.reshape(-1, rows.shape[-1]))
                    cut_table(name, gram)
                    give_back()
    return stacks.cuts(
        {
            name: journal.get_table(name, model.weight(name), layers[name].bias)
            if name in tables
            else journal.get(name)
            for name in kept_ranks
        }
    )


def batches_of(pieces: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the pieces in batches that are run through a block at once."""
    batches: Sequence[torch.Tensor] = pieces.split(max(1, BATCH_TOKENS // pieces.shape[1]))
    return batches


def home_blocks(names: Sequence[str], blocks: Sequence[str]) -> dict[str, int]:
    """Return for each layer the index of the block that it is in, -1 outside the blocks."""
    return {name: next((i for i, block in enumerate(blocks) if name.startswith(block + ".")), -1) for name in names}


def _predicted(output: Any, tokens: torch.Tensor) -> torch.Tensor:
    from eckart.models._quality import next_token_loss

    return next_token_loss(output[0], tokens)


def _probed(seed: int) -> Loss:
    import torch

    from eckart.models._quality import output_probe

    generator = torch.Generator().manual_seed(seed)
    return lambda output, tokens: output_probe(output[0], generator)


def _sweep(
    runner: BlockRunner,
    model: HuggingFaceModel,
    names: Sequence[str],
    tables: Sequence[str],
    method: Method,
    take: Callable[[Sequence[str], Taps | None], object],
    journal: Journal,
    progress: Progress,
    loss: Loss,
    stacked: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[torch.Tensor]:
    """Run forward block by block, then the head, then backward block by block, and hand over each block's Grams.

    Returns the gradients that reach the first block. stacked: of which layers some names are stacks. What is seen of
    `tables` goes to the journal. Where the journal holds gradients at a block boundary, nothing beyond it is run again.
    """

    def tap(some: Sequence[str]) -> contextlib.AbstractContextManager[Taps]:
        alone = dict.fromkeys(one for name in some for one in stacked.get(name, [name]))
        return model.tap(list(alone), gradients=method.gradients)

    blocks = model.blocks()
    home = home_blocks(names, blocks)
    backward, reached = method.gradients != "none", journal.gradients()
    last = len(blocks) if reached is None else reached[0]
    steps = 2 * last + 1
    runner.start()
    for i in range(last):
        progress("calibrating", i, steps)
        runner.forward(i)
        give_back()
    gradients: list[torch.Tensor] = []
    if reached is None:
        outside = [name for name in names if home[name] < 0]
        with contextlib.ExitStack() as listening:
            taps = listening.enter_context(tap(outside))
            seen = {name: listening.enter_context(model.tap_table(name)) for name in tables}
            if backward:
                gradients = runner.tail(loss)
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
        with tap(inside) as taps:
            if backward:
                gradients = runner.backward(i, gradients)
            else:
                runner.forward(i)
        give_back()
        take(inside, taps)
        if backward:
            journal.put_gradients(i, gradients)
        give_back()
    progress("calibrating", steps, steps)
    return gradients
