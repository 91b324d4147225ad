"""Batch norms of torch modules: folded into the convolutions before them, and estimated anew where they are left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from eckart.models._factored_convolutions import KERNELS, fill_, kernel_of, lowered, weight_of
from eckart.models._moments import Moments, Statistics, moved
from eckart.models._tensors import same

__all__ = ["fold_", "folded_places_", "is_norm", "settle_", "statistics"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, _NORMS)


def fold_(module: nn.Module, run: Callable[[], torch.Tensor]) -> dict[str, str]:
    """Fold batch norms into the layers whose outputs they read, and return which into which, by name.

    run: gives the module's outputs, (examples, numbers), which stay as they are to rounding: where a layer's output is
    read elsewhere as well, its batch norm stays. The layers' weights are new ones.
    """
    before, found = run(), _pairs(module, run)
    undo = [_fold_(module, norm, layer) for norm, layer in found.items()]
    if same(run(), before):
        return found
    for back in undo:
        back()
    kept = {}
    for norm, layer in found.items():
        back = _fold_(module, norm, layer)
        if same(run(), before):
            kept[norm] = layer
        else:
            back()
    return kept


def folded_places_(module: nn.Module, folded: Mapping[str, str]) -> None:
    """Give a module the layers that it has once these norms are folded, their values unset."""
    for norm, layer in folded.items():
        module.set_submodule(layer, _with_bias(module.get_submodule(layer)))
        module.set_submodule(norm, nn.Identity())


def _pairs(module: nn.Module, run: Callable[[], object]) -> dict[str, str]:
    """Return the norms that read the output of a layer, each called once, in evaluation mode."""
    made: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # so that no other tensor gets the identity of one that is gone
    calls: dict[str, int] = {}
    found: dict[str, str] = {}

    def listen(name: str) -> Any:
        def hook(m: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(m, _NORMS):
                if (layer := made.get(id(args[0]))) is not None:
                    found[name] = layer
            else:
                made[id(output)] = name
                kept.append(output)

        return hook

    weights = [id(m.weight) for m in module.modules() if isinstance(m, KERNELS)]
    handles = [
        m.register_forward_hook(listen(name))
        for name, m in module.named_modules()
        if any(m is one for _, one in _tracking(module)) or (type(m) in KERNELS and weights.count(id(m.weight)) == 1)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {norm: layer for norm, layer in found.items() if calls[norm] == calls[layer] == 1}


def _with_bias(layer: nn.Module) -> nn.Module:
    weight = weight_of(layer)
    made = lowered(replace(kernel_of(layer), bias=True), dtype=weight.dtype, device=weight.device)
    return made.train(layer.training)


def _fold_(module: nn.Module, norm: str, layer: str) -> Callable[[], None]:
    """Fold one norm and return what puts back how it was."""
    old, bn = module.get_submodule(layer), cast("nn.BatchNorm2d", module.get_submodule(norm))
    mean, variance = cast("torch.Tensor", bn.running_mean), cast("torch.Tensor", bn.running_var)
    scale, shift = (variance.double() + bn.eps).rsqrt(), -mean.double()
    if old.bias is not None:
        shift = shift + cast("torch.Tensor", old.bias).detach().double()
    if bn.affine:
        scale = scale * bn.weight.detach().double()
    shift = shift * scale + (bn.bias.detach().double() if bn.affine else 0.0)
    weight, new = weight_of(old).detach(), _with_bias(old)
    fill_(new, weight.double() * scale.reshape(-1, *(1 for _ in weight.shape[1:])), shift)
    module.set_submodule(layer, new)
    module.set_submodule(norm, nn.Identity())

    def back() -> None:
        module.set_submodule(layer, old)
        module.set_submodule(norm, bn)

    return back


def statistics(module: nn.Module, runs: Iterable[Callable[[], object]]) -> Statistics:
    """Return mean and variance, (channels,) in float64, of what every batch norm reads, over all runs."""
    moments = Moments()

    def listen(name: str) -> Any:
        return lambda m, args: moments.add(name, args[0].detach(), 1)

    handles = [m.register_forward_pre_hook(listen(name)) for name, m in _tracking(module)]
    try:
        for run in runs:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return moments.statistics()


def settle_(module: nn.Module, before: Statistics, after: Statistics) -> None:
    """Move the statistics of every batch norm by what has changed in what it reads, as `moved` does."""
    for name, m in _tracking(module):
        if name in before and name in after:
            mean, variance = cast("torch.Tensor", m.running_mean), cast("torch.Tensor", m.running_var)
            new_mean, new_variance = moved(mean, variance, before[name], after[name])
            m.running_mean, m.running_var = new_mean.to(mean), new_variance.to(variance)


def _tracking(module: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """Return the batch norms that use statistics of their own, by name."""
    return [
        (name, cast("nn.BatchNorm2d", m))
        for name, m in module.named_modules()
        if isinstance(m, _NORMS) and m.track_running_stats and not m.training
    ]
