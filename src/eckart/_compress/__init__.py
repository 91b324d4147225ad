"""Compression of trained models by low rank: what to do (plan) and doing it (compress)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from eckart._compress._job import Source, Texts, all_pieces, planned, prepare
from eckart._compress._network import compress_network, is_network, own_arguments, plan_network
from eckart._compress._plan import SQUARES, Plan
from eckart._compress._reshape import reshaped
from eckart._compress._target import as_effort, as_target
from eckart._files import check_room, refuse_existing
from eckart.errors import UsageError
from eckart.models import Model
from eckart.models._measure import CONTEXT, EVALUATION_TOKENS
from eckart.models._model import Progress
from eckart.models._option import DTYPE_BYTES

if TYPE_CHECKING:
    from torch import nn

    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._network import Network

__all__ = ["Plan", "compress", "plan"]

CALIBRATION_TOKENS = 8192


def plan(
    model: Source | Model | nn.Module,
    keep: float | None = None,
    *,
    size: str | int | None = None,
    max_loss_increase: float | None = None,
    cost: Literal["params", "bytes", "ms"] = "params",
    workload: Literal["prefill", "decode", "both"] = "both",
    data: Any = None,
    method: str = "auto",
    loss: Literal["auto", "next-token", "outputs"] = "auto",
    correct: bool | None = None,
    storage: Literal["auto", "pair", "pifa", "shared"] = "auto",
    layers: str | Sequence[str] = "*",
    dtype: str | Sequence[str] | None = None,
    calibration: Source | None = None,
    tokens: int = CALIBRATION_TOKENS,
    context: int = CONTEXT,
    max_shard_size: str | int = "5GB",
    device: Any = None,
    workers: Any = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Plan:
    """Return what `compress` would do, as data: nothing is changed and nothing written.

    Arguments and errors are those of `compress`.
    """
    if is_network(model):
        return plan_network(**own_arguments(plan_network, locals(), plan))
    target = as_target(keep, size, max_loss_increase, cost, method, workload)
    source = cast("Source | Model", model)
    job = prepare(
        source, target, method=method, loss=loss, correct=correct, storage=storage, dtype=dtype, data=data,
        tokens=tokens, context=context, layers=layers, device=device, max_shard_size=max_shard_size, seed=seed,
        workers=workers, progress=progress,
    )  # fmt: skip
    if job.method.reshape:
        made: Plan = reshaped(job, None).plan
        return made
    with planned(job, calibration=calibration) as found:
        return found.plan


def compress(
    model: Source | Model | nn.Module,
    keep: float | None = None,
    *,
    size: str | int | None = None,
    max_loss_increase: float | None = None,
    cost: Literal["params", "bytes", "ms"] = "params",
    workload: Literal["prefill", "decode", "both"] = "both",
    plan: Plan | Source | None = None,
    data: Any = None,
    evaluate: Texts | None = None,
    beside: Sequence[Source] = (),
    method: str = "auto",
    loss: Literal["auto", "next-token", "outputs"] = "auto",
    correct: bool | None = None,
    storage: Literal["auto", "pair", "pifa", "shared"] = "auto",
    layers: str | Sequence[str] = "*",
    dtype: str | Sequence[str] | None = None,
    format: Literal["factored", "dense"] = "factored",
    recover: float | str | None = None,
    out: Source | None = None,
    resume: bool = False,
    calibration: Source | None = None,
    tokens: int = CALIBRATION_TOKENS,
    context: int = CONTEXT,
    evaluate_tokens: int | Sequence[int] = EVALUATION_TOKENS,
    max_shard_size: str | int = "5GB",
    device: Any = None,
    workers: Any = None,
    command: str = "",
    progress: Progress | None = None,
    seed: int = 0,
) -> HuggingFaceModel | Network:
    """Return a new model with `keep` of the parameters of the given one, which is not changed.

    model: what `open_model` takes, or an opened model. Give one of: keep, the fraction of its parameters (tied ones
    counted once) or, with cost="bytes", of its weight files' bytes that may stay, above 0 and at most 1; size, the
    largest size of these files, such as "300MB"; max_loss_increase, the most that is predicted to be lost, in the unit
    of `loss`, at the least cost. With cost="ms", keep is a fraction of the time that the dense model takes, and size
    may be given with it: model and layers are timed first on this machine, with the threads that torch has. workload:
    whose time counts, "prefill" (256 tokens read at once), "decode" (one token more), or "both", half each. Or give
    plan, a Plan, or the file of one, whose options are used as they stand. data: UTF-8 texts to calibrate on, of which
    `tokens` tokens are drawn by `seed` in pieces of `context`; only "plain" and "int8" need none. method: "two-sided"
    (inputs and output gradients, ranks by predicted loss; also "auto"), "input" (inputs alone), "plain" (truncated SVD,
    the same fraction everywhere), or a published one: "fwsvd", "asvd", "svd-llm", "svd-llm-update", "svd-llm-v2",
    "mpifa", "basis-sharing", "kfac", "lems", "drop-layers", "slicegpt"; or "int8": nothing is truncated, every layer
    and the embedding are rounded, and no target is needed. loss: of methods with gradients, "next-token", in nats a
    token; "outputs", the mean squared change of a number that the model returns, which needs no labels; "auto", the
    first where the model predicts tokens. correct: fit the factors anew, block by block, to what the compressed blocks
    before them let through. storage: of a layer of rank k, "pair" (two factors, k(m + n) numbers), "pifa" (k of its
    rows and the others' coefficients, k(m + n - k) numbers and an order: more rank for the same size, less speed at the
    same rank), "auto", what serves each layer best, but what their authors store for "plain" and the published methods,
    or "shared", what "auto" does, and for [q; k; v] and [gate; up] one pair of their stack as well. layers: name
    patterns, "!" excludes. dtype: of the saved weights, by default that of the source, float16 for a quantised one; or
    several names, also in one word with commas, of which every layer takes the best and all else the first. One that is
    not the first may be "int8": every matrix stored has then a scale for each row. It is among them by default where
    bytes are counted, ranks follow predicted loss and nothing is trained. format: "factored", or "dense" for an
    ordinary checkpoint that any loader reads and that saves nothing. out: a new folder, written whole or not at all;
    its reloaded outputs and its size are checked against the model and the plan before it gets its name. Where `model`
    is a path, one block's weights are in memory at a time then, unless all are needed (cost="ms", recover=,
    "basis-sharing", "slicegpt", "drop-layers"), and the result is read from `out` when its module is first used.
    resume: go on where a run towards `out` with the same arguments was interrupted, with the same result bit for bit;
    where there was none, begin. calibration: a folder in which the truncated layers stay, so that another size of the
    same model, by the same method, text and seed, needs no calibration of its own. workers: who truncates the layers:
    None, threads; a number of processes, in a script only below `if __name__ == "__main__":`; or a
    dask.distributed.Client, or the address of its scheduler; the result is the same bit for bit. recover: minutes, or
    "N steps", for which the factors, norms and biases are then trained on the texts in data to answer as the dense
    model does; a result that is no better on pieces which were held out is given up. evaluate: texts for a measurement
    of the saved files beside the dense model, and beside the models `beside` names, in a fresh process; needs `out`.
    Where time counts, what is saved is timed beside the dense model in any case. command: what the measurement
    remembers as the way to it.

    Or model is a network of convolutions and linear, recurrent or attention layers that is run on arrays: a torch
    module, the path of an .onnx or .keras file, or a Keras model. Then data are batches that it can be called with (an
    array, a tuple of arguments, or arguments by name, in memory or in .npy and .npz files), the loss is the mean
    squared change of an output, cost="ms" counts the time of the first batch, and correct is on by default; keep, size,
    max_loss_increase, cost, plan, data, correct, layers, dtype, out, progress and seed have a meaning. What is saved is
    a folder that `eckart.load(module, folder)` reads, or a file of the same kind that needs no Eckart.

    The result has `.plan`, if trained `.recovery`, and if evaluated `.measurement` (schema "eckart.compare/1").
    UsageError, InputError, BudgetError, OutputError, NumericalError: as their names say; nothing is left behind then.
    """
    if is_network(model):
        return compress_network(**own_arguments(compress_network, locals(), compress))
    from eckart._compress._correct import correct_
    from eckart._compress._finish import Evaluation, finish
    from eckart._compress._recover import recover_
    from eckart.models._huggingface import OpenedWhenUsed

    target = None if plan is not None else as_target(keep, size, max_loss_increase, cost, method, workload)
    if plan is not None and (keep, size, max_loss_increase, cost, workload) != (None, None, None, "params", "both"):
        raise UsageError(
            "plan= says what every layer becomes, so keep=, size=, max_loss_increase=, cost= and workload= cannot be "
            "given with it"
        )
    if evaluate is not None and out is None:
        raise UsageError("evaluate= measures the saved files, so it needs out=", fix="eckart.measure(model, data=…)")
    if beside and evaluate is None:
        raise UsageError("beside= names models to measure, so it needs evaluate=", fix="evaluate=TEXT, or drop beside=")
    if plan is not None and (
        method != "auto" or storage != "auto" or layers != "*" or correct is not None or loss != "auto"
    ):
        raise UsageError("plan= decides method, loss, correct, storage and layers, so these cannot be given with it")
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
        method, correct, dtype = given.method, given.correct or None, dtype or given.dtype
        loss = "outputs" if given.unit == SQUARES else "auto"
    source = cast("Source | Model", model)
    job = prepare(
        source, target, method=method, loss=loss, correct=correct, storage=storage, dtype=dtype, data=data,
        tokens=tokens, context=context, layers=layers, device=device, max_shard_size=max_shard_size, seed=seed,
        workers=workers, progress=progress, trained=effort is not None,
        stream=out is not None and effort is None and (given is None or given.timing is None),
    )  # fmt: skip
    if out is not None:  # the least that it can take; the exact size is known, and checked, when it is written
        share = 0.0 if target is None or target.keep is None else target.keep
        check_room(Path(out), int(share * job.model.parameters * DTYPE_BYTES[job.dtype]))
    wanted = None if evaluate is None else Evaluation(evaluate, beside, evaluate_tokens, context, command, seed)
    if job.method.reshape:
        if effort is not None or calibration is not None:
            raise UsageError(
                f"method {job.method.name!r} leaves no factors, so recover= and calibration= have no meaning"
            )
        small = reshaped(job, given).round_(job.dtype)
        small.stored_dtype, small.source_bytes = job.dtype, job.model.input_bytes
        if out is not None:
            finish(small, job.model, Path(out), wanted, job.max_shard_bytes, job.progress)
        return small
    with planned(job, given, calibration=calibration, out=out, resume=resume) as found:
        made = found.plan
        small = job.model.copy(None if out is None else Path(out).absolute().parent)
        options = dict(sorted(made.options.items(), key=lambda item: bool(item[1].down_of)))  # owners first

        def put_(name: str, factors: Any) -> None:
            (small.assign_ if format == "dense" else small.replace_)(name, options[name], factors)

        if job.correction is None:
            for name, option in options.items():
                cut, ranks = found.cuts.get(name), option.ranks
                put_(name, cut.factors(option.format, ranks) if cut and ranks else job.model.weight(name))
        else:
            correct_(job, found, small, options, put_)
        if effort is not None:
            small.recovery = recover_(
                small, job.model, all_pieces(job), effort, found.journal, device=job.device, progress=job.progress,
                seed=seed,
            )  # fmt: skip
        small.fold_().round_(job.dtype)
        small.stored_dtype, small.plan, small.source_bytes = job.dtype, made, job.model.input_bytes
        if out is not None:
            if wanted is None and made.timing is not None:
                wanted = Evaluation((), beside, evaluate_tokens, context, command, seed)
            finish(small, job.model, Path(out), wanted, job.max_shard_bytes, job.progress)
    return OpenedWhenUsed(small) if out is not None and small.shelf else small
