"""What a compression is asked to do, checked before it begins; and working out the plan for it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart._compress._plan import SQUARES, LayerPlan, Plan, Timing
from eckart._compress._sharing import stacks_in, stacks_of
from eckart._compress._target import WORKLOADS, Target, check_target
from eckart._compress._workers import check_workers
from eckart.errors import BudgetError, UsageError
from eckart.models import Model, open_model
from eckart.models._model import Layer, Progress, silent
from eckart.models._option import DTYPE_BYTES, RANK_STEP, Option, dense, factored, read_option
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    import torch

    from eckart._compress._journal import Journal
    from eckart._compress._methods import Correction, Method
    from eckart._compress._ranks import Offers, Price
    from eckart._compress._sharing import Stacks
    from eckart._factorise import Cut
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._latency import Latency

__all__ = ["Job", "Planned", "Source", "Texts", "all_pieces", "calibration_pieces", "planned", "prepare"]

Source = str | os.PathLike[str]
Texts = Source | Sequence[Source]


STORAGE = {"auto": ("pair", "pifa"), "pair": ("pair",), "pifa": ("pifa",)}  # formats among which is chosen


@dataclass(frozen=True)
class Job:
    """The arguments that plan and compress share, resolved. target: None where a plan is given instead."""

    model: HuggingFaceModel
    target: Target | None
    method: Method
    correction: Correction | None
    formats: Sequence[str]
    dtype: str
    data: Texts | None
    tokens: int
    context: int
    layers: str | Sequence[str]
    device: Any
    max_shard_bytes: int
    seed: int
    workers: Any
    progress: Progress


def prepare(
    model: Source | Model,
    target: Target | None,
    *,
    method: str,
    loss: str,
    correct: bool | None,
    storage: str,
    dtype: str | None,
    data: Texts | None,
    tokens: int,
    context: int,
    layers: str | Sequence[str],
    device: Any,
    max_shard_size: str | int,
    seed: int,
    workers: Any,
    progress: Progress | None,
    stream: bool = True,
) -> Job:
    """Return the job that the arguments of `compress` describe; its errors are those of `compress`.

    stream: open the model with the weights of its blocks left in their files, where the method can do with one block.
    """
    from eckart._compress._methods import METHODS, SEQUENTIAL, choose_method
    from eckart.models._huggingface import HuggingFaceModel

    check_workers(workers, device)
    progress = progress or silent
    progress("opening the model", 0, 1)
    row = METHODS.get(method)
    whole = (row is not None and (row.shares or row.reshape)) or (target is not None and target.cost == "ms")
    opened = open_model(model, stream=stream and not whole)
    progress("opening the model", 1, 1)
    if not isinstance(opened, HuggingFaceModel):
        raise UsageError(
            f"{opened.name} is weights without an architecture and cannot be calibrated",
            fix="give the model's folder, with its config.json",
        )
    if opened.whole:
        progress(f"all its weights are in memory, for {opened.whole}", 1, 1)
    opened.check_dense()
    chosen = choose_method(method, loss, opened)
    if storage not in STORAGE:
        raise UsageError(f"there is no storage {storage!r}", fix=f"one of {', '.join(STORAGE)}")
    if target is not None:
        check_target(target, chosen)
    formats = STORAGE[chosen.storage if storage == "auto" else storage]
    if correct is False and chosen.correction:
        raise UsageError(f"method {chosen.name!r} is nothing without its correction", fix="drop correct=")
    correction = chosen.correction or (SEQUENTIAL if correct else None)
    if correction and not chosen.inputs:
        raise UsageError(f"method {chosen.name!r} calibrates nothing, so there is nothing to correct by")
    if chosen.inputs and data is None:
        raise UsageError(
            f"method {chosen.name!r} needs a calibration text",
            fix="--data FILE with text like that which the model is for, or --method plain",
        )
    if chosen.reshape and (storage != "auto" or layers != "*" or correct):
        raise UsageError(
            f"method {chosen.name!r} changes the model as a whole, so storage=, layers= and correct= have no meaning"
        )
    dtype = dtype or opened.stored_dtype
    if dtype not in DTYPE_BYTES or dtype.startswith("float8"):
        raise UsageError(f"weights cannot be saved as {dtype!r}", fix="float32, float16, bfloat16 or float64")
    shard = parse_size(max_shard_size)
    return Job(
        opened, target, chosen, correction, formats, dtype, data, tokens, context, layers, device, shard, seed, workers,
        progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A plan and what it can be carried out from: truncations, calibration tokens and the journal they are in."""

    plan: Plan
    cuts: Mapping[str, Cut]
    pieces: torch.Tensor | None
    journal: Journal


