"""What a compression is asked to do, checked before it begins; and working out the plan for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart._compress._plan import LayerPlan, Plan
from eckart._compress._target import Target, check_target
from eckart.errors import UsageError
from eckart.models import Model, open_model
from eckart.models._model import Layer, Progress, silent
from eckart.models._option import DTYPE_BYTES, DTYPES, Option, group_sizes
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    import torch

    from eckart._compress._journal import Journal
    from eckart._compress._methods import Method
    from eckart._compress._ranks import Offers
    from eckart._factorise import Cut
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["Job", "Source", "Texts", "all_pieces", "planned", "prepare"]

Source = str | os.PathLike[str]
Texts = Source | Sequence[Source]


STORAGE = {"auto": ("pair", "pifa"), "pair": ("pair",), "pifa": ("pifa",)}  # formats among which is chosen


@dataclass(frozen=True)
class Job:
    """The arguments that plan and compress share, resolved. target: None where a plan is given instead."""

    model: HuggingFaceModel
    target: Target | None
    method: Method
    formats: Sequence[str]
    dtypes: Sequence[str]
    data: Texts | None
    tokens: int
    context: int
    layers: str | Sequence[str]
    device: Any
    max_shard_bytes: int
    seed: int
    progress: Progress

    @property
    def dtype(self) -> str:
        """The type of all that no option says otherwise of."""
        return self.dtypes[0]


def prepare(
    model: Source | Model,
    target: Target | None,
    method: str,
    storage: str,
    dtype: str | Sequence[str] | None,
    data: Texts | None,
    tokens: int,
    context: int,
    layers: str | Sequence[str],
    device: Any,
    max_shard_size: str | int,
    seed: int,
    progress: Progress | None,
) -> Job:
    """Return the job that the arguments of `compress` describe; its errors are those of `compress`."""
    from eckart._compress._methods import choose_method
    from eckart.models._huggingface import HuggingFaceModel

    progress = progress or silent
    progress("opening the model", 0, 1)
    opened = open_model(model)
    progress("opening the model", 1, 1)
    if not isinstance(opened, HuggingFaceModel):
        raise UsageError(
            f"{opened.name} is weights without an architecture and cannot be calibrated",
            fix="give the model's folder, with its config.json",
        )
    opened.check_dense()
    chosen = choose_method(method, opened)
    if storage not in STORAGE:
        raise UsageError(f"there is no storage {storage!r}", fix=f"one of {', '.join(STORAGE)}")
    if target is not None:
        check_target(target, chosen)
    formats = STORAGE["pair" if storage == "auto" and chosen.pairs else storage]
    if chosen.inputs and data is None:
        raise UsageError(
            f"method {chosen.name!r} needs a calibration text",
            fix="--data FILE with text like that which the model is for, or --method plain",
        )
    if chosen.ranks == "none" and storage != "auto":
        raise UsageError(f"method {chosen.name!r} factors nothing, so storage= has no meaning")
    dtypes = _dtypes(dtype, opened.stored_dtype, chosen, target)
    shard = parse_size(max_shard_size)
    return Job(opened, target, chosen, formats, dtypes, data, tokens, context, layers, device, shard, seed, progress)


def _dtypes(given: str | Sequence[str] | None, source: str, method: Method, target: Target | None) -> tuple[str, ...]:
    """Return the types among which layers are given theirs, first that of all else; UsageError: these cannot be."""
    chosen = target is not None and target.cost != "params" and method.ranks == "knapsack"
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
            fix="one type; or size= or cost='bytes', with method 'two-sided' or 'input'",
        )
    return found


@contextlib.contextmanager
def planned(
    job: Job, given: Plan | None = None, *, out: Path | None = None, resume: bool = False
) -> Iterator[tuple[Plan, Mapping[str, Cut], Journal]]:
    """Give the plan, the truncations from which it can be carried out while the block lasts, and the journal.

    out: where the result will be, beside which a run that is interrupted leaves what it has; resume: go on with that.
    """
    from eckart._compress._calibrate import truncations
    from eckart._compress._journal import journal_beside
    from eckart._compress._ranks import selected

    model = job.model
    reasons = selected(model.layers(), job.layers, tables=job.method.tables)
    names = [name for name, reason in reasons.items() if not reason]
    if given is not None:
        ranks, choose = _as_given(job, given)
    else:
        ranks, choose = (_rounded if job.method.ranks == "none" else _chosen)(job, names)
    pieces = _pieces(job)
    fingerprint = {} if out is None else _fingerprint(job, pieces, ranks)
    with journal_beside(out, fingerprint, resume=resume) as journal:
        cuts = truncations(
            model, list(ranks), pieces, job.method, ranks.__getitem__, journal, device=job.device, progress=job.progress
        )
        yield _plan(job, given, reasons, choose(cuts), cuts), cuts, journal


Ranks = Mapping[str, tuple[int, ...]]  # that are kept of each layer which is truncated
Choose = Callable[
    [Mapping[str, "Cut"]], dict[str, Option]
]  # from the truncations an option for each layer that changes


def _rounded(job: Job, names: Sequence[str]) -> tuple[Ranks, Choose]:
    return {}, lambda cuts: {name: job.model.options(name, "int8", {})[0] for name in names}


def _chosen(job: Job, names: Sequence[str]) -> tuple[Ranks, Choose]:
    """Return what is kept and chosen for a target; BudgetError, before the long work: nothing reaches it."""
    from eckart._compress._ranks import most_useful_ranks, ranks_on_offer

    layers = job.model.layers()
    offers = {}
    for name in names:
        ranks = ranks_on_offer(layers[name], job.method, job.formats)
        offers[name] = [option for dtype in job.dtypes for option in job.model.options(name, dtype, ranks)]
    return {name: most_useful_ranks(layers[name], job.formats) for name in names}, _choice(job, offers)


def _as_given(job: Job, given: Plan) -> tuple[Ranks, Choose]:
    """Return what is kept and chosen where a plan says it; what is of the plan's own type gets the one asked for."""
    wanted, layers = _fitting(given, job.model, job.method), job.model.layers()
    none = {name: (0,) * (len(group_sizes(layer.rows)) if layer.table else 1) for name, layer in layers.items()}
    ranks = {name: option.ranks or none[name] for name, option in wanted.items()}
    if job.method.ranks == "none":  # which has no metric for what is only rounded
        ranks = {name: kept for name, kept in ranks.items() if wanted[name].ranks}
    options = {}
    for name, option in wanted.items():
        layer, dtype = layers[name], job.dtype if option.dtype == given.dtype else option.dtype
        options[name] = option.stored_as(dtype, layer.rows, layer.columns, layer.bias)
    return ranks, lambda cuts: options


