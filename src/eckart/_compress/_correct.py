"""Sequential correction: factors fitted anew, block by block, to what the compressed blocks before them let through.

A layer y = W x of the dense network reads x' once the layers before it are compressed. With G' = Σ x' x'ᵀ and
C = Σ x x'ᵀ, the matrix that brings x' nearest to the target τ W x + (1 - τ) W x' is, β being a ridge towards W,

    W* = W + τ W (C - G') (G' + βI)⁻¹.

Of it, `up` is fitted anew, and `down`, the directions that count, stays as it was truncated: with the metric M, which
is G' moved towards its mean eigenvalue as the truncation's was, up = W* M downᵀ (down M downᵀ)⁻¹. No other `up` is
nearer to W* whatever weight outputs have, so that it is the best in the two-sided metric too, without its output Gram;
and where x' = x it is what it was.

Sources: Zhang et al., TPAMI 38(10), 2016; τ = 0, SVD-LLM's update (ICLR 2025); the mixture and the fit of `down`, MPIFA
(ICML 2025).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eckart._compress._calibrate import batches_of, home_blocks
from eckart._factorise import Pair

if TYPE_CHECKING:
    import torch

    from eckart._compress._job import Job, Planned
    from eckart._compress._methods import Correction
    from eckart._factorise import RowGroups
    from eckart.models._blocks import BlockRunner
    from eckart.models._cross import CrossGram
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._option import Option

__all__ = ["correct_", "refit"]


def refit(weight: torch.Tensor, pair: Pair, seen: CrossGram, how: Correction) -> Pair:
    """Return the pair of W, (m, n), fitted to what was seen of its inputs, in float64."""
    import torch

    w, down, gram = weight.double(), pair.down.to(weight.device).double(), seen.gram
    eye, level = torch.eye(len(gram), dtype=gram.dtype, device=gram.device), gram.diagonal().mean()
    metric = (1 - how.shrinkage) * gram + how.shrinkage * level * eye
    drift = how.target * (seen.cross - gram)
    if how.ridge:
        drift = drift @ torch.linalg.solve(gram + how.ridge * level * eye, metric)
    # Fewer tokens than directions leave some without data; these get the least solution, as least squares give it.
    up = w @ (metric + drift) @ down.T @ torch.linalg.pinv(down @ metric @ down.T, hermitian=True)
    if how.down_ridge is not None:
        mixed = gram + how.target * (seen.cross - gram)
        wanted = torch.linalg.solve(gram + how.down_ridge * eye, w @ (mixed + how.down_ridge * eye), left=False)
        down = torch.linalg.pinv(up) @ wanted
    return Pair(up, down)


def correct_(
    job: Job,
    found: Planned,
    small: HuggingFaceModel,
    options: Mapping[str, Option],
    put_: Callable[[str, Pair | RowGroups], None],
) -> None:
    """Put factors of these options into `small`, a copy of the job's model, with put_; inside blocks, corrected ones.

    Tables, shared factors and what is outside the blocks are put as they were truncated. What the journal holds of a
    run with the same options is not fitted again.
    """
    dense, how, journal = job.model, job.correction, found.journal
    assert how is not None
    assert found.pieces is not None
    blocks = dense.blocks()
    homes = home_blocks(list(options), blocks)
    inside = [name for name, i in homes.items() if i >= 0 and options[name].format in ("pair", "pifa", "folded")]
    for name, option in options.items():
        if name not in inside:
            put_(name, found.cuts[name].factors(option.format, option.ranks))
    described = json.dumps([repr(how), {name: option.to_json() for name, option in options.items()}])
    digest = hashlib.sha256(described.encode()).hexdigest()
    batches = batches_of(found.pieces)
    with (
        contextlib.closing(dense.runner(batches, job.device, journal.folder)) as before,
        contextlib.closing(small.runner(batches, job.device, journal.folder)) as after,
    ):
        for runner in (before, after):
            runner.start()
        for i in range(len(blocks)):
            job.progress("correcting", i, len(blocks))
            here = [name for name in inside if homes[name] == i]
            for stage in _stages(dense, before, i, here, how):
                left = [name for name in stage if not journal.has_refit(name, digest)]
                seen = _seen(dense, small, before, after, i, left) if left else {}
                for name in left:
                    pair = found.cuts[name].factors(options[name].format, options[name].ranks)
                    assert isinstance(pair, Pair)
                    journal.put_refit(name, digest, refit(dense.weight(name).to(job.device), pair, seen[name], how))
                for name in stage:
                    put_(name, journal.refit(name, digest))
            for runner in (before, after):
                runner.forward(i)
                runner.states.drop(i)
        job.progress("correcting", len(blocks), len(blocks))


def _stages(
    dense: HuggingFaceModel, runner: BlockRunner, i: int, names: Sequence[str], how: Correction
) -> list[list[str]]:
    """Return which layers of block i are fitted together, in the order in which they run."""
    if how.together or not names:
        return [list(names)] if names else []
    from eckart.models._cross import calls_in_order

    stages: list[list[str]] = []
    for name in calls_in_order(_modules(dense, names), lambda: next(runner.through(i))):
        if stages and name in dense.layers()[stages[-1][0]].group:
            stages[-1].append(name)
        else:
            stages.append([name])
    return stages


def _seen(
    dense: HuggingFaceModel,
    small: HuggingFaceModel,
    before: BlockRunner,
    after: BlockRunner,
    i: int,
    names: Sequence[str],
) -> dict[str, CrossGram]:
    """Run block i of both models, batch by batch, and return the sums over the inputs of these layers."""
    from eckart.models._cross import cross_tapped

    with cross_tapped(_modules(dense, names), _modules(small, names)) as (seen, add):
        for _ in zip(before.through(i), after.through(i), strict=True):
            add()
    return seen


def _modules(model: HuggingFaceModel, names: Sequence[str]) -> dict[str, Any]:
    return {name: model.module.get_submodule(name) for name in names}
