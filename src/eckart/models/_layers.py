"""The layer types that can be factorised. One class each; adding one touches nothing else.

A layer type tells which matrix it multiplies by, what its input rows are, what it can become and how that is built:
`matrix(module)`, `inputs(module, args)`, `options(module, dtype, ranks)`, `factored(module, option, pair)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from eckart import _registry
from eckart._factorise import Pair, pivoted
from eckart.models import _option
from eckart.models._option import Option

__all__ = ["FactorPair", "FactoredLayer", "LayerType", "PivotingFactorization", "layer_type", "placeholder"]


class LayerType(Protocol):
    """The four questions that compression asks of a layer."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        """Return W, (m, n), of y = W x (+ b): a view, whatever way round the layer stores it."""

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        """Return the rows x, (tokens, n), of a call with these arguments."""

    def options(self, module: nn.Module, dtype: str, ranks: Mapping[str, Iterable[int]]) -> list[Option]:
        """Return dense first, then what the layer can become in each format at each of its `ranks`."""

    def factored(self, module: nn.Module, option: Option, pair: Pair | None, device: Any = None) -> nn.Module:
        """Return a module that does the layer's work as `option` says; without a pair, its values are still unset, on
        the layer's device or the one given.
        """

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        """Give the layer itself the weight W, (m, n)."""


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
        self.down.weight = _frozen(pair.down.to(self.down.weight.dtype))
        self.up.weight = _frozen(pair.up.to(self.up.weight.dtype))
        if bias is not None:
            self.up.bias = _frozen(bias)


class PivotingFactorization(FactoredLayer):
    """z = rows x, y = [z; rest z][order] + bias: a linear layer of rank k in k(m + n - k) numbers and an order."""

    order: torch.Tensor

    def __init__(self, rows: int, columns: int, k: int, bias: bool, **where: Any) -> None:
        super().__init__(rows, columns)
        self.rows = _frozen(torch.empty(k, columns, **where))
        self.rest = _frozen(torch.empty(rows - k, k, **where))
        self.bias = _frozen(torch.empty(rows, **where)) if bias else None
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
        self.rows = _frozen(found.rows.to(self.rows.dtype))
        self.rest = _frozen(found.rest.to(self.rest.dtype))
        self.order = found.order
        if bias is not None:
            self.bias = _frozen(bias)


_FACTORED = {"pair": FactorPair, "pifa": PivotingFactorization}


class _Matmul:
    """What Linear and Conv1D share: a matrix product over the last axis, and factors in its place."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        raise NotImplementedError

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        x: torch.Tensor = args[0]
        return x.reshape(-1, x.shape[-1])

    def options(self, module: nn.Module, dtype: str, ranks: Mapping[str, Iterable[int]]) -> list[Option]:
        (m, n), bias = self.matrix(module).shape, module.bias is not None
        less = [_option.factored(form, m, n, bias, dtype, k) for form, some in ranks.items() for k in some]
        return [_option.dense(m, n, bias, dtype), *less]

    def factored(self, module: nn.Module, option: Option, pair: Pair | None, device: Any = None) -> nn.Module:
        weight, bias = self.matrix(module), cast("torch.Tensor | None", module.bias)
        (m, n), (k,) = weight.shape, option.ranks
        new: FactoredLayer = _FACTORED[option.format](m, n, k, bias is not None, device="meta", dtype=weight.dtype)
        if pair is None:
            return new.to_empty(device=device or weight.device)
        new.fill_(pair, bias)
        return new.train(module.training)


class Linear(_Matmul):
    """torch.nn.Linear: y = x Wᵀ + b."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        assert isinstance(module, nn.Linear)
        return module.weight

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        module.weight = _frozen(weight.to(self.matrix(module).dtype))


class Conv1D(_Matmul):
    """GPT-2's linear layer, which stores the transpose: y = x W + b."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.T

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        module.weight = _frozen(weight.T.to(self.matrix(module).dtype))


class Embedding:
    """A table of rows. It is known, counted and shown; factorising it needs token frequencies, and is not done here."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        assert isinstance(module, nn.Embedding)
        return module.weight

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        raise NotImplementedError("an embedding reads indices, which have no Gram matrix")

    def options(self, module: nn.Module, dtype: str, ranks: Mapping[str, Iterable[int]]) -> list[Option]:
        (m, n) = self.matrix(module).shape
        return [_option.dense(m, n, False, dtype)]

    def factored(self, module: nn.Module, option: Option, pair: Pair | None, device: Any = None) -> nn.Module:
        raise NotImplementedError("an embedding has no option but to stay dense")

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        raise NotImplementedError("an embedding has no option but to stay dense")


_TYPES: _registry.Registry[LayerType] = _registry.Registry()
_TYPES.claim("torch.nn.modules.linear.Linear")(Linear())
_TYPES.claim("transformers.pytorch_utils.Conv1D")(Conv1D())
_TYPES.claim("torch.nn.modules.sparse.Embedding")(Embedding())


def layer_type(module: nn.Module) -> LayerType | None:
    """Return how to treat this module, or None when it is not a layer that can be factorised."""
    return _TYPES.find(module)


def placeholder(module: nn.Module, option: Option, device: Any = None) -> nn.Module:
    """Return the layer of `option` in the place of `module`, values unset: what a saved model is read into.

    device: that of the layer where None; "meta" for names and shapes alone.
    """
    kind = layer_type(module)
    assert kind is not None
    return kind.factored(module, option, None, device)


def _frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