@contextlib.contextmanager
def planned(
    job: Job,
    given: Plan | None = None,
    *,
    calibration: Source | None,
    out: Source | None = None,
    resume: bool = False,
) -> Iterator[Planned]:
    """Give the plan, and from what it can be carried out while the block lasts.

    calibration: the folder in which the journal stays. out: where the result will be, beside which a run that is
    interrupted leaves what it has otherwise; resume: go on with that.
    """
    from eckart._compress._calibrate import truncations
    from eckart._compress._journal import journal_beside
    from eckart._compress._lems import best_of_depths, measured, within_bounds
    from eckart._compress._ranks import most_useful_ranks, ranks_on_offer, selected
    from eckart.models._latency import measured_latency
    from eckart.models._timings import RANK_TILE

    model, layers = job.model, job.model.layers()
    reasons = selected(layers, job.layers, tables=job.method.tables)
    target = job.target or _target_of(given)
    latency = None
    if given is None:
        names = [name for name, reason in reasons.items() if not reason]
        stacks = stacks_in(layers, names, model.blocks() if job.method.shares else [])
        formats = _formats(job, names, stacks)
        units = {name: stacks.as_one(layers[name]) for name in names if name not in stacks.rest()}
        step = RANK_TILE if target.cost == "ms" else RANK_STEP
        offers = {
            name: _options(model, unit, job.dtype, ranks_on_offer(unit, job.method, formats[name], step))
            for name, unit in units.items()
        }
        if job.method.ranks == "search":
            offers = within_bounds(offers, target.keep or 1.0)
        ranks = {name: most_useful_ranks(unit, formats[name]) for name, unit in units.items()}
        if target.cost == "ms":
            latency = measured_latency(model, formats, WORKLOADS[target.workload], job.progress)
        choose = _choice(job, offers, stacks, latency)  # what is impossible is said before the long work
    else:
        wanted = _fitting(given, model, job.method)
        stacks = stacks_of(wanted, layers)
        ranks = {name: option.ranks for name, option in wanted.items() if name not in stacks.rest()}
        if target.cost == "ms":
            formats = {name: (option.format,) for name, option in wanted.items()}
            latency = measured_latency(model, formats, WORKLOADS[target.workload], job.progress)

        def choose(cuts: Mapping[str, Cut]) -> dict[str, Option]:
            return {
                name: read_option({**o.to_json(), "dtype": job.dtype}, layer.rows, layer.columns, layer.bias)
                for name, o in wanted.items()
                for layer in [layers[name]]
            }

    pieces = calibration_pieces(job)
    place, kept = (None if path is None else Path(path) for path in (out, calibration))
    fingerprint = {} if place is None and kept is None else _fingerprint(job, pieces, ranks)
    with journal_beside(place, kept, fingerprint, resume=resume) as journal:
        cuts = truncations(
            model, ranks, pieces, job.method, stacks, journal, device=job.device, seed=job.seed, workers=job.workers,
            progress=job.progress,
        )  # fmt: skip
        if job.method.ranks == "search" and given is None:
            assert pieces is not None
            cuts = measured(job, cuts, pieces, journal)
            options = best_of_depths(job, choose, cuts, pieces)
        else:
            options = choose(cuts)
        yield Planned(_plan(job, target, given, reasons, options, cuts, latency), cuts, pieces, journal)


def _formats(job: Job, names: Sequence[str], stacks: Stacks) -> dict[str, tuple[str, ...]]:
    """Return in which formats each layer may be stored: by pivoting without an order, where neighbours can follow it.

    These change then, so they must be among `names`, the layers that may. In a stack, as a pair.
    """
    leaders = _leaders(job.model, names) if "pifa" in job.formats else set()
    return {
        name: ("pair",)
        if stacks.owner(name)
        else tuple("folded" if form == "pifa" and name in leaders else form for form in job.formats)
        for name in names
    }


def _leaders(model: HuggingFaceModel, names: Sequence[str]) -> set[str]:
    return {fold.leader for fold in model.folds() if set(fold.members) <= set(names)}


def _target_of(given: Plan | None) -> Target:
    assert given is not None
    workload = "both" if given.timing is None else given.timing.workload
    return Target(given.cost, given.keep, given.size, given.max_loss_increase, workload)


