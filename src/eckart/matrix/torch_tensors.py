"""torch tensors: strided ones are arrays; sparse ones, by rows, columns or coordinates, are never made dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from eckart._arrays import Array, Space, numpy_space, power_of_two, space_of
from eckart.errors import UsageError
from eckart.matrix._borrowed import borrowed
from eckart.matrix._contract import ByProducts, Operand, kinds, nonfinite
from eckart.matrix.dense import dense

__all__ = ["OnDevice", "is_sparse", "on_device"]

LAYOUTS = ("torch.sparse_csr", "torch.sparse_csc", "torch.sparse_coo")


def is_sparse(x: Any) -> bool:
    """Say whether x is a torch tensor of another layout than an array's."""
    return str(getattr(x, "layout", "torch.strided")) != "torch.strided"


@kinds.claim("torch.Tensor")
def tensor(x: Any) -> Operand:
    """Return a torch tensor of two dimensions as a matrix.

    A sparse tensor on the CPU lends its arrays to SciPy, and blocks for its products are NumPy arrays; elsewhere torch
    makes the products (GPU: not verified). Results are dense torch tensors on the device of x.
    UsageError: other than two dimensions, blocks as entries, places outside the matrix, or sparse and in need of
    gradients. NumericalError: NaN or infinity.
    """
    if not is_sparse(x):
        return dense(x)
    import torch

    if str(x.layout) not in LAYOUTS or x.ndim != 2 or x.dense_dim():
        raise UsageError(
            f"a torch tensor of layout {x.layout} and shape {tuple(x.shape)} is not supported",
            fix=f"pass one of two dimensions, strided or {', '.join(LAYOUTS)}",
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            "gradients do not reach the entries of a sparse tensor",
            fix="pass x.detach(), or x.to_dense() for gradients",
        )
    return _lent(x.detach()) if x.device.type == "cpu" else on_device(x.detach())


def _lent(x: Any) -> Operand:
    """Return a sparse tensor on the CPU as a matrix that shares its memory."""
    form = str(x.layout).removeprefix("torch.sparse_")
    x = x.coalesce() if form == "coo" else x
    values = x.values()
    space = numpy_space(_numpy_dtype(values))
    if space.eps < space.returned_eps:
        values = values.float()  # NumPy has no bfloat16, SciPy no half float at all
    if form == "coo":
        first, second = x.indices()
    elif form == "csr":
        first, second = x.col_indices(), x.crow_indices()
    else:
        first, second = x.row_indices(), x.ccol_indices()
    places = first.numpy(), second.numpy()
    return borrowed(form, values.numpy(), places, tuple(x.shape), replace(space, export=_to_torch))


def _numpy_dtype(values: Any) -> Any:
    name = str(values.dtype).removeprefix("torch.")
    return ml_dtypes.bfloat16 if name == "bfloat16" else name


def _to_torch(array: Array) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@dataclass(frozen=True, eq=False)
class OnDevice(ByProducts):
    """A sparse tensor whose products torch makes, where the tensor is and in its own type."""

    rows: Any
    space: Space

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.rows.shape
        return int(m), int(n)

    @property
    def dtype(self) -> Any:
        return self.rows.dtype

    @property
    def stored(self) -> int:
        return int(self.rows.values().shape[0])

    def matmat(self, X: Array, /) -> Array:
        return self.rows @ self.space.single(X)

    def rmatmat(self, Y: Array, /) -> Array:
        return self.rows.t() @ self.space.single(Y)

    def largest(self) -> float:
        return float(self.rows.values().abs().max()) if self.stored else 0.0

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float:
        squares = self.rows.values().double() ** 2
        if columns is not None:
            squares = squares * columns[self.rows.col_indices()]
        if rows is not None:
            squares = squares * rows.repeat_interleave(self.rows.crow_indices().diff())
        return float(squares.sum()) * (1 + 2.0**-44)  # torch sums in pairs of blocks: a few dozen roundings

    def scaled(self, exponent: int) -> OnDevice:
        return OnDevice(_with_values(self.rows, power_of_two(self.rows.values(), exponent)), self.space)


def on_device(x: Any) -> OnDevice:
    """Return a sparse tensor of two dimensions as an operand on its device. NumericalError: NaN or infinity."""
    rows = x.coalesce().to_sparse_csr() if str(x.layout) == "torch.sparse_coo" else x.to_sparse_csr()
    space = space_of(rows.values())
    rows = _with_values(rows, space.single(rows.values()))
    finite = rows.values().isfinite()
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0, 0])
        row = int((rows.crow_indices() <= first).sum()) - 1
        raise nonfinite(float(rows.values()[first]), row, int(rows.col_indices()[first]))
    return OnDevice(rows, space)


def _with_values(rows: Any, values: Any) -> Any:
    import torch

    places = rows.crow_indices(), rows.col_indices()
    return torch.sparse_csr_tensor(*places, values, rows.shape, check_invariants=True)
