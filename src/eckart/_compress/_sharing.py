"""Layers that get one `down` between them: the factor pair of their stack, of which each has its own rows of `up`.

Across blocks: with inputs x_1, x_2 of two layers W_1, W_2 of the same type in adjacent blocks, the stack [W_1; W_2] is
truncated in the metric E[x_1 x_1ᵀ] + E[x_2 x_2ᵀ]. Within a block, [q; k; v] or [gate; up] read the same input, whose
metric it is; of the outputs' it has the blocks on the diagonal. There a layer has options of its own as well.

Source, across blocks: Basis Sharing (Wang et al., ICLR 2025), which shares the types that read the residual stream, two
blocks at a time, and the same fraction of the numbers of every stack.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import TYPE_CHECKING

from eckart._factorise import Pair
from eckart.errors import UsageError
from eckart.models._option import Option, dense, shared

if TYPE_CHECKING:
    from eckart._factorise import Cut, RowGroups, Spectrum
    from eckart.models._model import Layer

__all__ = ["Stacks", "StoredMember", "as_stack", "stack_of", "stacks_in", "stacks_of", "within_blocks"]

BLOCKS = 2  # that share


@dataclass(frozen=True)
class Stacks:
    """members: by the name of the layer that stores `down`, the layers of a stack across blocks, itself first; they
    are truncated together alone. within: likewise those that read the same input; their stack is truncated besides.
    """

    members: Mapping[str, Sequence[Layer]]
    within: Mapping[str, Sequence[Layer]] = field(default_factory=dict)

    def stacked(self) -> dict[str, list[str]]:
        """Return the layers of every stack within a block, by the name under which it is truncated."""
        return {stack_of(name): [one.name for one in some] for name, some in self.within.items()}

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
                found |= as_stack(some, options[name].dtype, options[name].ranks)
        return found

    def cuts(self, cuts: Mapping[str, Cut]) -> dict[str, Cut]:
        """Return the truncation of every layer, given those of stacks, across blocks under the first layers' names."""
        found = {name: cut for name, cut in cuts.items() if name not in self.stacked()}
        for name, some in self.members.items():
            found |= _parts(cuts[name], some)
        for name, some in self.within.items():
            for one, part in _parts(cuts[stack_of(name)], some).items():
                found[one] = _AloneOrNot(cuts[one], part) if one in cuts else part
        return found


def stack_of(name: str) -> str:
    """Return the name under which the stack within a block is truncated of which this layer is the first."""
    return f"{name}#stack"


def as_stack(members: Sequence[Layer], dtype: str, ranks: Sequence[int]) -> dict[str, Option]:
    """Return the options of layers of which the first stores a `down` of this rank for all; () leaves them dense."""
    owner, found = members[0].name, {}
    for one in members:
        shape = (one.rows, one.columns, one.bias, dtype)
        found[one.name] = shared(*shape, ranks[0], "" if one.name == owner else owner) if ranks else dense(*shape)
    return found


@dataclass(frozen=True)
class StoredMember:
    """One layer's part of the truncation of a stack. first: whether what the stack loses is counted here."""

    stack: Cut
    rows: slice
    first: bool

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        return self.stack.parts(form, ranks) if self.first else []

    def factors(self, form: str, ranks: Sequence[int]) -> Pair:
        pair = self.stack.factors(form, ranks)
        assert isinstance(pair, Pair)
        return replace(pair, up=pair.up[self.rows])


def _parts(stack: Cut, members: Sequence[Layer]) -> dict[str, Cut]:
    found: dict[str, Cut] = {}
    start = 0
    for i, one in enumerate(members):
        found[one.name] = StoredMember(stack, slice(start, start + one.rows), i == 0)
        start += one.rows
    return found


@dataclass(frozen=True)
class _AloneOrNot:
    """A layer that can be cut on its own, or as a part of a stack."""

    alone: Cut
    part: Cut

    def _cut(self, form: str) -> Cut:
        return self.part if form == "shared" else self.alone

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        return self._cut(form).parts(form, ranks)

    def factors(self, form: str, ranks: Sequence[int]) -> Pair | RowGroups:
        return self._cut(form).factors(form, ranks)


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


def within_blocks(layers: Mapping[str, Layer], names: Sequence[str]) -> dict[str, list[Layer]]:
    """Return the stacks, by the name of the first, of those of these layers that read the same input."""
    groups = {group: [layers[one] for one in group if one in names] for group in (layers[name].group for name in names)}
    return {some[0].name: some for some in groups.values() if len(some) > 1}


def stacks_of(options: Mapping[str, Option], layers: Mapping[str, Layer], *, across: bool) -> Stacks:
    """Return the stacks that the options of a plan describe; UsageError where they do not fit together.

    across: whether they are across blocks; else their layers must read the same input.
    """
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
            if not across and name not in first.group:
                raise UsageError(f"{name} and {option.down_of} cannot share: they do not read the same input")
            members[option.down_of].append(layers[name])
    return Stacks(members) if across else Stacks({}, members)