def _plan(
    job: Job,
    target: Target,
    given: Plan | None,
    reasons: Mapping[str, str],
    options: Mapping[str, Option],
    cuts: Mapping[str, Cut],
    latency: Latency | None,
) -> Plan:
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    model, dtype, shard = job.model, job.dtype, job.max_shard_bytes
    changed = _changed(options)
    timing = None
    if latency is not None:
        timing = Timing(target.workload, latency.tokens, dict(latency.whole), latency.machine)
    known: dict[str, float | None] = {}
    if given is not None and job.method.ranks == "search":  # a plan that is given is not measured again
        known = {layer.name: layer.loss_increase for layer in given.layers}
    return Plan(
        model=model.name,
        method=job.method.name,
        keep=target.keep,
        size=target.size,
        max_loss_increase=target.loss,
        cost=target.cost,
        correct=job.correction is not None,
        dtype=dtype,
        seed=job.seed,
        unit=job.method.unit,
        layers=tuple(
            replace(made, loss_increase=known.get(name, made.loss_increase))
            for name, layer in model.layers().items()
            for made in [_layer_plan(job, layer, reasons[name], changed.get(name), cuts, latency)]
        ),
        parameters_before=model.parameters,
        parameters_after=predicted_parameters(model, changed),
        bytes_before=predicted_bytes(model, {}, dtype=dtype, max_shard_bytes=shard),
        bytes_after=predicted_bytes(model, changed, dtype=dtype, max_shard_bytes=shard),
        timing=timing,
    )


