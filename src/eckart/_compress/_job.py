"""What a compression is asked to do, checked before it begins; and working out the plan for it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart._compress._plan import SQUARES, LayerPlan, Plan, Timing
from eckart._compress._sharing import Stacks, stack_of, stacks_in, stacks_of, within_blocks
from eckart._compress._target import WORKLOADS, Target, check_target
from eckart._compress._workers import check_workers
from eckart.errors import BudgetError, UsageError
from eckart.models import Model, open_model
from eckart.models._model import Layer, Progress, silent
from eckart.models._option import DTYPE_BYTES, DTYPES, RANK_STEP, Option, dense, factored, group_sizes
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    import torch

    from eckart._compress._journal import Journal
    from eckart._compress._methods import Correction, Method
    from eckart._compress._ranks import Joint, Offers, Price
    from eckart._factorise import Cut
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._latency import Latency

__all__ = ["Job", "Planned", "Source", "Texts", "all_pieces", "calibration_pieces", "planned", "prepare"]

Source = str | os.PathLike[str]
Texts = Source | Sequence[Source]


STORAGE = {  # formats among which is chosen
    "auto": ("pair", "pifa"),
    "pair": ("pair",),
    "pifa": ("pifa",),
    "shared": ("pair", "pifa", "shared"),
}


@dataclass(frozen=True)
class Job:
    """The arguments that plan and compress share, resolved. target: None where a plan is given instead."""

    model: HuggingFaceModel
    target: Target | None
    method: Method
    correction: Correction | None
    formats: Sequence[str]
    dtypes: Sequence[str]
    data: Texts | None
    tokens: int
    context: int
    layers: str | Sequence[str]
    device: Any
    max_shard_bytes: int
    seed: int
    workers: Any
    progress: Progress

    @property
    def dtype(self) -> str:
        """The type of all that no option says otherwise of."""
        return self.dtypes[0]


def prepare(
    model: Source | Model,
    target: Target | None,
    *,
    method: str,
    loss: str,
    correct: bool | None,
    storage: str,
    dtype: str | Sequence[str] | None,
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
    trained: bool = False,
) -> Job:
    """Return the job that the arguments of `compress` describe; its errors are those of `compress`.

    stream: open the model with the weights of its blocks left in their files, where the method can do with one block.
    trained: the factors will be, and so must be floating-point.
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
    if storage == "shared" and chosen.ranks != "knapsack":
        raise UsageError(
            f"method {chosen.name!r} does not weigh layers alone against layers that share",
            fix="method='two-sided' or 'input'",
        )
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
    if chosen.ranks == "none" and (storage != "auto" or correct):
        raise UsageError(f"method {chosen.name!r} factors nothing, so storage= and correct= have no meaning")
    dtypes = _dtypes(dtype, opened.stored_dtype, chosen, target, trained=trained)
    shard = parse_size(max_shard_size)
    return Job(
        opened, target, chosen, correction, formats, dtypes, data, tokens, context, layers, device, shard, seed,
        workers, progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A plan and what it can be carried out from: truncations, calibration tokens and the journal they are in."""

    plan: Plan
    cuts: Mapping[str, Cut]
    pieces: torch.Tensor | None
    journal: Journal


def _dtypes(
    given: str | Sequence[str] | None, source: str, method: Method, target: Target | None, *, trained: bool
) -> tuple[str, ...]:
    """Return the types among which layers are given theirs, first that of all else; UsageError: these cannot be."""
    chosen = target is not None and target.cost == "bytes" and method.ranks == "knapsack" and not trained
    found: tuple[str, ...]
    if given is None:
        found = (source, "int8") if chosen else (source,)
    else:
        found = tuple(name.strip() for name in (given.split(",") if isinstance(given, str) else given))
    known = ", ".join(DTYPE_BYTES)
    if wrong := [name for name in found if name not in DTYPES]:
        raise UsageError(f"weights cannot be saved as {wrong[0]!r}", fix=f"{known}, or after one of these int8")
    if not found or found[0] not in DTYPE_BYTES:
        raise UsageError("norms and what else stays cannot be int8", fix=f"name another type first: one of {known}")
    if len(found) > 1 and not chosen and method.ranks != "none":
        raise UsageError(
            "several types are chosen among by predicted loss where bytes are counted, which is not so here",
            fix="one type; or size= or cost='bytes', with method 'two-sided' or 'input', and without recover=",
        )
    return found


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
    from eckart._compress._lems import best_of_depths, measured
    from eckart._compress._ranks import selected

    model = job.model
    reasons = selected(model.layers(), job.layers, tables=job.method.tables)
    names = [name for name, reason in reasons.items() if not reason]
    target = job.target or _target_of(given)
    if given is not None:
        aim = _as_given(job, given)
    else:
        aim = (_rounded if job.method.ranks == "none" else _chosen)(job, names)
    pieces = calibration_pieces(job)
    place, kept = (None if path is None else Path(path) for path in (out, calibration))
    fingerprint = {} if place is None and kept is None else _fingerprint(job, pieces, aim.ranks)
    with journal_beside(place, kept, fingerprint, resume=resume) as journal:
        cuts = truncations(
            model, aim.ranks, pieces, job.method, aim.stacks, journal, device=job.device, seed=job.seed,
            workers=job.workers, progress=job.progress,
        )  # fmt: skip
        if job.method.ranks == "search" and given is None:
            assert pieces is not None
            cuts = measured(job, cuts, pieces, journal)
            options = best_of_depths(job, aim.choose, cuts, pieces)
        else:
            options = aim.choose(cuts)
        yield Planned(_plan(job, target, given, reasons, options, cuts, aim.latency), cuts, pieces, journal)


def _formats(job: Job, names: Sequence[str], stacks: Stacks) -> dict[str, tuple[str, ...]]:
    """Return in which formats each layer may be stored: by pivoting without an order, where neighbours can follow it.

    These change then, so they must be among `names`, the layers that may. In a stack, as a pair.
    """
    leaders = _leaders(job.model, names) if "pifa" in job.formats else set()
    return {
        name: ("pair",)
        if stacks.owner(name)
        else tuple("folded" if form == "pifa" and name in leaders else form for form in job.formats if form != "shared")
        for name in names
    }


def _leaders(model: HuggingFaceModel, names: Sequence[str]) -> set[str]:
    return {fold.leader for fold in model.folds() if set(fold.members) <= set(names)}


def _target_of(given: Plan | None) -> Target:
    assert given is not None
    workload = "both" if given.timing is None else given.timing.workload
    return Target(given.cost, given.keep, given.size, given.max_loss_increase, workload)


Ranks = Mapping[str, tuple[int, ...]]
Choose = Callable[[Mapping[str, "Cut"]], dict[str, Option]]


@dataclass(frozen=True)
class Aim:
    """ranks: those that are kept of each layer, or stack, which is truncated. choose: from the truncations an option
    for every layer that changes. latency: where time counts.
    """

    ranks: Ranks
    choose: Choose
    stacks: Stacks = field(default_factory=lambda: Stacks({}))
    latency: Latency | None = None


def _rounded(job: Job, names: Sequence[str]) -> Aim:
    return Aim({}, lambda cuts: {name: job.model.options(name, "int8", {})[0] for name in names})


def _chosen(job: Job, names: Sequence[str]) -> Aim:
    """Return what is kept and chosen for a target; BudgetError, before the long work: nothing reaches it."""
    from eckart._compress._lems import within_bounds
    from eckart._compress._ranks import most_useful_ranks, ranks_on_offer, shared_on_offer
    from eckart.models._latency import measured_latency
    from eckart.models._timings import RANK_TILE

    model, layers, target, method = job.model, job.model.layers(), job.target, job.method
    assert target is not None
    together = within_blocks(layers, names) if "shared" in job.formats else {}
    stacks = stacks_in(layers, names, model.blocks() if method.shares else [])
    formats = _formats(job, names, stacks)
    units = {name: stacks.as_one(layers[name]) for name in names if name not in stacks.rest()}
    offers, step = {}, RANK_TILE if target.cost == "ms" else RANK_STEP
    for name, unit in units.items():
        ranks = ranks_on_offer(unit, method, formats[name], step)
        offers[name] = [option for dtype in job.dtypes for option in _options(model, unit, dtype, ranks)]
    if method.ranks == "search":
        offers = within_bounds(offers, target.keep or 1.0)
    latency = None
    if target.cost == "ms":
        latency = measured_latency(model, formats, WORKLOADS[target.workload], job.progress)
    kept = {name: most_useful_ranks(unit, formats[name]) for name, unit in units.items()}
    joint = {}
    for name, some in together.items():
        if shared := shared_on_offer(some, job.dtypes, step, timed=latency is not None):
            joint[name], kept[stack_of(name)] = shared, shared[-1][name].ranks
    stacks = replace(stacks, within={name: together[name] for name in joint})
    return Aim(kept, _choice(job, offers, joint, stacks, latency), stacks, latency)


def _as_given(job: Job, given: Plan) -> Aim:
    """Return what is kept and chosen where a plan says it; what is of the plan's own type gets the one asked for."""
    from eckart.models._latency import measured_latency

    wanted, layers = _fitting(given, job.model, job.method), job.model.layers()
    stacks = stacks_of(wanted, layers, across=job.method.shares)
    none = {name: (0,) * (len(group_sizes(layer.rows)) if layer.table else 1) for name, layer in layers.items()}
    ranks = {name: option.ranks or none[name] for name, option in wanted.items() if name not in stacks.rest()}
    for stack, together in stacks.stacked().items():
        ranks[stack] = wanted[together[0]].ranks
        ranks = {name: kept for name, kept in ranks.items() if name not in together}
    if job.method.ranks == "none":  # which has no metric for what is only rounded
        ranks = {name: kept for name, kept in ranks.items() if wanted[name].ranks}
    options = {}
    for name, option in wanted.items():
        layer, dtype = layers[name], job.dtype if option.dtype == given.dtype else option.dtype
        options[name] = option.stored_as(dtype, layer.rows, layer.columns, layer.bias)
    latency, target = None, _target_of(given)
    if target.cost == "ms":
        formats = {name: (option.format,) for name, option in wanted.items()}
        latency = measured_latency(job.model, formats, WORKLOADS[target.workload], job.progress)
    return Aim(ranks, lambda cuts: options, stacks, latency)


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
    changed = _changed(model, dtype, options)
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


def _choice(job: Job, offers: Offers, joint: Joint, stacks: Stacks, latency: Latency | None) -> Choose:
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
        return lambda cuts: stacks.spread(choose_ranks_by_loss(offers, joint, cuts, method, most, prices[cost]))
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
                _reached(choose_ranks(offers, joint, cuts, method, budget, milliseconds))  # of the time
            )
        cost = "bytes"

    def total(options: Mapping[str, Option]) -> int:
        changed = _changed(model, job.dtype, stacks.spread(options))
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
            chosen = _reached(choose_ranks(offers, joint, cuts, method, left, prices[cost], limit))
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


