"""The layer types that can be factorised. One class each; adding one touches nothing else.

A layer type tells which matrix it multiplies by, what its input rows are, what it can become and how that is built:
`matrix(module)`, `inputs(module, args)`, `options(module, dtype)`, `factored(module, option, pair)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from eckart import _registry
from eckart._factorise import Pair
from eckart.models import _option
from eckart.models._option import Option

__all__ = ["FactorPair", "LayerType", "layer_type", "placeholder"]


class LayerType(Protocol):
    """The four questions that compression asks of a layer."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        """Return W, (m, n), of y = W x (+ b): a view, whatever way round the layer stores it."""

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        """Return the rows x, (tokens, n), of a call with these arguments."""

    def options(self, module: nn.Module, dtype: str, ranks: Iterable[int]) -> list[Option]:
        """Return dense first, then what the layer can become at each of `ranks`."""

    def factored(self, module: nn.Module, option: Option, pair: Pair | None) -> nn.Module:
        """Return a module that does the layer's work as `option` says; without a pair, its values are still unset."""

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        """Give the layer itself the weight W, (m, n)."""


class FactorPair(nn.Module):
    """y = up(down(x)): a linear layer of rank k in k(m + n) numbers."""

    def __init__(self, rows: int, columns: int, k: int, bias: bool, **where: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows
        self.down = nn.Linear(columns, k, bias=False, **where)
        self.up = nn.Linear(k, rows, bias=bias, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(self.down(x))
        return y

    @property
    def weight(self) -> torch.Tensor:
        """The product, (m, n), for code that reads a linear layer's weight; writing to it changes nothing."""
        return self.up.weight @ self.down.weight


class _Matmul:
    """What Linear and Conv1D share: a matrix product over the last axis, and a factor pair in its place."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        raise NotImplementedError

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        x: torch.Tensor = args[0]
        return x.reshape(-1, x.shape[-1])

    def options(self, module: nn.Module, dtype: str, ranks: Iterable[int]) -> list[Option]:
        (m, n), bias = self.matrix(module).shape, module.bias is not None
        return [_option.dense(m, n, bias, dtype), *(_option.pair(m, n, bias, dtype, k) for k in ranks)]

    def factored(self, module: nn.Module, option: Option, pair: Pair | None) -> nn.Module:
        weight, bias = self.matrix(module), module.bias
        (m, n), (k,) = weight.shape, option.ranks
        new = FactorPair(m, n, k, bias is not None, device="meta", dtype=weight.dtype)
        if pair is None:
            return new.to_empty(device=weight.device)
        new.down.weight = _frozen(pair.down.to(weight.dtype))
        new.up.weight = _frozen(pair.up.to(weight.dtype))
        if bias is not None:
            new.up.bias = _frozen(torch.as_tensor(bias))
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

    def options(self, module: nn.Module, dtype: str, ranks: Iterable[int]) -> list[Option]:
        (m, n) = self.matrix(module).shape
        return [_option.dense(m, n, False, dtype)]

    def factored(self, module: nn.Module, option: Option, pair: Pair | None) -> nn.Module:
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


def placeholder(module: nn.Module, option: Option) -> nn.Module:
    """Return the layer of `option` in the place of `module`, values unset: what a saved model is read into."""
    kind = layer_type(module)
    assert kind is not None
    return kind.factored(module, option, None)


def _frozen(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
