"""Modules that do a linear layer's work in fewer numbers, or in shorter ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from eckart._factorise import Pair, pivoted
from eckart._rounding import int8_rows

__all__ = [
    "FactorPair",
    "FactoredLayer",
    "Int8Linear",
    "Matrix",
    "PivotingFactorization",
    "entries",
    "filled",
    "frozen",
    "linear",
    "matrix",
    "set_",
    "times",
]


class FactoredLayer(nn.Module):
    """y = W x (+ b) with W (out_features, in_features) stored in fewer numbers, or in shorter ones."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, (m, n), for code that reads a linear layer's weight; writing to it changes nothing."""
        raise NotImplementedError

    @property
    def has_bias(self) -> bool:
        raise NotImplementedError

    @property
    def further_numbers(self) -> int:
        """How many of the stored numbers are no parameters, but an order of rows."""
        return 0

    def fill_(self, factors: Any, bias: torch.Tensor | None) -> None:
        """Take the values of what stands for W, a Pair unless the class says otherwise, and of the bias."""
        raise NotImplementedError


BLOCK = 2**17  # entries that are made floating-point numbers at once: 512 kB stay in a core's cache


class Int8Linear(FactoredLayer):
    """y = scales * (values x) (+ b): a matrix in int8 with one scale a row.

    It takes the arguments of nn.Linear; dtype is that of scales and bias, in which it computes, on any device. On a CPU
    the integers are converted a block of rows at a time: with float32 inputs that takes about the time of a float32
    layer, where a copy of the whole takes up to ten times as much. (torch's own product, _weight_int8pack_mm, has no
    vectors for float32, and reads past the end of a bfloat16 matrix whose width is no multiple of 16.)
    """

    def __init__(self, columns: int, rows: int, bias: bool = True, **where: Any) -> None:
        super().__init__(rows, columns)
        self.values = frozen(torch.empty(rows, columns, dtype=torch.int8, device=where.get("device")))
        self.scales = frozen(torch.empty(rows, **where))
        self.bias = frozen(torch.empty(rows, **where)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x (+ b) for rows x, (…, n)."""
        if x.dtype == torch.float16:  # whose range the sums before scaling could leave
            return functional.linear(x, self.weight.to(x.dtype), self.bias)
        blocks = self.values.split(max(1, BLOCK // max(1, self.in_features)))
        y = torch.cat([functional.linear(x, block.to(x.dtype)) for block in blocks], dim=-1) * self.scales
        return y if self.bias is None else y + self.bias

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows of W, (…, n), for indices, (…)."""
        return functional.embedding(indices, self.values) * self.scales[indices][..., None]

    @property
    def weight(self) -> torch.Tensor:
        return self.values * self.scales[:, None]

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    def fill_(self, factors: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take the values of W itself, rounded to nearest, and of the bias."""
        values, scales = int8_rows(factors)
        self.values, self.scales = frozen(values), frozen(scales.to(self.scales.dtype))
        if bias is not None:
            self.bias = frozen(bias)


Matrix = nn.Parameter | Int8Linear  # what a factor is stored as


def matrix(rows: int, columns: int, *, int8: bool, **where: Any) -> Matrix:
    """Return a factor whose values are still unset."""
    return Int8Linear(columns, rows, bias=False, **where) if int8 else frozen(torch.empty(rows, columns, **where))


def filled(factor: Matrix, values: torch.Tensor) -> Matrix:
    """Return the factor with these values, in the type that it has."""
    if isinstance(factor, Int8Linear):
        factor.fill_(values, None)
        return factor
    return frozen(values.to(factor.dtype))


def times(x: torch.Tensor, factor: Matrix) -> torch.Tensor:
    """Return x, (…, columns), times the transpose of a factor."""
    return factor(x) if isinstance(factor, Int8Linear) else functional.linear(x, factor)


def entries(factor: Matrix) -> torch.Tensor:
    """Return the values of a factor, (rows, columns)."""
    return factor.weight if isinstance(factor, Int8Linear) else factor


def linear(columns: int, rows: int, bias: bool, *, int8: bool, **where: Any) -> nn.Linear | Int8Linear:
    """Return a linear layer whose values are still unset."""
    return (Int8Linear if int8 else nn.Linear)(columns, rows, bias=bias, **where)


def set_(layer: nn.Linear | Int8Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Give a linear layer its values, in the type that it has."""
    if isinstance(layer, Int8Linear):
        layer.fill_(weight, bias)
        return
    layer.weight = frozen(weight.to(layer.weight.dtype))
    if bias is not None:
        layer.bias = frozen(bias)


class FactorPair(FactoredLayer):
    """y = up(down(x)): a linear layer of rank k in k(m + n) numbers."""

    def __init__(self, rows: int, columns: int, k: int, bias: bool, *, int8: bool = False, **where: Any) -> None:
        super().__init__(rows, columns)
        self.down = linear(columns, k, bias=False, int8=int8, **where)
        self.up = linear(k, rows, bias=bias, int8=int8, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(self.down(x))
        return y

    @property
    def weight(self) -> torch.Tensor:
        return self.up.weight @ self.down.weight

    @property
    def has_bias(self) -> bool:
        return self.up.bias is not None

    def fill_(self, factors: Pair, bias: torch.Tensor | None) -> None:
        set_(self.down, factors.down)
        set_(self.up, factors.up, bias)


class PivotingFactorization(FactoredLayer):
    """z = rows x, y = [z; rest z][order] + bias: a linear layer of rank k in k(m + n - k) numbers and an order."""

    rows: Matrix
    rest: Matrix
    order: torch.Tensor

    def __init__(self, rows: int, columns: int, k: int, bias: bool, *, int8: bool = False, **where: Any) -> None:
        super().__init__(rows, columns)
        self.rows = matrix(k, columns, int8=int8, **where)
        self.rest = matrix(rows - k, k, int8=int8, **where)
        self.bias = frozen(torch.empty(rows, **where)) if bias else None
        self.register_buffer("order", torch.empty(rows, dtype=torch.int32, device=where.get("device")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = times(x, self.rows)
        y = torch.cat([z, times(z, self.rest)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        rows = entries(self.rows)
        return torch.cat([rows, entries(self.rest) @ rows]).index_select(0, self.order)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    @property
    def further_numbers(self) -> int:
        return self.out_features

    def fill_(self, factors: Pair, bias: torch.Tensor | None) -> None:
        found = pivoted(factors)
        self.rows, self.rest = filled(self.rows, found.rows), filled(self.rest, found.rest)
        self.order = found.order
        if bias is not None:
            self.bias = frozen(bias)


def frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
