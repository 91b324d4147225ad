"""Listening to layers while a model runs: Gram matrices of what goes in and of the gradient of what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from eckart._factorise import Gram
from eckart.models._layers import layer_type

__all__ = ["Taps", "tapped"]


@dataclass
class Taps:
    """inputs[name]: Gram of the layer's input rows; layers that read the same tensor have the same Gram object.
    outputs[name]: Gram of the gradient of the loss in the layer's output rows, where a backward pass was made.
    """

    inputs: dict[str, Gram] = field(default_factory=dict)
    outputs: dict[str, Gram] = field(default_factory=dict)


@contextlib.contextmanager
def tapped(layers: Mapping[str, nn.Module], groups: Sequence[Sequence[str]], *, gradients: bool) -> Iterator[Taps]:
    """Fill Taps from every call of `layers` made inside the block.

    groups: names said to share an input. It is checked at the first call, and a layer for which it does not hold
    gets a Gram of its own.
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
            if gradients and output.requires_grad:
                width = output.shape[-1]
                gram = taps.outputs.setdefault(name, Gram(width, output.device))
                output.register_hook(lambda gradient: gram.add(gradient.reshape(-1, width)))

        return hook

    handles = [module.register_forward_hook(listen(name)) for name, module in layers.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
