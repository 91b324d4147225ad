"""Modules that do a linear layer's work in fewer numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from eckart._factorise import Pair, pivoted

__all__ = ["FactorPair", "FactoredLayer", "PivotingFactorization", "frozen"]


class FactoredLayer(nn.Module):
    """y = W x (+ b) with W (out_features, in_features) stored in fewer numbers."""

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

    def fill_(self, pair: Pair, bias: torch.Tensor | None) -> None:
        """Take the values of W_k = up @ down and of the bias."""
        raise NotImplementedError

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        """Make W and the bias W[places] and bias[places] (axis 0), or W W[:, places] (axis 1)."""
        raise NotImplementedError


class FactorPair(FactoredLayer):
    """y = up(down(x)): a linear layer of rank k in k(m + n) numbers."""

    def __init__(self, rows: int, columns: int, k: int, bias: bool, **where: Any) -> None:
        super().__init__(rows, columns)
        self.down = nn.Linear(columns, k, bias=False, **where)
        self.up = nn.Linear(k, rows, bias=bias, **where)

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
    def has_bias(self) -> bool:
        return self.up.bias is not None

    def fill_(self, pair: Pair, bias: torch.Tensor | None) -> None:
        self.down.weight = frozen(pair.down.to(self.down.weight.dtype))
        self.up.weight = frozen(pair.up.to(self.up.weight.dtype))
        if bias is not None:
            self.up.bias = frozen(bias)

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        if axis == 1:
            self.down.weight = frozen(self.down.weight[:, places])
            return
        self.up.weight = frozen(self.up.weight[places])
        if self.up.bias is not None:
            self.up.bias = frozen(self.up.bias[places])


class PivotingFactorization(FactoredLayer):
    """z = rows x, y = [z; rest z][order] + bias: a linear layer of rank k in k(m + n - k) numbers and an order.

    folded: the order is not stored. It is None in a layer whose neighbours follow the order that the pivots gave.
    """

    order: torch.Tensor | None

    def __init__(self, rows: int, columns: int, k: int, bias: bool, *, folded: bool = False, **where: Any) -> None:
        super().__init__(rows, columns)
        self.folded = folded
        self.rows = frozen(torch.empty(k, columns, **where))
        self.rest = frozen(torch.empty(rows - k, k, **where))
        self.bias = frozen(torch.empty(rows, **where)) if bias else None
        order = None if folded else torch.empty(rows, dtype=torch.int32, device=where.get("device"))
        self.register_buffer("order", order, persistent=not folded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = functional.linear(x, self.rows)
        y = torch.cat([z, functional.linear(z, self.rest)], dim=-1)
        if (order := self.order) is not None:
            one = y.numel() == y.shape[-1]  # index_select is faster there; of more rows it copies column by column
            y = y.index_select(-1, order) if one else y.gather(-1, order.long().expand(y.shape))
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        whole = torch.cat([self.rows, self.rest @ self.rows])
        return whole if self.order is None else whole.index_select(0, self.order)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    @property
    def further_numbers(self) -> int:
        return 0 if self.order is None else self.out_features

    def fill_(self, pair: Pair, bias: torch.Tensor | None) -> None:
        found = pivoted(pair)
        self.rows = frozen(found.rows.to(self.rows.dtype))
        self.rest = frozen(found.rest.to(self.rest.dtype))
        self.order = found.order
        if bias is not None:
            self.bias = frozen(bias)

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        if axis == 1:
            self.rows = frozen(self.rows[:, places])
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
