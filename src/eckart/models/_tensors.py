"""What several modules ask of torch tensors: the name of their type, their bytes in another, and whether two agree."""

from __future__ import annotations

import torch

__all__ = ["bytes_in", "dtype_name", "same"]

SAME = 1e-3  # of the largest output: what another order of operations may move, which is rounding


def dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def bytes_in(tensor: torch.Tensor, dtype: str) -> memoryview:
    """Return the bytes of a tensor in a type, row by row."""
    value = tensor.detach().to(getattr(torch, dtype)).cpu().contiguous()
    return value.reshape(-1).view(torch.uint8).numpy().data


def same(after: torch.Tensor, before: torch.Tensor) -> bool:
    """Return whether a network answers as it did, to rounding."""
    return float((after - before).abs().max()) <= SAME * float(before.abs().max())