def _fingerprint(job: Job, pieces: torch.Tensor | None, ranks: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return what the truncations depend on: the same of all this, and they are the same bit for bit."""
    import torch

    import eckart

    model = hashlib.sha256()
    for name, tensor in job.model.tensors():
        model.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        values = job.model.shelf.value(tensor).detach().cpu().contiguous()
        model.update(values.reshape(-1).view(torch.uint8).numpy().data)
    text = b"" if pieces is None else f"{tuple(pieces.shape)}".encode() + pieces.cpu().contiguous().numpy().tobytes()
    drawn = job.seed if job.method.unit == SQUARES else None
    configuration = json.dumps([job.method.name, job.method.unit, drawn, repr(job.correction), sorted(ranks.items())])
    return {
        "model": model.hexdigest(),
        "calibration": hashlib.sha256(text).hexdigest(),
        "configuration": hashlib.sha256(configuration.encode()).hexdigest(),
        "software": f"eckart {eckart.__version__}, torch {torch.__version__}",
        "machine": ", ".join(
            [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads", str(job.device or "cpu")]
        ),
    }


def _choice(
    job: Job, offers: Offers, stacks: Stacks, latency: Latency | None
) -> Callable[[Mapping[str, Cut]], dict[str, Option]]:
    """Return what chooses an option for every layer on offer, from its truncations; BudgetError: none would do."""
    from eckart._compress._ranks import (
        Limit,
        budget_of,
        choose_ranks,
        choose_ranks_by_loss,
        least_within,
        smallest,
    )
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    target, model, method = job.target, job.model, job.method
    assert target is not None
    cost, most, keep, layers = target.cost, target.loss, target.keep, model.layers()

    @functools.cache
    def milliseconds(name: str, option: Option) -> float:
        assert latency is not None
        return sum(latency.price(layers[one], some) for one, some in stacks.spread({name: option}).items())

    prices: dict[str, Price] = {
        "params": lambda name, option: option.params,
        "bytes": lambda name, option: option.bytes,
        "ms": milliseconds,
    }
    if most is not None:
        return lambda cuts: stacks.spread(choose_ranks_by_loss(offers, cuts, method, most, prices[cost]))
    limit = None
    if cost == "ms":
        assert keep is not None
        saved = sum(
            milliseconds(name, offers[name][0]) - milliseconds(name, option)
            for name, option in smallest(offers, milliseconds).items()
        )
        limit = Limit(
            milliseconds, budget_of(offers, 1, 1 - saved, keep, milliseconds, f"keep = {keep:g}", "of the time")
        )
        if target.size is None:
            budget = limit.most
            return lambda cuts: stacks.spread(
                _reached(choose_ranks(offers, cuts, method, budget, milliseconds))  # of the time
            )
        cost = "bytes"

    def total(options: Mapping[str, Option]) -> int:
        changed = _changed(stacks.spread(options))
        if cost == "params":
            return predicted_parameters(model, changed)
        return predicted_bytes(model, changed, dtype=job.dtype, max_shard_bytes=job.max_shard_bytes)

    whole, least = total({}), total(smallest(offers, prices[cost]))
    allowed = int((keep or 0) * whole) if target.size is None else target.size
    asked = f"keep = {keep:g}" if target.size is None else f"size = {target.size:,}"
    unit = {"params": "parameters", "bytes": "bytes"}[cost]
    budget = budget_of(offers, whole, least, allowed, prices[cost], asked, unit)
    if limit is not None and (over := least_within(offers, budget, prices[cost], milliseconds) - limit.most) > 0:
        raise BudgetError(
            f"{asked} takes at least {(keep or 0) + over:.1%} of the time, more than keep = {keep:g}",
            fix="a smaller size, which takes less time, or a larger keep",
        )

    def choose(cuts: Mapping[str, Cut]) -> dict[str, Option]:
        left = budget
        while True:  # the smallest options fit
            chosen = _reached(choose_ranks(offers, cuts, method, left, prices[cost], limit))
            if (excess := total(chosen) - allowed) <= 0:
                return stacks.spread(chosen)
            left -= excess  # the header of the file grew with the number of its tensors

    return choose


def _reached(chosen: dict[str, Option] | None) -> dict[str, Option]:
    if chosen is None:
        raise BudgetError(
            "each of size= and keep= can be reached, but not both at once", fix="a larger size, or a larger keep"
        )
    return chosen


def _options(model: HuggingFaceModel, unit: Layer, dtype: str, ranks: Mapping[str, Sequence[Any]]) -> list[Option]:
    """Return what a layer, or a stack of them, can become: dense first."""
    if model.layers()[unit.name] == unit:
        return model.options(unit.name, dtype, ranks)
    shape = (unit.rows, unit.columns, unit.bias, dtype)
    return [dense(*shape), *(factored(form, *shape, k) for form, some in ranks.items() for k in some)]


def _changed(options: Mapping[str, Option]) -> dict[str, Option]:
    return {name: option for name, option in options.items() if option.format != "dense"}


def _layer_plan(
    job: Job, layer: Layer, reason: str, option: Option | None, cuts: Mapping[str, Cut], latency: Latency | None
) -> LayerPlan:
    shape = (layer.name, layer.rows, layer.columns, layer.bias)
    if option is None:
        return LayerPlan(*shape, job.model.options(layer.name, job.dtype, {})[0], 0.0, 0.0, reason, layer.table)
    from eckart._compress._methods import predicted_loss

    cut = cuts[layer.name]
    left, whole = (sum(p.losses[k * of] for p, k in cut.parts(option.ranks)) for of in (1, 0))
    relative = float((left / whole) ** 0.5) if whole > 0 else 0.0
    saved = None if latency is None else latency.saved(layer, option)
    loss = predicted_loss(job.method, cut, option.ranks)
    return LayerPlan(*shape, option, loss, relative, table=layer.table, saved_ms=saved)


def _fitting(given: Plan, model: HuggingFaceModel, method: Method) -> dict[str, Option]:
    """Return the plan's options after proof that they fit the model and what its method can do."""
    from eckart._compress._ranks import reason_to_keep

    layers = model.layers()
    folded = any(option.format == "folded" for option in given.options.values())
    leaders = _leaders(model, [planned.name for planned in given.layers if not planned.kept]) if folded else set()
    for planned in given.layers:
        layer = layers.get(planned.name)
        if layer is None or (layer.rows, layer.columns, layer.bias) != (planned.rows, planned.columns, planned.bias):
            raise UsageError(
                f"the plan was made for another model: {planned.name} is {planned.rows} x {planned.columns} there and "
                + (f"{layer.rows} x {layer.columns} here" if layer else "not here"),
                fix="make a plan of this model with eckart plan",
            )
        if planned.name in given.options and (reason := reason_to_keep(layer, tables=method.tables)):
            raise UsageError(f"{planned.name} cannot be factored: it is {reason}", fix="make it dense in the plan")
        form = planned.option.format
        if planned.name in given.options and (
            layer.table != (form == "grouped") or (form == "shared" and not method.shares)
        ):
            raise UsageError(
                f"{planned.name} cannot be stored as {form!r} by this method",
                fix='an embedding as "grouped", another layer as "pair" or "pifa"',
            )
        if planned.option.format == "folded" and planned.name not in leaders:
            raise UsageError(
                f"{planned.name} cannot be stored as 'folded': there are no neighbours that could follow its order",
                fix='"pifa", which stores the order',
            )
    return given.options


def all_pieces(job: Job) -> torch.Tensor:
    """Return all that the texts hold, in pieces of one context, (count, context)."""
    return _drawn(job, None)


def calibration_pieces(job: Job) -> torch.Tensor | None:
    """Return the calibration tokens, (count, context); None for a method that needs none."""
    return _drawn(job, job.tokens) if job.method.inputs else None


def _drawn(job: Job, tokens: int | None) -> torch.Tensor:
    import torch

    from eckart.models._texts import contexts, read_texts

    model, context = job.model, min(job.context, job.model.context)
    if model.tokenizer is None:
        raise UsageError(f"{model.name} has no tokenizer, so it cannot be calibrated on text", fix="--method plain")
    assert job.data is not None
    texts = read_texts(job.data)
    share = sys.maxsize if tokens is None else max(1, tokens // context // len(texts))
    found = [contexts(model.tokenizer, text, context=context, count=share, seed=job.seed) for text in texts]
    shortest = min(pieces.shape[1] for pieces in found)
    return torch.cat([pieces[:, :shortest] for pieces in found])
