"""Compression of trained models by low rank: what to do (plan) and doing it (compress)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eckart._compress._job import Source, Texts, all_pieces, planned, prepare
from eckart._compress._plan import Plan
from eckart._compress._target import as_effort, as_target
from eckart._files import check_room, refuse_existing
from eckart.errors import UsageError
from eckart.models import Model
from eckart.models._measure import CONTEXT, EVALUATION_TOKENS
from eckart.models._model import Progress
from eckart.models._option import DTYPE_BYTES

if TYPE_CHECKING:
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["Plan", "compress", "plan"]

CALIBRATION_TOKENS = 8192


def plan(
    model: Source | Model,
    keep: float | None = None,
    *,
    size: str | int | None = None,
    max_loss_increase: float | None = None,
    cost: Literal["params", "bytes"] = "params",
    data: Texts | None = None,
    method: str = "auto",
    storage: Literal["auto", "pair", "pifa"] = "auto",
    layers: str | Sequence[str] = "*",
    dtype: str | Sequence[str] | None = None,
    tokens: int = CALIBRATION_TOKENS,
    context: int = CONTEXT,
    max_shard_size: str | int = "5GB",
    device: Any = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Plan:
    """Return what `compress` would do, as data: nothing is changed and nothing written.

    Arguments and errors are those of `compress`.
    """
    target = as_target(keep, size, max_loss_increase, cost, method)
    job = prepare(
        model, target, method, storage, dtype, data, tokens, context, layers, device, max_shard_size, seed, progress
    )
    with planned(job) as (made, *_):
        return made


def compress(
    model: Source | Model,
    keep: float | None = None,
    *,
    size: str | int | None = None,
    max_loss_increase: float | None = None,
    cost: Literal["params", "bytes"] = "params",
    plan: Plan | Source | None = None,
    data: Texts | None = None,
    evaluate: Texts | None = None,
    beside: Sequence[Source] = (),
    method: str = "auto",
    storage: Literal["auto", "pair", "pifa"] = "auto",
    layers: str | Sequence[str] = "*",
    dtype: str | Sequence[str] | None = None,
    format: Literal["factored", "dense"] = "factored",
    recover: float | str | None = None,
    out: Source | None = None,
    resume: bool = False,
    tokens: int = CALIBRATION_TOKENS,
    context: int = CONTEXT,
    evaluate_tokens: int | Sequence[int] = EVALUATION_TOKENS,
    max_shard_size: str | int = "5GB",
    device: Any = None,
    command: str = "",
    progress: Progress | None = None,
    seed: int = 0,
) -> HuggingFaceModel:
    """Return a new model with `keep` of the parameters of the given one, which is not changed.

    model: what `open_model` takes, or an opened model. Give one of: keep, the fraction of its parameters (tied ones
    counted once) or, with cost="bytes", of its weight files' bytes that may stay, above 0 and at most 1; size, the
    largest size of these files, such as "300MB"; max_loss_increase, the most that is predicted to be lost, in nats a
    token, at the least cost; plan, a Plan, or the file of one, whose options are used as they stand. data: UTF-8 texts
    to calibrate on, of which `tokens` tokens are drawn by `seed` in pieces of `context`; only "plain" needs none.
    method: "two-sided" (inputs and output gradients, ranks by predicted loss), "input" (inputs alone), "plain"
    (truncated SVD, the same fraction everywhere), "auto", by its authors' formula "fwsvd", "asvd", "svd-llm",
    "svd-llm-v2" or "kfac", or "int8": nothing is truncated, every layer and the embedding are rounded, and neither a
    target nor data is needed. storage: of a layer of rank k, "pair" (two factors, k(m + n) numbers), "pifa" (k of its
    rows and the others' coefficients, k(m + n - k) numbers and an order: more rank for the same size, less speed at the
    same rank), or "auto", what serves each layer best, but pairs for "plain" and the baselines. layers: name patterns,
    "!" excludes. dtype: of the saved weights, by default that of the source, float16 for a quantised one; or several
    names, also in one word with commas, of which every layer takes the best and all else the first. One that is not the
    first may be "int8": every matrix stored has then a scale for each row. It is among them by default where bytes are
    counted and ranks follow predicted loss. format: "factored", or "dense" for an ordinary checkpoint that any loader
    reads and that saves nothing. out: a new folder, written whole or not at all; its reloaded outputs and its size are
    checked against the model and the plan before it gets its name. resume: go on where a run towards `out` with the
    same arguments was interrupted, with the same result bit for bit; where there was none, begin. recover: minutes, or
    "N steps", for which the factors, norms and biases are then trained on the texts in data to answer as the dense
    model does; a result that is no better on pieces which were held out is given up. evaluate: texts for a measurement
    of the saved files beside the dense model, and beside the models `beside` names, in a fresh process; needs `out`.
    command: what the measurement remembers as the way to it.

    The result has `.plan`, if trained `.recovery`, and if evaluated `.measurement` (schema "eckart.compare/1").
    UsageError, InputError, BudgetError, OutputError, NumericalError: as their names say; nothing is left behind then.
    """
    from eckart._compress._finish import Evaluation, finish
    from eckart._compress._recover import recover_

    target = None if plan is not None else as_target(keep, size, max_loss_increase, cost, method)
    if plan is not None and (keep, size, max_loss_increase, cost) != (None, None, None, "params"):
        raise UsageError(
            "plan= says what every layer becomes, so keep=, size=, max_loss_increase= and cost= cannot be given with it"
        )
    if evaluate is not None and out is None:
        raise UsageError("evaluate= measures the saved files, so it needs out=", fix="eckart.measure(model, data=…)")
    if beside and evaluate is None:
        raise UsageError("beside= names models to measure, so it needs evaluate=", fix="evaluate=TEXT, or drop beside=")
    if plan is not None and (method != "auto" or storage != "auto" or layers != "*"):
        raise UsageError("plan= decides method, storage and layers, so these cannot be given with it")
    if format not in ("factored", "dense"):
        raise UsageError(f"there is no format {format!r}", fix="factored or dense")
    effort = None if recover is None else as_effort(recover)
    if effort is not None and (data is None or format == "dense"):
        raise UsageError(
            "recover= trains factors on the texts in data=" + (", and format='dense' keeps none" if data else ""),
            fix="drop format='dense'" if data else "--data FILE with text like that which the model is for",
        )
    if resume and out is None:
        raise UsageError("resume= goes on with an unfinished run towards out=, which is not given")
    if out is not None:
        refuse_existing(Path(out))
    given = plan if isinstance(plan, Plan) or plan is None else Plan.load(os.fspath(plan))
    if given is not None:
        method, dtype = given.method, dtype or given.dtype
    job = prepare(
        model, target, method, storage, dtype, data, tokens, context, layers, device, max_shard_size, seed, progress
    )
    if out is not None:  # the least that it can take; the exact size is known, and checked, when it is written
        share = 0.0 if target is None or target.keep is None else target.keep
        check_room(Path(out), int(share * job.model.parameters * DTYPE_BYTES[job.dtype]))
    with planned(job, given, out=None if out is None else Path(out), resume=resume) as (made, cuts, journal):
        small = job.model.copy()
        for name, option in sorted(made.options.items(), key=lambda item: bool(item[1].down_of)):  # owners first
            factors = cuts[name].factors(option.ranks) if option.ranks else job.model.weight(name)
            small = (small.assign_ if format == "dense" else small.replace_)(name, option, factors)
        if effort is not None:
            small.recovery = recover_(
                small, job.model, all_pieces(job), effort, journal, device=job.device, progress=job.progress, seed=seed
            )
        small.round_(job.dtype)
        small.stored_dtype, small.plan, small.source_bytes = job.dtype, made, job.model.input_bytes
        if out is not None:
            wanted = None if evaluate is None else Evaluation(evaluate, beside, evaluate_tokens, context, command, seed)
            finish(small, job.model, Path(out), wanted, job.max_shard_bytes, job.progress)
    return small
