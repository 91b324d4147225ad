"""Modules of torch that are several layers in one: opened, so that each can be listened to and replaced, and closed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from eckart.models._attention import Attention, reason_to_keep_attention
from eckart.models._recurrent import Recurrent, reason_to_keep_recurrent
from eckart.models._tensors import same

__all__ = ["closed_", "open_at_", "opened_"]


def opened_(module: nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """Open every attention and recurrent layer that this leaves as it is to rounding. run: gives the outputs."""
    found = {name: new for name, m in module.named_modules() if (new := _opened(m)) is not None}
    if not found:
        return
    before, old = run(), {name: module.get_submodule(name) for name in found}
    for name, new in found.items():
        module.set_submodule(name, new)
    if not same(run(), before):
        for name, m in old.items():
            module.set_submodule(name, m)


def _opened(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.MultiheadAttention) and not reason_to_keep_attention(module):
        return Attention(module)
    if isinstance(module, nn.RNNBase) and not reason_to_keep_recurrent(module):
        return Recurrent(module)
    return None


def open_at_(module: nn.Module, name: str) -> None:
    """Open the module that a layer of this name is in, if it is in one."""
    owner = name.rpartition(".")[0]
    found = dict(module.named_modules()).get(owner)
    if owner and found is not None and (new := _opened(found)) is not None:
        module.set_submodule(owner, new)


def closed_(module: nn.Module) -> nn.Module:
    """Put torch's own modules back where nothing was factored."""
    for name, m in list(module.named_modules()):
        if isinstance(m, (Attention, Recurrent)) and not m.factored:
            module.set_submodule(name, m.original())
    return module