def _plan(
    job: Job, given: Plan | None, reasons: Mapping[str, str], options: Mapping[str, Option], cuts: Mapping[str, Cut]
) -> Plan:
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    model, dtype, shard = job.model, job.dtype, job.max_shard_bytes
    changed, target = _changed(model, dtype, options), job.target
    if target is None:
        assert given is not None
        target = Target(given.cost, given.keep, given.size, given.max_loss_increase)
    return Plan(
        model=model.name,
        method=job.method.name,
        keep=target.keep,
        size=target.size,
        max_loss_increase=target.loss,
        cost=target.cost,
        dtype=dtype,
        seed=job.seed,
        unit=job.method.unit,
        layers=tuple(
            _layer_plan(job, layer, reasons[name], changed.get(name), cuts) for name, layer in model.layers().items()
        ),
        parameters_before=model.parameters,
        parameters_after=predicted_parameters(model, changed),
        bytes_before=predicted_bytes(model, {}, dtype=dtype, max_shard_bytes=shard),
        bytes_after=predicted_bytes(model, changed, dtype=dtype, max_shard_bytes=shard),
    )


def _fingerprint(job: Job, pieces: torch.Tensor | None, ranks: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return what the truncations depend on: the same of all this, and they are the same bit for bit."""
    import torch

    import eckart

    model = hashlib.sha256()
    for name, tensor in job.model.tensors():
        model.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        model.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    text = b"" if pieces is None else f"{tuple(pieces.shape)}".encode() + pieces.cpu().contiguous().numpy().tobytes()
    configuration = json.dumps([job.method.name, sorted(ranks.items())])
    return {
        "model": model.hexdigest(),
        "calibration": hashlib.sha256(text).hexdigest(),
        "configuration": hashlib.sha256(configuration.encode()).hexdigest(),
        "software": f"eckart {eckart.__version__}, torch {torch.__version__}",
        "machine": ", ".join(
            [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads", str(job.device or "cpu")]
        ),
    }


def _choice(job: Job, offers: Offers) -> Choose:
    """Return what chooses an option for every layer on offer, from its truncations; BudgetError: none would do."""
    from eckart._compress._ranks import budget_of, choose_ranks, choose_ranks_by_loss, smallest
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    target, model, method = job.target, job.model, job.method
    assert target is not None
    cost, most = target.cost, target.loss
    if most is not None:
        return lambda cuts: choose_ranks_by_loss(offers, cuts, method, most, cost)

    def total(options: Mapping[str, Option]) -> int:
        changed = _changed(model, job.dtype, options)
        if cost == "params":
            return predicted_parameters(model, changed)
        return predicted_bytes(model, changed, dtype=job.dtype, max_shard_bytes=job.max_shard_bytes)

    whole, least = total({}), total(smallest(offers, cost))
    allowed = int((target.keep or 0) * whole) if target.size is None else target.size
    asked = f"keep = {target.keep:g}" if target.size is None else f"size = {target.size:,}"
    budget = budget_of(offers, whole, least, allowed, cost, asked)

    def choose(cuts: Mapping[str, Cut]) -> dict[str, Option]:
        left = budget
        while True:  # the smallest options fit
            chosen = choose_ranks(offers, cuts, method, left, cost)
            if (excess := total(chosen) - allowed) <= 0:
                return chosen
            left -= excess  # the header of the file grew with the number of its tensors

    return choose


def _changed(model: HuggingFaceModel, dtype: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """Return those options that are not the layer as it stays, in `dtype`."""
    return {name: option for name, option in options.items() if option != model.options(name, dtype, {})[0]}


def _layer_plan(job: Job, layer: Layer, reason: str, option: Option | None, cuts: Mapping[str, Cut]) -> LayerPlan:
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
    return replace(made, loss_increase=more, relative_error=(left / whole) ** 0.5 if whole > 0 else 0.0)


def _fitting(given: Plan, model: HuggingFaceModel, method: Method) -> dict[str, Option]:
    """Return the plan's options after proof that they fit the model and what its method can do."""
    from eckart._compress._ranks import reason_to_keep

    layers = model.layers()
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
                fix='an embedding as "grouped", another layer as "pair" or "pifa"',
            )
    return given.options


def _formats_of(layer: Layer, method: Method) -> tuple[str, ...]:
    if layer.table:  # which is truncated by how often its rows are seen
        return ("dense", "grouped") if method.inputs else ("dense",)
    return "dense", "pair", "pifa"


def all_pieces(job: Job) -> torch.Tensor:
    """Return all that the texts hold, in pieces of one context, (count, context)."""
    return _drawn(job, None)


def _pieces(job: Job) -> torch.Tensor | None:
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
