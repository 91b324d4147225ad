"""How fast models run, timed in turns so that a slow moment of the machine falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eckart.models._huggingface import HuggingFaceModel
from eckart.models._model import Progress, silent

__all__ = ["PROMPT", "Speed", "SpeedSettings", "Spread", "gemm_rate", "now", "seconds", "speeds"]


@dataclass(frozen=True)
class SpeedSettings:
    """prefill_tokens: length of the prompt read at once. decode_tokens: generated one by one after 32 others."""

    prefill_tokens: int = 256
    decode_tokens: int = 16
    runs: int = 5
    dtype: str = "float32"


@dataclass(frozen=True)
class Spread:
    """Tokens a second over all runs: median and quartiles; and the same of the run-wise ratio to the baseline."""

    median: float
    low: float
    high: float
    runs: int
    ratio: tuple[float, ...] | None = None  # low, median, high


@dataclass(frozen=True)
class Speed:
    """decode is None for a model that does not generate."""

    prefill: Spread
    decode: Spread | None


@torch.no_grad()
def speeds(
    models: Sequence[HuggingFaceModel], tokens: torch.Tensor, settings: SpeedSettings, progress: Progress = silent
) -> list[Speed]:
    """Return the speed of each model, the first being the baseline, on `tokens`, (t,), used again where too short."""
    repeated = tokens.repeat(-(-(settings.prefill_tokens + PROMPT) // len(tokens)))
    read, prompt = repeated[: settings.prefill_tokens], repeated[:PROMPT]
    prefill = [[_prefill(model, read)] for model in models]
    decode = [[_decode(m, prompt, settings.decode_tokens)] if m.predicts_next_token else [] for m in models]
    for run in range(settings.runs):
        progress("timing", run, settings.runs)
        for i in range(len(models)):
            at = (i + run) % len(models)
            prefill[at].append(_prefill(models[at], read))
            if decode[at]:
                decode[at].append(_decode(models[at], prompt, settings.decode_tokens))
    progress("timing", settings.runs, settings.runs)
    return [
        Speed(_spread(prefill[i], prefill[0], i), _spread(decode[i], decode[0], i) if decode[i] else None)
        for i in range(len(models))
    ]


def gemm_rate(size: int = 2048, runs: int = 5) -> float:
    """Return the best rate of a float32 matrix product of this size over a few runs, GFLOP/s."""
    a = torch.ones(size, size)
    best = min(seconds(lambda: a @ a) for _ in range(runs))
    return 2 * size**3 / best / 1e9


PROMPT = 32  # tokens before the first generated one


def _prefill(model: HuggingFaceModel, tokens: torch.Tensor) -> float:
    batch = tokens[None].to(model.module.device)
    last = {"logits_to_keep": 1} if model.predicts_next_token else {}
    return len(tokens) / seconds(lambda: model.module(batch, **last))


def _decode(model: HuggingFaceModel, prompt: torch.Tensor, count: int) -> float:
    state = model.module(prompt[None].to(model.module.device), use_cache=True)

    def generate() -> None:
        out = state
        for _ in range(count):
            token = out.logits[:, -1:].argmax(-1)
            out = model.module(token, past_key_values=out.past_key_values, use_cache=True)

    return count / seconds(generate)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long the work takes."""
    start = now()
    work()
    return now() - start


def now() -> float:
    """Return the time in seconds at which all that was asked of a GPU, if there is one, is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _spread(rates: list[float], baseline: list[float], i: int) -> Spread:
    """Summarise all but the first run, which warms up."""
    low, median, high = (float(q) for q in np.quantile(rates[1:], [0.25, 0.5, 0.75]))
    ratios = np.quantile(np.divide(rates[1:], baseline[1:]), [0.25, 0.5, 0.75])
    return Spread(median, low, high, len(rates) - 1, (*map(float, ratios),) if i else None)
