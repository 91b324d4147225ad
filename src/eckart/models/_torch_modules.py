"""What networks of torch ask of single modules: their layers and tensors, what takes a layer's place, and twins."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from eckart.models._factored_convolutions import KERNELS, FactoredConvolution, kernel_of, weight_of
from eckart.models._factored_layers import FactorPair
from eckart.models._kernel import Kernel, useful_forms
from eckart.models._model import Layer
from eckart.models._option import DTYPE_BYTES
from eckart.models._recurrent import Recurrent

__all__ = ["described", "moved_to", "placeholder", "size_of", "stored", "tensors_in", "twin"]


def placeholder(kernel: Kernel, chain: Sequence[Kernel], *, like: nn.Module) -> nn.Module:
    """Return the module of a chain, its values unset, in the type, on the device and in the mode of another."""
    where: dict[str, Any] = {"dtype": weight_of(like).dtype, "device": weight_of(like).device}
    if kernel.size:
        return FactoredConvolution(kernel, chain, **where).train(like.training)
    return FactorPair(kernel.out, kernel.into, chain[0].out, kernel.bias, **where).train(like.training)


def stored(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return what a checkpoint of a module stores, each tensor once, by its first name."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return list(first.values())


def size_of(module: nn.Module, dtype: str) -> tuple[int, int]:
    """Return numbers and bytes; the numbers are those of parameters, the bytes those of buffers as well."""
    tensors = [tensor for _, tensor in stored(module)]
    size = sum(t.numel() * (DTYPE_BYTES[dtype] if t.is_floating_point() else t.element_size()) for t in tensors)
    return sum(p.numel() for p in module.parameters()), size


def described(name: str, module: nn.Module, every: Mapping[str, nn.Module], called: bool) -> list[Layer]:
    """Return the layers that a module is: one, or those of a recurrent one."""
    used = "" if called else "not called on the data"
    if isinstance(module, Recurrent):
        return [_layer(f"{name}.{leaf}", module.mode, kernel, used) for leaf, kernel in module.kernels().items()]
    other = next(
        (o for o, m in every.items() if o != name and isinstance(m, KERNELS) and m.weight is module.weight), None
    )
    plain = next(one for one in KERNELS if isinstance(module, one))
    kept = used
    if other is not None:
        kept = f"its weight is that of {other}"
    elif parametrize.is_parametrized(module) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        kept = "its weight is computed from others (a parametrization)"
    elif type(module).forward is not plain.forward:
        kept = f"{type(module).__name__} has a forward of its own"
    return [_layer(name, type(module).__name__, kernel_of(module), kept)]


def _layer(name: str, kind: str, kernel: Kernel, kept: str) -> Layer:
    if not kept and not useful_forms(kernel):
        kept = "each output reads one channel: depthwise, or one number a patch"
    return Layer(name, kind, kernel.out, kernel.columns, kernel.bias, kept, (name,), kernel=kernel)


def twin(module: nn.Module) -> nn.Module:
    """Return a module of its own: its tensors are other objects, which share the memory of the module's."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    memo |= {id(b): b.detach() for b in module.buffers()}
    return copy.deepcopy(module, memo)


def tensors_in(output: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors that a module returned, whatever holds them."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [one for value in output.values() for one in tensors_in(value)]
    if isinstance(output, (list, tuple)):
        return [one for value in output for one in tensors_in(value)]
    return []


def moved_to(value: Any, home: torch.device) -> Any:
    return value.to(home) if isinstance(value, torch.Tensor) else value
