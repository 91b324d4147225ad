"""Recovery: a compressed model trained for a while to answer as the dense one does, on the calibration texts.

The loss is the divergence of its outputs from the dense model's at every position: no label is learned, and the dense
model itself, given the same training, has nothing to gain. Only what replaced something is trained, and the small
vectors between: factors, norms and biases. A tensor's step is relative to the size of its entries, which differ between
the two factors of a layer and between layers.

Sources: distillation, Hinton et al. 2015 (arXiv 1503.02531); Adam, Kingma & Ba 2015; steps relative to the parameters'
scale, Adafactor (arXiv 1804.04235).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from eckart._compress._journal import Journal
from eckart.errors import UsageError
from eckart.models._factored_layers import FactoredLayer

if TYPE_CHECKING:
    from eckart._compress._target import Effort
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._model import Progress

__all__ = ["Recovery", "recover_"]

BATCH = 2  # pieces a step
RATE = 1e-4  # of the root mean square of a tensor, at the height of the schedule; on SmolLM2-135M at 80 %, three times
# as much ends no better and ten times as much ends worse than it began
WARM_UP = 0.1  # of all steps
BETAS = 0.9, 0.98
CLIPPED = 1.0  # norm of all gradients together
HELD_OUT = 8  # pieces on which it is judged, of which none is trained on
SAVED_EVERY = 50  # steps


@dataclass(frozen=True)
class Recovery:
    """What training did. before, after: divergence from the dense model on held-out pieces of the calibration texts, in
    nats a token, or as squared relative error for a model without next-token prediction. kept: whether the trained
    weights were better and are in the result.
    """

    steps: int
    tokens: int
    before: float
    after: float
    kept: bool


def recover_(
    small: HuggingFaceModel,
    dense: HuggingFaceModel,
    pieces: torch.Tensor,
    effort: Effort,
    journal: Journal,
    *,
    device: Any,
    progress: Progress,
    seed: int,
) -> Recovery:
    """Train `small` on `pieces`, (count, context); whatever it shares with `dense` that is trained becomes its own.

    effort: how many steps, or how many minutes, which become a number of steps once the first ones have been timed.
    device: where, None for where `small` is. The journal is where an interrupted training goes on. Weights that are no
    better on held-out pieces are given up. UsageError: there are not two pieces.
    """
    if len(pieces) < 2:
        raise UsageError(
            f"the texts make one piece of {pieces.shape[1]} tokens; recovery trains on some and is judged by others",
            fix="more text, or a smaller --context",
        )
    held, others = pieces[_shuffled(pieces, seed)].tensor_split([min(HELD_OUT, len(pieces) // 2)])
    trained = _own(small)
    first = {name: p.detach().clone() for name, p in trained.items()}
    with _moved(device, small, dense):
        before = _judged(small, dense, held)
        with _training(trained):
            steps = _train(small, dense, others, trained, effort, journal, progress, seed)
        after = _judged(small, dense, held)
    if not after < before:
        for name, p in trained.items():
            p.data = first[name]
    return Recovery(steps, steps * BATCH * pieces.shape[1], before, after, after < before)


def _train(
    small: HuggingFaceModel,
    dense: HuggingFaceModel,
    pieces: torch.Tensor,
    trained: Mapping[str, nn.Parameter],
    effort: Effort,
    journal: Journal,
    progress: Progress,
    seed: int,
) -> int:
    """Take all steps, or those that an interrupted training has not taken, and return how many there were."""
    adam = torch.optim.Adam([{"params": [p], "size": _size(p)} for p in trained.values()], betas=BETAS)

    def descend(step: int) -> None:
        adam.zero_grad()
        _divergence(small, dense, _batch(pieces, step, seed)).backward()
        nn.utils.clip_grad_norm_(trained.values(), CLIPPED)

    progress("recovering", 0, effort.steps or 1)
    what = _fingerprint(small, pieces, effort, seed)
    if (found := journal.training(what)) is not None:
        done, steps = _restored(trained, adam, found)
    else:
        done, steps = 0, effort.steps or _steps_within(effort.minutes, descend)
        journal.put_training(what, _state(trained, adam, done, steps))
    for step in range(done, steps):
        progress("recovering", step, steps)
        for group in adam.param_groups:
            group["lr"] = RATE * group["size"] * _height(step, steps)
        descend(step)
        adam.step()
        if (step + 1) % SAVED_EVERY == 0:
            journal.put_training(what, _state(trained, adam, step + 1, steps))
    progress("recovering", steps, steps)
    return steps


def _own(small: HuggingFaceModel) -> dict[str, nn.Parameter]:
    """Return what is trained: factors, and the vectors outside them, which become this model's own; tied ones once."""
    inside = {id(p) for m in small.module.modules() if isinstance(m, FactoredLayer) for p in m.parameters()}
    own: dict[int, nn.Parameter] = {}
    trained = {}
    for name, module in small.module.named_modules():
        for leaf, p in module.named_parameters(recurse=False):
            if not p.is_floating_point() or (id(p) not in inside and p.ndim != 1):
                continue
            if id(p) not in own:
                own[id(p)] = p if id(p) in inside else nn.Parameter(p.detach().clone(), requires_grad=False)
                trained[f"{name}.{leaf}"] = own[id(p)]
            module.register_parameter(leaf, own[id(p)])
    return trained


