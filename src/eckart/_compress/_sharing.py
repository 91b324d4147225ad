"""Layers of the same type in adjacent blocks that get one `down` between them: the factor pair of their stack.

With inputs x_1, x_2 of two layers W_1, W_2 the stack [W_1; W_2] is truncated in the metric E[x_1 x_1ᵀ] + E[x_2 x_2ᵀ]:
`down` is common to both, and each has its own rows of `up`.

Source: Basis Sharing (Wang et al., ICLR 2025), which shares the types that read the residual stream, two blocks at a
time, and the same fraction of the numbers of every stack.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING

from eckart._factorise import Pair
from eckart.errors import UsageError
from eckart.models._option import Option, dense, shared

if TYPE_CHECKING:
    from eckart._factorise import Cut, Spectrum
    from eckart.models._model import Layer

__all__ = ["Stacks", "StoredMember", "stacks_in", "stacks_of"]

BLOCKS = 2  # that share


@dataclass(frozen=True)
class Stacks:
    """members: by the name of the layer that stores `down`, the layers of its stack, itself first."""

    members: Mapping[str, Sequence[Layer]]

    def owner(self, name: str) -> str:
        """Return the layer that stores the `down` of this one, "" where none is shared."""
        return next((first for first, some in self.members.items() if name in [one.name for one in some]), "")

    def rest(self) -> set[str]:
        """Return the layers whose options follow from those of another."""
        return {one.name for some in self.members.values() for one in some[1:]}

    def as_one(self, layer: Layer) -> Layer:
        """Return a stack as the layer that it is in a choice of ranks; another layer as it is."""
        rows = sum(one.rows for one in self.members.get(layer.name, [layer]))
        return replace(layer, rows=rows)

    def spread(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """Return the options of all layers, given those of stacks under their first layers' names."""
        found = dict(options)
        for name, some in self.members.items():
            if name in options:
                ranks, dtype = options[name].ranks, options[name].dtype
                for one in some:
                    shape, owner = (one.rows, one.columns, one.bias, dtype), "" if one.name == name else name
                    found[one.name] = shared(*shape, ranks[0], owner) if ranks else dense(*shape)
        return found

    def cuts(self, cuts: Mapping[str, Cut]) -> dict[str, Cut]:
        """Return the truncation of every layer, given those of stacks under their first layers' names."""
        found = dict(cuts)
        for name, some in self.members.items():
            start = 0
            for one in some:
                found[one.name] = StoredMember(cuts[name], slice(start, start + one.rows), one.name == name)
                start += one.rows
        return found


@dataclass(frozen=True)
class StoredMember:
    """One layer's part of the truncation of a stack. first: whether what the stack loses is counted here."""

    stack: Cut
    rows: slice
    first: bool

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        return self.stack.parts(form, ranks) if self.first else []

    def factors(self, ranks: Sequence[int]) -> Pair:
        pair = self.stack.factors(ranks)
        assert isinstance(pair, Pair)
        return replace(pair, up=pair.up[self.rows])


def stacks_in(layers: Mapping[str, Layer], names: Sequence[str], blocks: Sequence[str]) -> Stacks:
    """Return the stacks of those of these layers whose type models/groups.toml says to share, in pairs of blocks."""
    leaves = tomllib.loads(resources.files("eckart.models").joinpath("groups.toml").read_text())["shared_basis"]
    members = {}
    for i in range(0, len(blocks) - BLOCKS + 1, BLOCKS):
        for name in names:
            block, rest = blocks[i] + ".", name.removeprefix(blocks[i] + ".")
            others = [f"{blocks[j]}.{rest}" for j in range(i + 1, i + BLOCKS)]
            if name.startswith(block) and rest.rpartition(".")[2] in leaves and set(others) <= set(names):
                some = [layers[one] for one in (name, *others)]
                if len({(one.rows, one.columns, one.bias) for one in some}) == 1:
                    members[name] = some
    return Stacks(members)


def stacks_of(options: Mapping[str, Option], layers: Mapping[str, Layer]) -> Stacks:
    """Return the stacks that the options of a plan describe; UsageError where they do not fit together."""
    members: dict[str, list[Layer]] = {
        name: [layers[name]] for name, o in options.items() if o.format == "shared" and not o.down_of
    }
    for name, option in options.items():
        if option.down_of:
            owner, first = options.get(option.down_of), layers.get(option.down_of)
            if option.down_of not in members or not owner or not first:
                raise UsageError(f"{name} is to use the factor of {option.down_of!r}, which the plan does not share")
            if owner.ranks != option.ranks or first.columns != layers[name].columns:
                raise UsageError(f"{name} and {option.down_of} cannot share: their ranks or columns differ in the plan")
            members[option.down_of].append(layers[name])
    return Stacks(members)
