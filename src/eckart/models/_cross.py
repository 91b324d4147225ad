"""Listening to two versions of the same layers: sums over what the one reads and what the other does instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from eckart._factorise import TOKENS_PER_PRODUCT
from eckart.models._layers import layer_type

__all__ = ["CrossGram", "calls_in_order", "cross_tapped"]


class CrossGram:
    """gram: Σ x' x'ᵀ, cross: Σ x x'ᵀ over pairs of rows x, x' of two matrices; both (n, n), in float64."""

    def __init__(self, n: int, device: Any = "cpu") -> None:
        self.gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        self.cross = torch.zeros_like(self.gram)

    def add(self, rows: torch.Tensor, instead: torch.Tensor) -> None:
        """Add rows x and x', (t, n) each; multiplied in float32, at most 1024 at a time, accumulated in float64."""
        for x, y in zip(*(r.float().split(TOKENS_PER_PRODUCT) for r in (rows, instead)), strict=True):
            self.gram += y.T @ y
            self.cross += x.T @ y


@contextlib.contextmanager
def cross_tapped(
    layers: Mapping[str, nn.Module], instead: Mapping[str, nn.Module]
) -> Iterator[tuple[dict[str, CrossGram], Callable[[], None]]]:
    """Give sums for each layer, and what adds to them once both versions have been called with the next batch.

    Layers that read the same tensors have the same CrossGram object.
    """
    latest: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    sums: dict[str, CrossGram] = {}

    def listen(name: str, rows: dict[str, torch.Tensor]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            kind = layer_type(module)
            assert kind is not None
            rows[name] = kind.inputs(module, args).detach()

        return hook

    def add() -> None:
        done: dict[tuple[int, int], CrossGram] = {}
        for name, x in latest[0].items():
            y = latest[1][name]
            place = (x.data_ptr(), y.data_ptr())
            if place not in done:
                done[place] = sums.setdefault(name, CrossGram(x.shape[1], x.device))
                done[place].add(x, y)
            sums.setdefault(name, done[place])
        latest[0].clear()
        latest[1].clear()

    handles = [
        module.register_forward_pre_hook(listen(name, rows))
        for some, rows in zip((layers, instead), latest, strict=True)
        for name, module in some.items()
    ]
    try:
        yield sums, add
    finally:
        for handle in handles:
            handle.remove()


def calls_in_order(layers: Mapping[str, nn.Module], run: Callable[[], object]) -> list[str]:
    """Return the names of the layers that `run` calls, in the order of their first calls."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: order.setdefault(name))
        for name, module in layers.items()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(order)
