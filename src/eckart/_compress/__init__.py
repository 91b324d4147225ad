"""Compression of trained models by low rank: what to do (plan) and doing it (compress)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eckart._compress._plan import LayerPlan, Plan
from eckart._files import refuse_existing
from eckart.errors import OutputError, UsageError
from eckart.models import Model, open_model
from eckart.models._model import Progress, silent
from eckart.models._safetensors import format_size, parse_size

if TYPE_CHECKING:
    from eckart._compress._methods import Method
    from eckart._factorise import Truncation
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["Plan", "compress", "plan"]

CALIBRATION_TOKENS = 8192
CONTEXT = 512  # tokens
Source = str | os.PathLike[str]
Texts = Source | Sequence[Source]


@dataclass(frozen=True)
class _Settings:
    """What both verbs share, checked and resolved."""

    model: HuggingFaceModel
    method: Method
    dtype: str
    data: Texts | None
    tokens: int
    context: int
    layers: str | Sequence[str]
    device: Any
    max_shard_bytes: int
    seed: int
    progress: Progress


def plan(
    model: Source | Model,
    keep: float,
    *,
    data: Texts | None = None,
    method: str = "auto",
    layers: str | Sequence[str] = "*",
    dtype: str | None = None,
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
    settings = _settings(model, method, dtype, data, tokens, context, layers, device, max_shard_size, seed, progress)
    return _planned(settings, keep)[0]


def compress(
    model: Source | Model,
    keep: float | None = None,
    *,
    plan: Plan | Source | None = None,
    data: Texts | None = None,
    evaluate: Texts | None = None,
    beside: Sequence[Source] = (),
    method: str = "auto",
    layers: str | Sequence[str] = "*",
    dtype: str | None = None,
    format: Literal["factored", "dense"] = "factored",
    out: Source | None = None,
    tokens: int = CALIBRATION_TOKENS,
    context: int = CONTEXT,
    evaluate_tokens: int | Sequence[int] = 4096,
    max_shard_size: str | int = "5GB",
    device: Any = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> HuggingFaceModel:
    """Return a new model with `keep` of the parameters of the given one, which is not changed.

    model: what `open_model` takes, or an opened model. keep: fraction of all its parameters, above 0 and at most 1, tied
    ones counted once; or plan: a Plan, or the file of one, whose ranks are used as they stand. data: UTF-8 texts to
    calibrate on, of which `tokens` tokens are drawn by `seed` in pieces of `context`; needed by every method but "plain".
    method: "two-sided" (inputs and output gradients, ranks by predicted loss), "input" (inputs alone), "plain"
    (truncated SVD, the same fraction everywhere), or "auto". layers: name patterns, "!" excludes. dtype: of the saved
    weights, by default that of the source, float16 for a quantised one. format: "factored", or "dense" for an ordinary
    checkpoint that any loader reads and that saves nothing. out: a new folder, written whole or not at all; its
    reloaded outputs and its size are checked against the model and the plan before it gets its name. evaluate: texts
    for a measurement of the saved files beside the dense model, and beside the models `beside` names, in a fresh
    process; needs `out`.

    The result has `.plan` and, if evaluated, `.measurement` (schema "eckart.compare/1").
    UsageError, InputError, BudgetError, OutputError, NumericalError: as their names say; nothing is left behind then.
    """
    from eckart._compress._finish import Evaluation, finish

    if (keep is None) == (plan is None):
        raise UsageError("give either keep= (a fraction of all parameters) or plan=, and not both")
    if evaluate is not None and out is None:
        raise UsageError("evaluate= measures the saved files, so it needs out=", fix="eckart.measure(model, data=…)")
    if format not in ("factored", "dense"):
        raise UsageError(f"there is no format {format!r}", fix="factored or dense")
    if out is not None:
        refuse_existing(Path(out))
    given = plan if isinstance(plan, Plan) or plan is None else Plan.load(os.fspath(plan))
    if given is not None:
        method, dtype = given.method, dtype or given.dtype
    settings = _settings(model, method, dtype, data, tokens, context, layers, device, max_shard_size, seed, progress)
    made, cuts = _planned(settings, keep, given)
    if out is not None:
        _check_room(Path(out), made.bytes_before if format == "dense" else made.bytes_after)
    small = settings.model.copy().round_(settings.dtype)
    for name, option in made.options.items():
        pair = cuts.pop(name).pair(option.ranks[0])
        small = small.assign_(name, pair) if format == "dense" else small.replace_(name, option, pair)
    small.round_(settings.dtype)
    small.stored_dtype, small.plan, small.source_bytes = settings.dtype, made, settings.model.input_bytes
    if out is not None:
        wanted = None if evaluate is None else Evaluation(evaluate, beside, evaluate_tokens, context, seed)
        finish(small, settings.model, Path(out), wanted, settings.max_shard_bytes, settings.progress)
    return small


def _settings(
    model: Source | Model,
    method: str,
    dtype: str | None,
    data: Texts | None,
    tokens: int,
    context: int,
    layers: str | Sequence[str],
    device: Any,
    max_shard_size: str | int,
    seed: int,
    progress: Progress | None,
) -> _Settings:
    from eckart._compress._methods import choose_method
    from eckart.models._option import DTYPE_BYTES

    opened = open_model(model, device=None)
    from eckart.models._huggingface import HuggingFaceModel

    if not isinstance(opened, HuggingFaceModel):
        raise UsageError(
            f"{opened.name} is weights without an architecture and cannot be calibrated",
            fix="give the model's folder, with its config.json",
        )
    opened.check_dense()
    chosen = choose_method(method, opened)
    if chosen.inputs and data is None:
        raise UsageError(
            f"method {chosen.name!r} needs a calibration text",
            fix="--data FILE with text like that which the model is for, or --method plain",
        )
    dtype = dtype or opened.stored_dtype
    if dtype not in DTYPE_BYTES or dtype.startswith("float8"):
        raise UsageError(f"weights cannot be saved as {dtype!r}", fix="float32, float16, bfloat16 or float64")
    shard = parse_size(max_shard_size)
    return _Settings(opened, chosen, dtype, data, tokens, context, layers, device, shard, seed, progress or silent)


def _planned(settings: _Settings, keep: float | None, given: Plan | None = None) -> tuple[Plan, dict[str, Truncation]]:
    """Return the plan, and the truncations from which it can be carried out."""
    from eckart._compress._calibrate import truncations
    from eckart._compress._ranks import choose_ranks, most_useful_rank, ranks_on_offer, selected
    from eckart.models._save_huggingface import predicted_bytes, predicted_parameters

    model, method, dtype = settings.model, settings.method, settings.dtype
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(
            f"keep = {keep:g} is not a fraction of the parameters", fix="a number above 0 and at most 1, such as 0.8"
        )
    layers = model.layers()
    reasons = selected(layers, settings.layers)
    if given is None:
        names = [name for name, reason in reasons.items() if not reason]
        offers = {name: model.options(name, dtype, ranks_on_offer(layers[name], method)) for name in names}
        ranks = {name: most_useful_rank(layers[name]) for name in names}
    else:
        ranks = {name: option.ranks[0] for name, option in _fitting(given, model).items()}
    cuts = truncations(
        model, list(ranks), _pieces(settings), method, ranks.__getitem__, device=settings.device, progress=settings.progress
    )
    if given is None:
        assert keep is not None
        fixed = model.parameters - sum(options[0].params for options in offers.values())
        options = choose_ranks(offers, cuts, method, fixed, model.parameters, keep)
    else:
        options = given.options
    changed = {name: option for name, option in options.items() if option.format != "dense"}
    sizes = {"dtype": dtype, "max_shard_bytes": settings.max_shard_bytes}
    made = Plan(
        model=model.name,
        method=method.name,
        keep=keep if given is None else given.keep,
        dtype=dtype,
        seed=settings.seed,
        unit=method.unit,
        layers=tuple(_layer_plan(model, name, reasons[name], changed.get(name), cuts, method, dtype) for name in layers),
        parameters_before=model.parameters,
        parameters_after=predicted_parameters(model, changed),
        bytes_before=predicted_bytes(model, {}, **sizes),
        bytes_after=predicted_bytes(model, changed, **sizes),
    )
    return made, cuts


def _layer_plan(
    model: HuggingFaceModel,
    name: str,
    reason: str,
    option: Any,
    cuts: dict[str, Truncation],
    method: Method,
    dtype: str,
) -> LayerPlan:
    layer = model.layers()[name]
    dense = model.options(name, dtype, [])[0]
    shape = (name, layer.rows, layer.columns, layer.bias)
    if option is None:
        return LayerPlan(*shape, dense, 0.0, 0.0, reason)
    k, losses = option.ranks[0], cuts[name].losses
    relative = float((losses[k] / losses[0]) ** 0.5) if losses[0] > 0 else 0.0
    return LayerPlan(*shape, option, float(method.losses(cuts[name])[k]), relative, "")


def _fitting(given: Plan, model: HuggingFaceModel) -> dict[str, Any]:
    """Return the plan's options after proof that they fit the model."""
    layers = model.layers()
    for planned in given.layers:
        layer = layers.get(planned.name)
        if layer is None or (layer.rows, layer.columns, layer.bias) != (planned.rows, planned.columns, planned.bias):
            raise UsageError(
                f"the plan was made for another model: {planned.name} is {planned.rows} x {planned.columns} there and "
                + (f"{layer.rows} x {layer.columns} here" if layer else "not here"),
                fix="make a plan of this model with eckart plan",
            )
        if planned.name in given.options and layer.kept:
            raise UsageError(f"{planned.name} cannot be factored: it is {layer.kept}", fix="make it dense in the plan")
    return given.options


def _pieces(settings: _Settings) -> Any:
    if not settings.method.inputs:
        return None
    import torch

    from eckart.models._texts import contexts, read_texts

    model, context = settings.model, min(settings.context, settings.model.context)
    if model.tokenizer is None:
        raise UsageError(f"{model.name} has no tokenizer, so it cannot be calibrated on text", fix="--method plain")
    assert settings.data is not None
    texts = read_texts(settings.data)
    share = max(1, settings.tokens // context // len(texts))
    found = [contexts(model.tokenizer, text, context=context, count=share, seed=settings.seed) for text in texts]
    shortest = min(pieces.shape[1] for pieces in found)
    return torch.cat([pieces[:, :shortest] for pieces in found])


def _check_room(out: Path, needed: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"need {format_size(needed)} in {out.parent}, {format_size(free)} free; nothing was written",
            fix="-o elsewhere",
            file=str(out),
            code="E-space",
        )

