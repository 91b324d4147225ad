"""Convolutions of torch as kernels, and the modules that do their work as chains of smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from eckart.models._factored_layers import frozen
from eckart.models._kernel import Kernel, Pads, multiplied

__all__ = ["KERNELS", "FactoredConvolution", "fill_", "kernel_of", "lowered", "weight_of"]

KERNELS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
_PLAIN: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def kernel_of(module: nn.Module) -> Kernel:
    """Return the kernel of a convolution or of a linear layer."""
    if isinstance(module, nn.Linear):
        return Kernel(module.out_features, module.in_features, bias=module.bias is not None)
    conv = cast("_Convolution", module)
    size, dilation = tuple(conv.kernel_size), tuple(conv.dilation)
    return Kernel(
        out=conv.out_channels,
        into=conv.in_channels // conv.groups,
        size=size,
        stride=tuple(conv.stride),
        padding=_padding(conv),
        dilation=dilation,
        groups=conv.groups,
        transposed=conv.transposed,
        mode=conv.padding_mode,
        bias=conv.bias is not None,
    )


def _padding(conv: _Convolution) -> Pads:
    if conv.padding == "valid":
        return ((0, 0),) * len(conv.kernel_size)
    if conv.padding == "same":
        return _same(tuple(conv.kernel_size), tuple(conv.dilation))
    before = cast("tuple[int, ...]", conv.padding)
    more = conv.output_padding if conv.transposed else (0,) * len(before)
    return tuple((pad, pad - extra) for pad, extra in zip(before, more, strict=True))


def _same(size: Sequence[int], dilation: Sequence[int]) -> Pads:
    reach = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in reach)


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weights of a convolution or a linear layer in the order that Kernel states."""
    weight = cast("torch.Tensor", module.weight)
    return _exchanged(weight, module.groups) if getattr(module, "transposed", False) else weight  # type: ignore[arg-type]


def _exchanged(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the weights of a transposed convolution as those of a correlation, or the other way round."""
    first, second, *size = weight.shape
    apart = weight.reshape(groups, first // groups, second, *size).transpose(1, 2)
    return apart.reshape(groups * second, first // groups, *size).flip(tuple(range(2, weight.ndim)))


def lowered(kernel: Kernel, **where: Any) -> nn.Module:
    """Return the module that multiplies by such a kernel; its values are still unset. where: dtype and device."""
    if not kernel.size:
        return nn.Linear(kernel.into, kernel.out, bias=kernel.bias, **where)
    axes, channels = len(kernel.size), (kernel.into * kernel.groups, kernel.out)
    same: dict[str, Any] = {
        "kernel_size": kernel.size,
        "stride": kernel.stride,
        "dilation": kernel.dilation,
        "groups": kernel.groups,
        "bias": kernel.bias,
        **where,
    }
    before = tuple(pad for pad, _ in kernel.padding)
    if kernel.transposed:
        more = tuple(pad - after for pad, after in kernel.padding)
        return cast("nn.Module", _TRANSPOSED[axes](*channels, padding=before, output_padding=more, **same))
    same["padding_mode"] = kernel.mode
    if all(pad == after for pad, after in kernel.padding):
        return cast("nn.Module", _PLAIN[axes](*channels, padding=before, **same))
    assert kernel.padding == _same(kernel.size, kernel.dilation), kernel
    return cast("nn.Module", _PLAIN[axes](*channels, padding="same", **same))


def fill_(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a lowered kernel its values, in the type that it has."""
    mine = cast("nn.Parameter", module.weight)
    if getattr(module, "transposed", False):
        weight = _exchanged(weight, cast("int", module.groups))
    module.weight = frozen(weight.to(mine))
    if bias is not None:
        module.bias = frozen(bias.to(mine))


class FactoredConvolution(nn.Module):
    """A convolution as a chain of smaller ones, `stages`; the last has the bias. It has a convolution's attributes."""

    def __init__(self, kernel: Kernel, stages: Sequence[Kernel], **where: Any) -> None:
        super().__init__()
        self.kernel = kernel
        self.stages = nn.Sequential(*(lowered(stage, **where) for stage in stages))
        self.in_channels, self.out_channels, self.groups = kernel.into * kernel.groups, kernel.out, kernel.groups
        self.kernel_size, self.stride, self.dilation = kernel.size, kernel.stride, kernel.dilation
        self.transposed, self.padding_mode = kernel.transposed, kernel.mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.stages(x)
        return y

    @property
    def weight(self) -> torch.Tensor:
        """The kernel, as the layer stored it whose place this one takes; writing to it changes nothing."""
        whole = multiplied(self.kernel, [weight_of(stage) for stage in self.stages])
        return _exchanged(whole, self.groups) if self.transposed else whole

    @property
    def bias(self) -> torch.Tensor | None:
        return cast("torch.Tensor | None", self.stages[-1].bias)
