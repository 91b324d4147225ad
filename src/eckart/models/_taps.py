"""Listening to layers while a model runs: sums over what goes in and over the gradient of what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from eckart._factorise import Gram
from eckart.models._layers import layer_type

__all__ = ["Gradients", "TableTaps", "Taps", "clipped", "table_tapped", "tapped"]

Gradients = Literal["none", "all", "clipped", "weights"]

LEFT_OUT = 0.125  # of a piece's tokens, at its beginning and at its end: LEMS (ICML 2026) leaves these gradients out
SMALLEST, LARGEST = 0.1, 10.0  # norm of a token's gradient, in units of the piece's mean: the same source
VANISHED = 1e-10  # a gradient of this norm is none


@dataclass
class Taps:
    """inputs[name]: Gram of the layer's input rows; layers that read the same tensor have the same Gram object.
    outputs[name]: Gram of the gradient of the loss in the layer's output rows, where a backward pass was made.
    weights[name]: Σ over pieces of the squares of the loss's gradient in the weight, (n,), mean over its rows.
    """

    inputs: dict[str, Gram] = field(default_factory=dict)
    outputs: dict[str, Gram] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def tapped(
    layers: Mapping[str, nn.Module], groups: Sequence[Sequence[str]], *, gradients: Gradients = "none"
) -> Iterator[Taps]:
    """Fill Taps from every call of `layers` made inside the block.

    groups: names said to share an input. It is checked at the first call, and a layer for which it does not hold
    gets a Gram of its own. gradients: "all" or "clipped" rows fill `outputs`, "weights" fills `weights`.
    """
    taps, seen = Taps(), {}
    leader = {name: group[0] for group in groups for name in group}
    owners: set[str] = set()

    def listen(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            kind = layer_type(module)
            assert kind is not None
            rows = kind.inputs(module, args).detach()
            first = leader.get(name, name)
            seen[name] = (args[0].data_ptr(), args[0].shape)
            if name not in taps.inputs:
                shares = first != name and seen.get(first) == seen[name]
                taps.inputs[name] = taps.inputs[first] if shares else Gram(rows.shape[1], rows.device)
                if not shares:
                    owners.add(name)
            if name in owners:
                taps.inputs[name].add(rows)
            if gradients != "none" and output.requires_grad:
                output.register_hook(lambda gradient: take(name, rows, gradient))

        return hook

    def take(name: str, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        pieces = gradient.reshape(-1, *gradient.shape[-2:])  # (pieces, tokens, m)
        width = pieces.shape[-1]
        if gradients == "weights":
            of_weight = pieces.mT @ rows.reshape(*pieces.shape[:2], -1)
            squares = of_weight.double().square().mean(dim=1).sum(dim=0)
            taps.weights[name] = taps.weights[name] + squares if name in taps.weights else squares
        else:
            gram = taps.outputs.setdefault(name, Gram(width, pieces.device))
            gram.add((clipped(pieces) if gradients == "clipped" else pieces).reshape(-1, width))

    handles = [module.register_forward_hook(listen(name)) for name, module in layers.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class TableTaps:
    """looked_up, predicted: for each row of a table, how often it was, and the sum of its probabilities, (rows,),
    float64. inputs: Gram of what the head read that multiplies by the table; None where no head does.
    """

    looked_up: torch.Tensor
    predicted: torch.Tensor
    inputs: Gram | None


@contextlib.contextmanager
def table_tapped(embedding: nn.Module | None, head: nn.Module | None) -> Iterator[TableTaps]:
    """Fill TableTaps from every call of an embedding, of a head, or of both that share a table, inside the block."""
    weight = next(module.weight for module in (embedding, head) if module is not None)
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    none = torch.zeros(rows, dtype=torch.float64, device=weight.device)
    taps = TableTaps(none, none.clone(), None if head is None else Gram(columns, weight.device))

    def count(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        taps.looked_up += torch.bincount(args[0].flatten(), minlength=rows)

    def add(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        assert taps.inputs is not None
        taps.inputs.add(args[0].detach().reshape(-1, columns))
        for part in output.detach().reshape(-1, rows).split(_LOGIT_ROWS):
            taps.predicted += part.float().softmax(dim=1).sum(dim=0)

    listening = [(module, hook) for module, hook in ((embedding, count), (head, add)) if module is not None]
    handles = [module.register_forward_hook(hook) for module, hook in listening]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


_LOGIT_ROWS = 256  # whose probabilities are in memory at once


def clipped(pieces: torch.Tensor) -> torch.Tensor:
    """Return gradients (pieces, tokens, m) without a piece's outer tokens, and with their norms between two bounds."""
    tokens = pieces.shape[1]
    cut = int(LEFT_OUT * tokens)
    middle = pieces[:, cut : tokens - cut].float()
    norms = middle.norm(dim=2, keepdim=True)
    there = norms >= VANISHED
    mean = (norms * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp_min(1)
    bounded = norms.clamp(min=SMALLEST * mean, max=LARGEST * mean)
    return middle * torch.where(there, bounded / norms.clamp_min(VANISHED), torch.ones_like(norms))
