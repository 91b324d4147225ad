"""Models beside each other: size, quality on texts and speed, in one versioned result."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from eckart.errors import InputError, UsageError
from eckart.models._model import Progress, silent

__all__ = ["Measured", "Measurement", "measure", "measure_for_fresh_process"]

SCHEMA = "eckart.compare/1"
CONTEXT = 512  # tokens; perplexities at different contexts cannot be compared
EVALUATION_TOKENS = 4096


@dataclass(frozen=True)
class Measured:
    """One model. file_bytes: of its weight files; of the baseline: what they would be in the others' dtype, as
    file_bytes_note says. input_bytes: the weight files it was read from. quality: by text name. None: not measured.
    """

    label: str
    path: str
    model_type: str
    dtype: str
    parameters: int
    file_bytes: int
    file_bytes_note: str
    input_bytes: int
    quality: Mapping[str, Any]
    prefill: Any
    decode: Any


@dataclass(frozen=True)
class Measurement:
    """What `measure` found: models[0] is the baseline. plan: how models[1] was compressed, if that is known."""

    models: tuple[Measured, ...]
    texts: tuple[Mapping[str, Any], ...]
    speed_settings: Mapping[str, Any] | None
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    seed: int
    command: str = ""
    plan: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the result as strict JSON values; a number that is not finite becomes null, and a warning names it."""
        strange: list[str] = []
        value = _strict(asdict(self), "", strange)
        value["warnings"] = [*value["warnings"], *(f"{name} is not finite" for name in strange)]
        import eckart

        return {"schema": SCHEMA, "eckart": eckart.__version__, **value}


def measure(
    model: Any,
    *,
    baseline: Any = None,
    data: str | Path | Sequence[str | Path] | None = None,
    tokens: int | Sequence[int] = EVALUATION_TOKENS,
    context: int = CONTEXT,
    speed: bool = True,
    labels: Sequence[str] = (),
    seed: int = 0,
    device: Any = None,
    command: str = "",
    progress: Progress | None = None,
) -> Measurement:
    """Measure one model, or several beside each other.

    model: a model, what `open_model` takes, or a sequence of these. baseline: the dense model that they came from;
    ratios and divergences are against it. data: UTF-8 text files, on which perplexity is measured over the
    first `tokens` tokens (one number, or one for each text) in non-overlapping pieces of `context`; none is dropped.
    speed: time prefill and decode in turns. command: what to remember as the way to this result.
    InputError, UsageError: a model or text that cannot be used.
    """
    from eckart.models import open_model
    from eckart.models._huggingface import HuggingFaceModel

    progress = progress or silent
    given = [model] if isinstance(model, (str, os.PathLike, HuggingFaceModel)) else list(model)
    sources = [*([] if baseline is None else [baseline]), *given]
    models = []
    for i, source in enumerate(sources):
        progress("opening", i, len(sources))
        models.append(source if isinstance(source, HuggingFaceModel) else open_model(source, device=device))
    for one in models:
        if not isinstance(one, HuggingFaceModel):
            raise UsageError(f"{one.name} cannot be run, only looked at", fix="eckart inspect")
    return replace(_measure(models, data, tokens, context, speed, labels, seed, progress), command=command)


def measure_for_fresh_process(models: list[str], plan: Any, progress: Progress, **settings: Any) -> dict[str, Any]:
    """Return `measure(models, …)` as JSON, with the plan."""
    measurement = measure(models, progress=progress, **settings)
    return {**measurement.to_json(), "plan": plan}


def _measure(
    models: Sequence[Any],
    data: Any,
    tokens: int | Sequence[int],
    context: int,
    speed: bool,
    labels: Sequence[str],
    seed: int,
    progress: Progress,
) -> Measurement:
    from eckart.models._quality import quality
    from eckart.models._speed import PROMPT, SpeedSettings, gemm_rate, speeds
    from eckart.models._texts import contexts, read_texts

    texts = [] if data is None else read_texts(data)
    counts = [tokens] * len(texts) if isinstance(tokens, int) else list(tokens)
    if len(counts) != len(texts):
        raise UsageError(f"{len(counts)} token counts given for {len(texts)} texts", fix="one for each, or one for all")
    if texts and models[0].tokenizer is None:
        raise InputError(f"{models[0].name} has no tokenizer, so no text can be given to it", file=models[0].path)
    context = min(context, *(model.context for model in models))
    results: dict[str, list[Any]] = {}
    used = []
    pieces = None
    for text, count in zip(texts, counts, strict=True):
        pieces = contexts(models[0].tokenizer, text, context=context, count=max(1, count // context))
        results[text.name] = quality(models, pieces, partial(_renamed, progress, text.name))
        used.append({"name": text.name, "tokens": pieces.numel(), "context": pieces.shape[1], "sha256": text.sha256})
    longest = min(model.context for model in models)
    default = SpeedSettings()
    settings = SpeedSettings(
        min(default.prefill_tokens, longest), max(1, min(default.decode_tokens, longest - PROMPT)), default.runs
    )
    timed: list[Any] = [None] * len(models)
    if speed:
        import torch

        prompt = pieces.flatten() if pieces is not None else torch.arange(1, settings.prefill_tokens)
        timed = speeds(models, prompt[: settings.prefill_tokens + PROMPT], settings, progress)
    names = labels or [_label(model, i) for i, model in enumerate(models)]
    last = models[-1].stored_dtype
    return Measurement(
        models=tuple(
            _measured(model, names[i], last, {name: asdict(found[i]) for name, found in results.items()}, timed[i])
            for i, model in enumerate(models)
        ),
        texts=tuple(used),
        speed_settings=asdict(settings) if speed else None,
        machine=_machine(gemm_rate() if speed else None, models[0]),
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
        | {"python": platform.python_version()},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        seed=seed,
    )


def _renamed(progress: Progress, name: str, stage: str, done: int, total: int) -> None:
    progress(f"{stage} on {name}", done, total)


def _label(model: Any, i: int) -> str:
    return "dense" if not model.replaced and i == 0 else f"{model.name}"


def _measured(model: Any, label: str, dtype: str, quality: Mapping[str, Any], speed: Any) -> Measured:
    from eckart.models._save_huggingface import predicted_bytes

    if model.replaced:
        file_bytes, note = model.input_bytes, ""
    else:
        file_bytes = predicted_bytes(model, {}, dtype=dtype, max_shard_bytes=_ONE_SHARD)
        note = "" if dtype == model.stored_dtype and not model.quantised else f"if saved as safetensors in {dtype}"
    return Measured(
        label=label,
        path=model.path,
        model_type=model.model_type,
        dtype=model.stored_dtype if model.replaced else dtype,
        parameters=model.parameters,
        file_bytes=file_bytes,
        file_bytes_note=note,
        input_bytes=model.input_bytes,
        quality=quality,
        prefill=asdict(speed.prefill) if speed else None,
        decode=asdict(speed.decode) if speed and speed.decode else None,
    )


_ONE_SHARD = 5_000_000_000  # bytes, the limit that `compress` has where nobody sets another


def _machine(rate: float | None, model: Any) -> dict[str, Any]:
    import torch

    from eckart.models._processor import processor

    return {
        "cpu": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gflops_float32": rate,
        "device": str(model.module.device),
    }


def _strict(value: Any, place: str, strange: list[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        strange.append(f"{place.strip('.')} = {value}")
        return None
    if isinstance(value, Mapping):
        return {key: _strict(part, f"{place}.{key}", strange) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part, f"{place}[{i}]", strange) for i, part in enumerate(value)]
    return value
