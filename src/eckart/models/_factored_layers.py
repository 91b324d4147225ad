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


class FactorPair(FactoredLayer):
    """y = up(down(x)): a linear layer of rank k in k(m + n) numbers."""

    def __init__(self, rows: int, columns: int, k: int, bias: bool, **where: Any) -> None:
        super().__init__(rows, columns)
        self.down = nn.Linear(columns, k, bias=False, **where)
        self.up = nn.Linear(k, rows, bias=bias, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(self.down(x))
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


class PivotingFactorization(FactoredLayer):
    """z = rows x, y = [z; rest z][order] + bias: a linear layer of rank k in k(m + n - k) numbers and an order."""

    order: torch.Tensor

    def __init__(self, rows: int, columns: int, k: int, bias: bool, **where: Any) -> None:
        super().__init__(rows, columns)
        self.rows = frozen(torch.empty(k, columns, **where))
        self.rest = frozen(torch.empty(rows - k, k, **where))
        self.bias = frozen(torch.empty(rows, **where)) if bias else None
        self.register_buffer("order", torch.empty(rows, dtype=torch.int32, device=where.get("device")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = functional.linear(x, self.rows)
        y = torch.cat([z, functional.linear(z, self.rest)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        return torch.cat([self.rows, self.rest @ self.rows]).index_select(0, self.order)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    @property
    def further_numbers(self) -> int:
        return self.out_features

    def fill_(self, pair: Pair, bias: torch.Tensor | None) -> None:
        found = pivoted(pair)
        self.rows = frozen(found.rows.to(self.rows.dtype))
        self.rest = frozen(found.rest.to(self.rest.dtype))
        self.order = found.order
        if bias is not None:
            self.bias = frozen(bias)


def frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