@contextlib.contextmanager
def _moved(device: Any, *models: HuggingFaceModel) -> Iterator[None]:
    homes = [model.module.device for model in models]
    try:
        for model in models:
            model.module.to(device)
        yield
    finally:
        for model, home in zip(models, homes, strict=True):
            model.module.to(home)


@contextlib.contextmanager
def _training(trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    for p in trained.values():
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in trained.values():
            p.requires_grad_(False)
            p.grad = None


def _divergence(small: HuggingFaceModel, dense: HuggingFaceModel, pieces: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of KL(dense ‖ small), or Σ (small - dense)² / Σ dense² where no token is foretold.

    The last position of a piece is left out, as where perplexity is measured.
    """
    wanted = dense.run(pieces).float()
    given: torch.Tensor = small.module(pieces.to(small.module.device))[0].float()
    if not small.predicts_next_token:
        return (given - wanted).square().sum() / wanted.square().sum()
    ours, theirs = (logits[:, :-1].flatten(0, 1).log_softmax(dim=1) for logits in (given, wanted))
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")


@torch.no_grad()
def _judged(small: HuggingFaceModel, dense: HuggingFaceModel, held: torch.Tensor) -> float:
    return sum(float(_divergence(small, dense, piece[None])) for piece in held) / len(held)


def _steps_within(minutes: float, descend: Callable[[int], None]) -> int:
    """Return how many steps these minutes hold, from the second of two whose gradients are not used."""
    descend(0)
    start = time.perf_counter()
    descend(0)
    return max(1, int(minutes * 60 / (time.perf_counter() - start)))


def _height(step: int, steps: int) -> float:
    """Return the step size as a part of RATE: a linear start, and half a cosine down to nothing."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def _shuffled(pieces: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))


def _batch(pieces: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """Return the pieces of a step: all in turn, in another order each time round."""
    places = range(step * BATCH, (step + 1) * BATCH)
    rounds = {i // len(pieces) for i in places}
    orders = {r: _shuffled(pieces, seed + r) for r in rounds}
    return torch.stack([pieces[orders[i // len(pieces)][i % len(pieces)]] for i in places])


def _size(p: torch.Tensor) -> float:
    return float(p.detach().square().mean().sqrt())


def _fingerprint(small: HuggingFaceModel, pieces: torch.Tensor, effort: Effort, seed: int) -> str:
    """Return a hash of what a training depends on beyond what the journal's own fingerprint covers."""
    options = {name: option.to_json() for name, option in small.replaced.items()}
    words = json.dumps([options, list(pieces.shape), effort.minutes, effort.steps, seed], sort_keys=True)
    return hashlib.sha256(words.encode() + pieces.contiguous().numpy().tobytes()).hexdigest()


def _state(
    trained: Mapping[str, nn.Parameter], adam: torch.optim.Adam, done: int, steps: int
) -> dict[str, torch.Tensor]:
    state = {"": torch.tensor([done, steps])}
    for name, p in trained.items():
        state[name] = p.detach()
        state |= {f"{name}#{key}": value for key, value in adam.state[p].items()}
    return state


def _restored(
    trained: Mapping[str, nn.Parameter], adam: torch.optim.Adam, state: Mapping[str, torch.Tensor]
) -> tuple[int, int]:
    done, steps = state[""].tolist()
    for name, p in trained.items():
        p.data.copy_(state[name])
        for key in _MOMENTS if done else ():
            value = state[f"{name}#{key}"]
            adam.state[p][key] = value if key == "step" else value.to(p.device)
    return done, steps


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch's Adam remembers of a tensor
