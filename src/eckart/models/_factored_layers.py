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
    "permute_",
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

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        """Make W and the bias W[places] and bias[places] (axis 0), or W W[:, places] (axis 1)."""
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

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        permute_(self, axis, places)


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


def permute_(layer: nn.Linear | Int8Linear, axis: int, places: torch.Tensor) -> None:
    """Give a linear layer its rows, and what goes with them (axis 0), or its columns (axis 1) in another order."""
    for leaf in ("values" if isinstance(layer, Int8Linear) else "weight", *(("scales", "bias") if axis == 0 else ())):
        if (tensor := getattr(layer, leaf, None)) is not None:
            setattr(layer, leaf, frozen(tensor.index_select(axis, places)))


class FactorPair(FactoredLayer):
    """y = up(down(x)): a linear layer of rank k in k(m + n) numbers."""

    def __init__(self, rows: int, columns: int, k: int, bias: bool, *, int8: bool = False, **where: Any) -> None:
        super().__init__(rows, columns)
        self.down = linear(columns, k, bias=False, int8=int8, **where)
        self.up = linear(k, rows, bias=bias, int8=int8, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = _bare(self._modules["down"]), _bare(self._modules["up"])
        if down is not None and up is not None:  # two calls of modules would be a tenth of the time of one token
            return functional.linear(functional.linear(x, down["weight"]), up["weight"], up["bias"])
        y: torch.Tensor = self.up(self.down(x))  # with the adapters or hooks that are there
        return y

    @property
    def weight(self) -> torch.Tensor:
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.up.bias

    @property
    def has_bias(self) -> bool:
        return self.up.bias is not None

    def fill_(self, factors: Pair, bias: torch.Tensor | None) -> None:
        set_(self.down, factors.down)
        set_(self.up, factors.up, bias)

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        permute_(self.up if axis == 0 else self.down, axis, places)


class PivotingFactorization(FactoredLayer):
    """z = rows x, y = [z; rest z][order] + bias: a linear layer of rank k in k(m + n - k) numbers and an order.

    folded: the order is not stored. It is None in a layer whose neighbours follow the order that the pivots gave.
    """

    rows: Matrix
    rest: Matrix
    order: torch.Tensor | None

    def __init__(
        self, rows: int, columns: int, k: int, bias: bool, *, folded: bool = False, int8: bool = False, **where: Any
    ) -> None:
        super().__init__(rows, columns)
        self.folded = folded
        self.rows = matrix(k, columns, int8=int8, **where)
        self.rest = matrix(rows - k, k, int8=int8, **where)
        self.bias = frozen(torch.empty(rows, **where)) if bias else None
        order = None if folded else torch.empty(rows, dtype=torch.int32, device=where.get("device"))
        self.register_buffer("order", order, persistent=not folded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = times(x, self.rows)
        y = torch.cat([z, times(z, self.rest)], dim=-1)
        if (order := self.order) is not None:
            one = y.numel() == y.shape[-1]  # index_select is faster there; of more rows it copies column by column
            y = y.index_select(-1, order) if one else y.gather(-1, order.long().expand(y.shape))
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        rows = entries(self.rows)
        whole = torch.cat([rows, entries(self.rest) @ rows])
        return whole if self.order is None else whole.index_select(0, self.order)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    @property
    def further_numbers(self) -> int:
        return 0 if self.order is None else self.out_features

    def fill_(self, factors: Pair, bias: torch.Tensor | None) -> None:
        found = pivoted(factors)
        self.rows, self.rest = filled(self.rows, found.rows), filled(self.rest, found.rest)
        self.order = found.order
        if bias is not None:
            self.bias = frozen(bias)

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        if axis == 1:
            rows = self.rows
            if isinstance(rows, Int8Linear):
                permute_(rows, 1, places)
            else:
                self.rows = frozen(rows[:, places])
            return
        assert self.order is not None
        self.order = self.order[places]
        if self.bias is not None:
            self.bias = frozen(self.bias[places])

    def fold_(self) -> torch.Tensor:
        """Give the outputs in the order of the pivots from now on, which is that of W[places]; return places, (m,)."""
        assert self.order is not None
        places = self.order.argsort()
        self.reorder_(0, places)
        self.order = None
        return places


def _bare(module: Any) -> dict[str, Any] | None:
    """Return the parameters of a linear layer whose call does nothing but multiply, else None: an adapter has taken
    its place, or a hook listens.
    """
    listened = (
        type(module) is not nn.Linear
        or module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )
    return None if listened else module._parameters


def frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
