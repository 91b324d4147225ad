"""How well a model does on a text, and how far its outputs are from a baseline's: exact sums over every token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from eckart.models._huggingface import HuggingFaceModel
from eckart.models._model import Progress, silent

__all__ = ["Quality", "next_token_loss", "output_probe", "quality"]


@dataclass(frozen=True)
class Quality:
    """Of one model on one text. None where it does not apply: no next-token prediction, or no baseline.

    perplexity: exp of the mean next-token loss; may be inf or nan, and is then reported as such. kl: mean of
    KL(baseline ‖ model) over the positions, nats. top1_agreement: share of positions with the same likeliest token.
    relative_error: ‖output − baseline's output‖_F / ‖baseline's output‖_F, for a model without next-token prediction.
    """

    tokens: int
    perplexity: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    relative_error: float | None = None


@torch.no_grad()
def quality(models: Sequence[HuggingFaceModel], pieces: torch.Tensor, progress: Progress = silent) -> list[Quality]:
    """Return the quality of each model on `pieces`, (count, context) token ids; the first model is the baseline.

    Every model sees each piece before the next piece begins, so that no outputs are kept. No piece and no token is
    dropped, whatever comes out.
    """
    sums = [dict.fromkeys(("loss", "kl", "same", "difference", "norm"), 0.0) for _ in models]
    for done, piece in enumerate(pieces):
        progress("evaluating", done, len(pieces))
        outputs = (model.run(piece[None])[0].float() for model in models)
        if models[0].predicts_next_token:
            _add_next_token(sums, outputs, piece[1:])
        else:
            _add_differences(sums, outputs)
    progress("evaluating", len(pieces), len(pieces))
    predicted = pieces.shape[0] * (pieces.shape[1] - 1)
    return [
        _quality(total, pieces.numel(), predicted, models[0].predicts_next_token, i > 0) for i, total in enumerate(sums)
    ]


def _add_next_token(sums: list[dict[str, float]], outputs: Iterator[torch.Tensor], targets: torch.Tensor) -> None:
    """Add each model's loss at every position, and its divergence from the first: Σ p log p/q, of logits z and w
    Σ p z - log Σ exp z - (Σ p w - log Σ exp w), which makes no copy of the logits.
    """
    for i, (total, output) in enumerate(zip(sums, outputs, strict=True)):
        logits = output[:-1]
        level = logits.logsumexp(dim=1).double()
        chosen = logits.gather(1, targets[:, None].to(logits.device))[:, 0].double()
        total["loss"] += float((level - chosen).sum())
        if i == 0:
            chances, likeliest = logits.softmax(dim=1), logits.argmax(dim=1)
            expected = torch.linalg.vecdot(chances, logits).double() - level
        else:
            total["kl"] += float((expected - (torch.linalg.vecdot(chances, logits).double() - level)).sum())
            total["same"] += float((likeliest == logits.argmax(dim=1)).sum())


def _add_differences(sums: list[dict[str, float]], outputs: Iterator[torch.Tensor]) -> None:
    first: torch.Tensor | None = None
    for total, output in zip(sums, outputs, strict=True):
        first = output if first is None else first
        total["difference"] += float((output - first).double().square().sum())
        total["norm"] += float(first.double().square().sum())


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy of predicting each token of (b, t) from those before it."""
    flat = logits[:, :-1].float().flatten(0, 1)
    return functional.cross_entropy(flat, tokens[:, 1:].flatten().to(flat.device), reduction="sum")


def output_probe(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return Σ z · outputs / √width with random signs z, (…, width): no labels are needed.

    For g, its gradient in the rows of a layer, E[g gᵀ] is the Gauss–Newton matrix of the squared change of the outputs,
    averaged over their width.
    """
    signs = torch.randint(0, 2, outputs.shape, generator=generator, dtype=torch.int8).to(outputs.device)
    return (outputs.float() * (2 * signs - 1)).sum() / math.sqrt(outputs.shape[-1])


def _quality(total: dict[str, float], tokens: int, predicted: int, causal: bool, compared: bool) -> Quality:
    if not causal:
        ratio = math.sqrt(total["difference"] / total["norm"]) if total["norm"] else None
        return Quality(tokens, relative_error=ratio if compared else None)
    mean = total["loss"] / predicted
    perplexity = math.exp(mean) if mean < _LARGEST_EXPONENT else (math.inf if mean == mean else math.nan)
    if not compared:
        return Quality(tokens, perplexity)
    return Quality(tokens, perplexity, total["kl"] / predicted, total["same"] / predicted)


_LARGEST_EXPONENT = 709.0  # of e, in float64
