"""Methods that change the shape of the whole model and no layer's form: blocks left out, a narrower residual stream.

Their plan has no options of layers, but a `change`: what is dropped, or how wide the stream becomes. The result is an
ordinary model, smaller as it stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eckart._compress._plan import LayerPlan, Plan
from eckart._factorise import Gram
from eckart.errors import BudgetError, UsageError

if TYPE_CHECKING:
    import torch

    from eckart._compress._job import Job
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["DROP_LAYERS", "SLICE", "Reshape", "block_influence", "reshaped"]


@dataclass(frozen=True)
class Reshape:
    """What a method of this kind does.

    study: from the calibration tokens, what the choice depends on. changes: what the model can become, from the largest
    to the smallest, in JSON values. apply: the model that one of them makes; UsageError where it does not fit.
    """

    study: Callable[[Job, torch.Tensor], Any]
    changes: Callable[[HuggingFaceModel, Any], Sequence[dict[str, Any]]]
    apply: Callable[[HuggingFaceModel, Mapping[str, Any], Any], HuggingFaceModel]


def reshaped(job: Job, given: Plan | None) -> HuggingFaceModel:
    """Return the largest model that a method of this kind makes within the target, or that of a plan; it has a `plan`.

    BudgetError: the smallest one is too large.
    """
    from eckart._compress._job import calibration_pieces
    from eckart.models._save_huggingface import predicted_bytes

    model, target, kind, pieces = job.model, job.target, job.method.reshape, calibration_pieces(job)
    assert kind is not None
    assert pieces is not None
    study = kind.study(job, pieces)

    def size(one: HuggingFaceModel) -> int:
        return predicted_bytes(one, {}, dtype=job.dtype, max_shard_bytes=job.max_shard_bytes)

    def made(change: Mapping[str, Any]) -> HuggingFaceModel:
        small = kind.apply(model, change, study)
        small.plan = Plan(
            model=model.name,
            method=job.method.name,
            keep=target.keep if target else given.keep if given else None,
            size=target.size if target else given.size if given else None,
            cost=target.cost if target else given.cost if given else "params",
            dtype=job.dtype,
            seed=job.seed,
            unit=job.method.unit,
            layers=tuple(_unchanged(job, name) for name in model.layers()),
            parameters_before=model.parameters,
            parameters_after=small.parameters,
            bytes_before=size(model),
            bytes_after=size(small),
            change=change,
        )
        return small

    if given is not None:
        return made(given.change or {})
    assert target is not None
    count = size if target.cost == "bytes" else lambda one: one.parameters
    allowed = target.size or int((target.keep or 0) * count(model))
    changes = kind.changes(model, study)
    low, high, best = 0, len(changes), None  # changes[high:] fit, if anything does
    while low < high:
        middle = (low + high) // 2
        small = made(changes[middle])
        if count(small) <= allowed:
            high, best = middle, small
        else:
            low = middle + 1
    if best is None:
        raise BudgetError(
            f"{allowed:,} {target.cost} are asked for, fewer than method {job.method.name!r} can leave of {model.name}",
            fix="a larger keep",
        )
    return best


def _unchanged(job: Job, name: str) -> LayerPlan:
    layer, option = job.model.layers()[name], job.model.options(name, job.dtype, {})[0]
    why = "left to the change of the whole model"
    return LayerPlan(name, layer.rows, layer.columns, layer.bias, option, option, kept=why, table=layer.table)


# Blocks left out, those first that change their input least: ShortGPT (Men et al., arXiv 2403.03853).


def block_influence(job: Job, pieces: torch.Tensor) -> list[float]:
    """Return for each block 1 - the mean over tokens of the cosine between what goes in and what comes out."""
    import torch

    from eckart._compress._calibrate import batches_of

    found, count, batches = [], len(job.model.blocks()), batches_of(pieces)
    with contextlib.closing(job.model.runner(batches, job.device)) as runner:
        runner.start()
        for i in range(count):
            job.progress("calibrating", i, count)
            runner.forward(i)
            pairs = (
                (runner.states.get(i, b).double(), runner.states.get(i + 1, b).double()) for b in range(len(batches))
            )
            cosines = torch.cat([torch.cosine_similarity(x, y, dim=-1).flatten() for x, y in pairs])
            found.append(1 - float(cosines.mean()))
            runner.states.drop(i)
    return found


def _drops(model: HuggingFaceModel, influence: Sequence[float]) -> list[dict[str, Any]]:
    blocks = model.blocks()
    order = sorted(range(len(blocks)), key=influence.__getitem__)
    return [{"dropped": [blocks[i] for i in sorted(order[:count])]} for count in range(len(blocks))]


def _drop(model: HuggingFaceModel, change: Mapping[str, Any], influence: Sequence[float]) -> HuggingFaceModel:
    from eckart.models._reshape import without_blocks

    names = change.get("dropped")
    if not isinstance(names, list) or not set(names) < set(model.blocks()):
        raise UsageError(f"the plan is to drop {names!r}, which are not some of the blocks of {model.name}")
    return without_blocks(model, names)


# The residual stream in the basis of its principal components, the least left out. One rotation for all blocks, so that
# the result is an ordinary model; SliceGPT (Ashkboos et al., ICLR 2024) has one for each, and matrices between them.


def _principal_components(job: Job, pieces: torch.Tensor) -> torch.Tensor:
    """Return the eigenvectors, (n, n), largest first, of the sum over all norms of the Gram of what they normalise."""
    import torch

    from eckart._compress._calibrate import batches_of
    from eckart.models._reshape import stream_norms

    module, config = job.model.module, job.model.module.config
    gram = Gram(config.hidden_size, module.device)

    def add(norm: Any, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].detach().double().reshape(-1, config.hidden_size)
        gram.add(x / (x.square().mean(dim=1, keepdim=True) + config.rms_norm_eps).sqrt())

    handles = [module.get_submodule(name).register_forward_pre_hook(add) for name in stream_norms(job.model)]
    batches, count = batches_of(pieces), len(job.model.blocks())
    try:
        with contextlib.closing(job.model.runner(batches, job.device)) as runner:
            runner.start()
            for i in range(count):
                job.progress("calibrating", i, count)
                runner.forward(i)
                runner.states.drop(i)
            for b in range(len(batches)):
                runner.outputs(b)
    finally:
        for handle in handles:
            handle.remove()
    vectors: torch.Tensor = torch.linalg.eigh(gram.shrunk(0.0))[1]
    return vectors.flip(1)


def _widths(model: HuggingFaceModel, rotation: torch.Tensor) -> list[dict[str, Any]]:
    # transformers' Llama refuses widths that are no multiples of the number of heads, whatever their dimension
    return [{"hidden_size": h} for h in range(len(rotation), 0, -model.module.config.num_attention_heads)]


def _slice(model: HuggingFaceModel, change: Mapping[str, Any], rotation: torch.Tensor) -> HuggingFaceModel:
    from eckart.models._reshape import narrowed

    h = change.get("hidden_size")
    if type(h) is not int or not 1 <= h <= len(rotation) or h % model.module.config.num_attention_heads:
        raise UsageError(
            f"the plan is for a hidden size of {h!r}",
            fix=f"a multiple of {model.module.config.num_attention_heads} up to {len(rotation)}",
        )
    return narrowed(model, rotation[:, :h].cpu())


DROP_LAYERS = Reshape(block_influence, _drops, _drop)
SLICE = Reshape(_principal_components, _widths, _slice)
