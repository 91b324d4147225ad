"""What a compression is asked to do, checked before it begins; and working out the plan for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart._compress._plan import LayerPlan, Plan
from eckart._compress._target import Target, check_target
from eckart._compress._workers import check_workers
from eckart.errors import UsageError
from eckart.models import Model, open_model
from eckart.models._model import Layer, Progress, silent
from eckart.models._option import DTYPE_BYTES, Option
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    import torch

    from eckart._compress._methods import Method
    from eckart._compress._ranks import Offers
    from eckart._factorise import Cut
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["Job", "Source", "Texts", "planned", "prepare"]

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
    method: str,
    storage: str,
    dtype: str | None,
    data: Texts | None,
    tokens: int,
    context: int,
    layers: str | Sequence[str],
    device: Any,
    max_shard_size: str | int,
    seed: int,
    progress: Progress | None,
    *,
    workers: Any = None,
    stream: bool = True,
) -> Job:
    """Return the job that the arguments of `compress` describe; its errors are those of `compress`.

    stream: open the model with the weights of its blocks left in their files.
    """
    from eckart._compress._methods import choose_method
    from eckart.models._huggingface import HuggingFaceModel

    check_workers(workers, device)
    progress = progress or silent
    progress("opening the model", 0, 1)
    opened = open_model(model, stream=stream)
    progress("opening the model", 1, 1)
    if not isinstance(opened, HuggingFaceModel):
        raise UsageError(
            f"{opened.name} is weights without an architecture and cannot be calibrated",
            fix="give the model's folder, with its config.json",
        )
    if opened.whole:
        progress(f"all its weights are in memory, for {opened.whole}", 1, 1)
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
    dtype = dtype or opened.stored_dtype
    if dtype not in DTYPE_BYTES or dtype.startswith("float8"):
        raise UsageError(f"weights cannot be saved as {dtype!r}", fix="float32, float16, bfloat16 or float64")
    shard = parse_size(max_shard_size)
    return Job(
        opened, target, chosen, formats, dtype, data, tokens, context, layers, device, shard, seed, workers, progress
    )


@contextlib.contextmanager
def planned(
    job: Job, given: Plan | None = None, *, out: Path | None = None, resume: bool = False
) -> Iterator[tuple[Plan, Mapping[str, Cut]]]:
    """Give the plan, and the truncations from which it can be carried out while the block lasts.

    out: where the result will be, beside which a run that is interrupted leaves what it has; resume: go on with that.
    """
    from eckart._compress._calibrate import truncations
    from eckart._compress._journal import journal_beside
    from eckart._compress._ranks import most_useful_ranks, ranks_on_offer, selected

    model, layers = job.model, job.model.layers()
    reasons = selected(layers, job.layers, tables=job.method.tables)
    if given is None:
        names = [name for name, reason in reasons.items() if not reason]
        on_offer = {name: ranks_on_offer(layers[name], job.method, job.formats) for name in names}
        offers = {name: model.options(name, job.dtype, some) for name, some in on_offer.items()}
        ranks = {name: most_useful_ranks(layers[name], job.formats) for name in names}
        choose = _choice(job, offers)  # what is impossible is said before the long work
    else:
        wanted = _fitting(given, model, tables=job.method.tables)
        ranks = {name: option.ranks for name, option in wanted.items()}

        def choose(cuts: Mapping[str, Cut]) -> dict[str, Option]:
            return {
                name: model.options(name, job.dtype, {o.format: [o.ranks] if layers[name].table else o.ranks})[1]
                for name, o in wanted.items()
            }

    pieces = _pieces(job)
    fingerprint = {} if out is None else _fingerprint(job, pieces, ranks)
    with journal_beside(out, fingerprint, resume=resume) as journal:
        cuts = truncations(
            model,
            list(ranks),
            pieces,
            job.method,
            ranks.__getitem__,
            journal,
            device=job.device,
            workers=job.workers,
            progress=job.progress,
        )
        yield _plan(job, given, reasons, choose(cuts), cuts), cuts


def _plan(
    job: Job, given: Plan | None, reasons: Mapping[str, str], options: Mapping[str, Option], cuts: Mapping[str, Cut]
) -> Plan:
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    model, dtype, shard = job.model, job.dtype, job.max_shard_bytes
    changed, target = _changed(options), job.target
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
        values = job.model.shelf.value(tensor).detach().cpu().contiguous()
        model.update(values.reshape(-1).view(torch.uint8).numpy().data)
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


def _choice(job: Job, offers: Offers) -> Callable[[Mapping[str, Cut]], dict[str, Option]]:
    """Return what chooses an option for every layer on offer, from its truncations; BudgetError: none would do."""
    from eckart._compress._ranks import budget_of, choose_ranks, choose_ranks_by_loss, smallest
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    target, model, method = job.target, job.model, job.method
    assert target is not None
    cost, most = target.cost, target.loss
    if most is not None:
        return lambda cuts: choose_ranks_by_loss(offers, cuts, method, most, cost)

    def total(options: Mapping[str, Option]) -> int:
        if cost == "params":
            return predicted_parameters(model, _changed(options))
        return predicted_bytes(model, _changed(options), dtype=job.dtype, max_shard_bytes=job.max_shard_bytes)

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


def _changed(options: Mapping[str, Option]) -> dict[str, Option]:
    return {name: option for name, option in options.items() if option.format != "dense"}


def _layer_plan(job: Job, layer: Layer, reason: str, option: Option | None, cuts: Mapping[str, Cut]) -> LayerPlan:
    shape = (layer.name, layer.rows, layer.columns, layer.bias)
    if option is None:
        return LayerPlan(*shape, job.model.options(layer.name, job.dtype, {})[0], 0.0, 0.0, reason, layer.table)
    from eckart._compress._methods import predicted_loss

    cut = cuts[layer.name]
    left, whole = (sum(p.losses[k * of] for p, k in cut.parts(option.ranks)) for of in (1, 0))
    relative = float((left / whole) ** 0.5) if whole > 0 else 0.0
    return LayerPlan(*shape, option, predicted_loss(job.method, cut, option.ranks), relative, table=layer.table)


def _fitting(given: Plan, model: HuggingFaceModel, *, tables: bool) -> dict[str, Option]:
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
        if planned.name in given.options and (reason := reason_to_keep(layer, tables=tables)):
            raise UsageError(f"{planned.name} cannot be factored: it is {reason}", fix="make it dense in the plan")
        if planned.name in given.options and layer.table != (planned.option.format == "grouped"):
            raise UsageError(
                f"{planned.name} cannot be stored as {planned.option.format!r}",
                fix='an embedding as "grouped", another layer as "pair" or "pifa"',
            )
    return given.options


def _pieces(job: Job) -> torch.Tensor | None:
    if not job.method.inputs:
        return None
    import torch

    from eckart.models._texts import contexts, read_texts

    model, context = job.model, min(job.context, job.model.context)
    if model.tokenizer is None:
        raise UsageError(f"{model.name} has no tokenizer, so it cannot be calibrated on text", fix="--method plain")
    assert job.data is not None
    texts = read_texts(job.data)
    share = max(1, job.tokens // context // len(texts))
    found = [contexts(model.tokenizer, text, context=context, count=share, seed=job.seed) for text in texts]
    shortest = min(pieces.shape[1] for pieces in found)
    return torch.cat([pieces[:, :shortest] for pieces in found])
