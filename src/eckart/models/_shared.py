"""Factor pairs that share their `down`: one layer stores it, others multiply by it as well.

Sources: Basis Sharing (Wang et al., ICLR 2025), across blocks; across layers that read one input it is the factor pair
of their stacked matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from eckart._factorise import Pair
from eckart.errors import InputError
from eckart.models._factored_layers import FactoredLayer, FactorPair, linear, permute_, set_

__all__ = ["SharedPair", "share_downs_"]


class SharedPair(FactoredLayer):
    """y = up(down(x)) with the `down` of another layer, a FactorPair, which alone stores it: k m numbers."""

    def __init__(self, rows: int, columns: int, k: int, bias: bool, *, int8: bool = False, **where: Any) -> None:
        super().__init__(rows, columns)
        self.up = linear(k, rows, bias=bias, int8=int8, **where)
        self.owners: tuple[FactorPair, ...] = ()  # one, in a tuple so that its tensors are not this one's as well

    def share_(self, owner: FactorPair) -> None:
        """Multiply by the `down` of `owner` from now on."""
        self.owners = (owner,)

    @property
    def down(self) -> torch.Tensor:
        """The other layer's factor, (k, n)."""
        return self.owners[0].down.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Where one block at a time is on the device, the owner's may be elsewhere.
        y: torch.Tensor = self.up(functional.linear(x, self.down.to(x.device)))
        return y

    @property
    def weight(self) -> torch.Tensor:
        return self.up.weight @ self.down

    @property
    def has_bias(self) -> bool:
        return self.up.bias is not None

    def fill_(self, factors: Pair, bias: torch.Tensor | None) -> None:
        """Take `up` and the bias; `down` is what the owner has."""
        set_(self.up, factors.up, bias)

    def reorder_(self, axis: int, places: torch.Tensor) -> None:
        if axis == 1:
            raise ValueError("the columns are those of a factor that other layers use as well")
        permute_(self.up, 0, places)


def share_downs_(module: nn.Module, owners: Mapping[str, str]) -> None:
    """Give the shared pairs of a model, by name, the layers whose `down` they use; InputError where these do not fit.

    Names are those within `module`.
    """
    there = dict(module.named_modules())
    for name, owner in owners.items():
        shared, found = there[name], there.get(owner)
        assert isinstance(shared, SharedPair)
        if not isinstance(found, FactorPair) or found.down.weight.shape != (shared.up.in_features, shared.in_features):
            raise InputError(
                f"{name} is to use the factor of {owner!r}, which has none of shape "
                f"{shared.up.in_features} x {shared.in_features}",
                fix='the other layer as "shared", of the same rank and with as many columns',
            )
        shared.share_(found)
