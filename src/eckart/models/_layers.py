"""The layer types that can be factorised. One class each; adding one touches nothing else.

A layer type tells which matrix it multiplies by, what its input rows are, what it can become and how that is built:
`matrix(module)`, `inputs(module, args)`, `options(module, dtype, ranks)`, `factored(module, option, factors)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import nn

from eckart import _registry
from eckart._factorise import Pair, RowGroups
from eckart.models import _option
from eckart.models._factored_layers import FactoredLayer, FactorPair, Int8Linear, PivotingFactorization, frozen
from eckart.models._option import Option
from eckart.models._shared import SharedPair
from eckart.models._table import FactoredHead, empty_table, scale_of

__all__ = ["Embedding", "Factors", "LayerType", "layer_type", "placeholder", "shape_of"]


Factors = Pair | RowGroups | torch.Tensor  # the matrix itself, for a layer that is stored whole


class LayerType(Protocol):
    """The four questions that compression asks of a layer."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        """Return W, (m, n), of y = W x (+ b): a view, whatever way round the layer stores it."""

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        """Return the rows x, (tokens, n), of a call with these arguments."""

    def options(self, module: nn.Module, dtype: str, ranks: Mapping[str, Iterable[Any]]) -> list[Option]:
        """Return dense first, then what the layer can become in each format at each of its `ranks`."""

    def factored(self, module: nn.Module, option: Option, factors: Factors | None, device: Any = None) -> nn.Module:
        """Return a module that does the layer's work as `option` says, which is the layer itself where it stays whole
        and floating-point; without factors, a new one's values are still unset, on the layer's device or the one given.
        """

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        """Give the layer itself the weight W, (m, n)."""


_FACTORED: dict[str, Callable[..., FactoredLayer]] = {
    "pair": FactorPair,
    "shared": SharedPair,
    "pifa": PivotingFactorization,
    "folded": partial(PivotingFactorization, folded=True),
}


def _in_place_of(
    module: nn.Module, new: FactoredLayer, factors: Factors | None, device: Any, home: torch.device
) -> nn.Module:
    """Return a new layer, made on "meta", with its values; without factors it is unset, on `device` or at home."""
    if factors is None:
        return new.to_empty(device=device or home)
    new.fill_(factors, cast("torch.Tensor | None", getattr(module, "bias", None)))
    return new.to(home).train(module.training)


class _Matmul:
    """What Linear and Conv1D share: a matrix product over the last axis, and factors in its place."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        raise NotImplementedError

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        x: torch.Tensor = args[0]
        return x.reshape(-1, x.shape[-1])

    def options(self, module: nn.Module, dtype: str, ranks: Mapping[str, Iterable[Any]]) -> list[Option]:
        (m, n), bias = self.matrix(module).shape, module.bias is not None
        less = [
            _option.grouped(m, n, bias, dtype, k) if form == "grouped" else _option.factored(form, m, n, bias, dtype, k)
            for form, some in ranks.items()
            for k in some
        ]
        return [_option.dense(m, n, bias, dtype), *less]

    def factored(self, module: nn.Module, option: Option, factors: Factors | None, device: Any = None) -> nn.Module:
        if not option.replaces:
            return module
        weight, (m, n) = self.matrix(module), self.matrix(module).shape
        where: dict[str, Any] = {"bias": module.bias is not None, "device": "meta", "dtype": weight.dtype}
        new: FactoredLayer
        if option.format == "dense":
            new = Int8Linear(n, m, **where)
        elif option.format == "grouped":
            new = FactoredHead(m, n, option.ranks, int8=option.dtype == "int8", **where)
        else:
            (k,) = option.ranks
            form = "pair" if option.format == "shared" and not option.down_of else option.format
            new = _FACTORED[form](m, n, k, int8=option.dtype == "int8", **where)
        return _in_place_of(module, new, factors, device, weight.device)


class Linear(_Matmul):
    """torch.nn.Linear: y = x Wᵀ + b."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        assert isinstance(module, nn.Linear)
        return module.weight

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        module.weight = frozen(weight.to(self.matrix(module)))


class Conv1D(_Matmul):
    """GPT-2's linear layer, which stores the transpose: y = x W + b."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.T

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        module.weight = frozen(weight.T.to(self.matrix(module)))


class Embedding:
    """torch.nn.Embedding: a table of rows, which a tied head multiplies by as well."""

    def matrix(self, module: nn.Module) -> torch.Tensor:
        assert isinstance(module, nn.Embedding)
        return module.weight

    def inputs(self, module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
        raise NotImplementedError("an embedding reads indices, which have no Gram matrix")

    def options(self, module: nn.Module, dtype: str, ranks: Mapping[str, Iterable[Any]]) -> list[Option]:
        (m, n) = self.matrix(module).shape
        less = [_option.grouped(m, n, False, dtype, some) for some in ranks.get("grouped", ())]
        return [_option.dense(m, n, False, dtype), *less]

    def factored(self, module: nn.Module, option: Option, factors: Factors | None, device: Any = None) -> nn.Module:
        if not option.replaces:
            return module
        weight, (rows, columns) = self.matrix(module), self.matrix(module).shape
        new = empty_table(rows, columns, option, scale=scale_of(module) or 1.0, device="meta", dtype=weight.dtype)
        return _in_place_of(module, new, factors, device, weight.device)

    def assign_(self, module: nn.Module, weight: torch.Tensor) -> None:
        module.weight = frozen(weight.to(self.matrix(module)))


_AS_LINEAR = ("FalconLinear",)  # subclasses whose own `forward` is the same product; a router's returns more

_TYPES: _registry.Registry[LayerType] = _registry.Registry()
_TYPES.claim("torch.nn.modules.linear.Linear")(Linear())
_TYPES.claim("transformers.pytorch_utils.Conv1D")(Conv1D())
_TYPES.claim("torch.nn.modules.sparse.Embedding")(Embedding())


def layer_type(module: nn.Module) -> LayerType | None:
    """Return how to treat this module, or None when it is not a layer that can be factorised."""
    own = isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    return None if own and type(module).__name__ not in _AS_LINEAR else _TYPES.find(module)


def shape_of(module: nn.Module) -> tuple[int, int, bool]:
    """Return (rows, columns, bias) of a layer that can be factorised, or is."""
    if isinstance(module, FactoredLayer):
        return module.out_features, module.in_features, module.has_bias
    kind = layer_type(module)
    assert kind is not None
    rows, columns = kind.matrix(module).shape
    return rows, columns, getattr(module, "bias", None) is not None


def placeholder(module: nn.Module, option: Option, device: Any = None) -> nn.Module:
    """Return the layer of `option` in the place of `module`, values unset: what a saved model is read into.

    device: that of the layer where None; "meta" for names and shapes alone.
    """
    kind = layer_type(module)
    assert kind is not None
    return kind.factored(module, option, None, device)