def _changed(model: HuggingFaceModel, dtype: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """Return those options that are not the layer as it stays, in `dtype`."""
    return {name: option for name, option in options.items() if option != model.options(name, dtype, {})[0]}


def _layer_plan(
    job: Job, layer: Layer, reason: str, option: Option | None, cuts: Mapping[str, Cut], latency: Latency | None
) -> LayerPlan:
    dense = job.model.options(layer.name, job.dtype, {})[0]
    made = LayerPlan(layer.name, layer.rows, layer.columns, layer.bias, option or dense, dense, table=layer.table)
    if option is None:
        return replace(made, loss_increase=0.0, relative_error=0.0, kept=reason)
    from eckart._compress._methods import predicted_loss

    if (cut := cuts.get(layer.name)) is None:  # nothing was asked of it but to be rounded
        return made
    parts = cut.parts(option.format, option.ranks)
    left = sum(part.error(form, option.dtype, k) for part, form, k in parts)
    whole = float(sum(part.losses[0] for part, _, _ in parts))
    more = predicted_loss(job.method, cut, option) - predicted_loss(job.method, cut, dense)
    if latency is not None and option.dtype != "int8":  # which is not timed
        made = replace(made, saved_ms=latency.saved(layer, option))
    return replace(made, loss_increase=more, relative_error=(left / whole) ** 0.5 if whole > 0 else 0.0)


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
            raise UsageError(
                f"{planned.name} cannot be factored: it is {reason}",
                fix=f"make it dense, in {given.dtype}, in the plan",
            )
        form = planned.option.format
        if planned.name in given.options and form not in _formats_of(layer, method):
            raise UsageError(
                f"{planned.name} cannot be stored as {form!r} by this method",
                fix='an embedding or a large head as "grouped", another layer as "pair" or "pifa"',
            )
        if planned.option.format == "folded" and planned.name not in leaders:
            raise UsageError(
                f"{planned.name} cannot be stored as 'folded': there are no neighbours that could follow its order",
                fix='"pifa", which stores the order',
            )
    return given.options


def _formats_of(layer: Layer, method: Method) -> tuple[str, ...]:
    if layer.table:  # which is truncated by how often its rows are seen
        return ("dense", "grouped") if method.inputs else ("dense",)
    return "dense", "pair", "pifa", "folded", *(("shared",) if method.shares or method.ranks == "knapsack" else ())


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
