"""Folding a layer's order of rows away: the hidden units of a feed-forward part have no order of their own.

A layer stored by pivoting gives its outputs in the order of its pivots. Where these are hidden units that are treated
alike (W2 act(W1 x), or W2 (act(W1 x) * W3 x)), the rows of W3 and the columns of W2 follow that order once and for all,
and nothing is permuted when the model runs. models/groups.toml says where that may be; it is tried out before use.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eckart.models._factored_layers import FactoredLayer, PivotingFactorization, frozen
from eckart.models._layers import layer_type
from eckart.models._shelf import Shelf

__all__ = ["Fold", "candidates", "fold_", "verified"]

TRIED_TOKENS = 16
TOLERANCE = 1e-4  # of what a permutation of the leader's rows alone changes; rounding alone gives 1e-6, a wrong fold 1


@dataclass(frozen=True)
class Fold:
    """leader: the layer whose rows come in the order of its pivots. peers follow in their rows, follower in columns."""

    leader: str
    peers: tuple[str, ...]
    follower: str

    @property
    def members(self) -> tuple[str, ...]:
        return (self.leader, *self.peers, self.follower)


def candidates(names: Sequence[str], patterns: Sequence[Sequence[str]]) -> list[Fold]:
    """Return the folds that the table's patterns find among the names of layers; no layer is in two of them."""
    there, found = set(names), []
    taken: set[str] = set()
    for first, *others in patterns:
        for name in names:
            parent = name.removesuffix(first)
            members = [name, *(parent + other for other in others)]
            named = name.endswith(first) and parent[-1:] in ("", ".") and there.issuperset(members)
            if named and taken.isdisjoint(members):
                taken |= {*members}
                found.append(Fold(members[0], tuple(members[1:-1]), members[-1]))
    return found


@torch.no_grad()
def verified(module: Any, blocks: Sequence[str], folds: Sequence[Fold], shelf: Shelf) -> list[Fold]:
    """Return those folds, each within one block, that leave the block's output as it is, tried on random tokens.

    The model can be called: what waits on the shelf of a block is there while it runs.

    A fold whose leader changes nothing in this trial, such as an expert that no token reaches, is not among them.
    """
    home = {fold: next((block for block in blocks if fold.leader.startswith(f"{block}.")), None) for fold in folds}
    if not any(home.values()) or not isinstance(module.get_input_embeddings(), nn.Embedding):
        return []
    draw = torch.Generator().manual_seed(0)
    calls = _calls(module, {block for block in home.values() if block is not None}, draw)
    found = []
    for fold, block in home.items():
        if block in calls:
            with shelf.filled(module.get_submodule(block)):
                if _holds(module, block, fold, calls[block], draw):
                    found.append(fold)
    return found


def fold_(module: nn.Module, folds: Sequence[Fold], shelf: Shelf) -> None:
    """Let the neighbours of every leader that is stored without its order follow that order.

    Layers that waited on the shelf wait there again.
    """
    for fold in folds:
        leader = module.get_submodule(fold.leader)
        if isinstance(leader, PivotingFactorization) and leader.folded and leader.order is not None:
            waits = shelf.waits(leader)
            leader = shelf.read(leader)
            assert isinstance(leader, PivotingFactorization)
            places = leader.fold_()
            changed: dict[str, nn.Module] = {fold.leader: leader}
            for name, axis in _followers(fold):
                old = module.get_submodule(name)
                with shelf.filled(old):
                    changed[name] = _reordered(old, axis, places)
            for name, new in changed.items():
                if waits:
                    shelf.put(new)
                module.set_submodule(name, new)


def _followers(fold: Fold) -> Iterator[tuple[str, int]]:
    yield from ((name, 0) for name in fold.peers)
    yield fold.follower, 1


def _reordered(module: nn.Module, axis: int, places: torch.Tensor) -> nn.Module:
    """Return a layer, dense or factored, with its rows (axis 0) or columns (axis 1) in another order."""
    same = (*module.parameters(), *module.buffers(), *getattr(module, "owners", ()))
    twin = copy.deepcopy(module, {id(one): one for one in same})
    if isinstance(twin, FactoredLayer):
        twin.reorder_(axis, places)
        return twin
    kind = layer_type(twin)
    assert kind is not None
    kind.assign_(twin, _matrix(twin).index_select(axis, places))
    if axis == 0 and (bias := getattr(module, "bias", None)) is not None:
        twin.bias = frozen(bias[places])
    return twin


def _matrix(layer: nn.Module) -> torch.Tensor:
    kind = layer_type(layer)
    assert kind is not None
    return kind.matrix(layer)


Call = tuple[tuple[Any, ...], Mapping[str, Any], torch.Tensor]


def _calls(module: Any, blocks: set[str], draw: torch.Generator) -> dict[str, Call]:
    """Return with what each block is called, and what it returns, when the model reads random tokens."""
    calls: dict[str, Call] = {}

    def note(name: str) -> Any:
        def hook(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] = args, kwargs, _first(output)

        return hook

    tokens = torch.randint(0, module.get_input_embeddings().num_embeddings, (1, TRIED_TOKENS), generator=draw)
    extra = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
    handles = [module.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in blocks]
    try:
        module(tokens.to(module.device), **extra)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _holds(module: Any, block: str, fold: Fold, call: Call, draw: torch.Generator) -> bool:
    args, kwargs, expected = call
    known = {name: module.get_submodule(name) for name in fold.members}
    axes = dict([(fold.leader, 0), *_followers(fold)])
    counts = {_matrix(layer).shape[axes[name]] for name, layer in known.items()}
    if len(counts) > 1:
        return False
    places = torch.randperm(counts.pop(), generator=draw).to(expected.device)

    def change(*moved: tuple[str, int]) -> float:
        tensors: dict[str, torch.Tensor] = {
            f"{name.removeprefix(block + '.')}.{leaf}": tensor
            for name, axis in moved
            for leaf, tensor in _reordered(known[name], axis, places).named_parameters()
        }
        output = torch.func.functional_call(module.get_submodule(block), tensors, args, dict(kwargs))
        return float((_first(output) - expected).norm())

    alone = change((fold.leader, 0))
    return alone > 0 and change((fold.leader, 0), *_followers(fold)) <= TOLERANCE * alone


def _first(output: Any) -> torch.Tensor:
    value: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return value
