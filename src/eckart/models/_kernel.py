"""A layer seen as a convolution, whatever framework it lives in, and the chains of smaller ones that can replace it.

Weights are written as those of a correlation, (out, into, *size): y[o, t] = Σ W[o, c, a] x[c, t stride - before + a
dilation] + b[o]. A transposed convolution is the correlation of its input with stride - 1 zeros put between its
entries; written so, its kernel is flipped and its first two axes are exchanged. A matrix product over the last axis is
a kernel without axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from eckart._arrays import Array
from eckart.errors import InputError, RankError

__all__ = [
    "Kernel",
    "kernel_from_json",
    "largest_ranks",
    "multiplied",
    "patches",
    "stages",
    "useful_forms",
    "weights_of",
]

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Kernel:
    """The shape and the steps of a layer's weights, (out, into, *size), into: channels that each of the groups reads.

    stride, dilation: one each axis. padding: what is added before and after each axis; of a transposed convolution,
    what is cut off its full output there. mode: what is added, "zeros" or as torch names it.
    """

    out: int
    into: int
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: Pads = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    mode: str = "zeros"
    bias: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out, self.into, *self.size

    @property
    def numbers(self) -> int:
        """Return how many numbers are stored, the bias included."""
        return math.prod(self.shape) + self.bias * self.out

    @property
    def columns(self) -> int:
        """Return the entries of a patch that one output reads."""
        return self.into * math.prod(self.size)

    def lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return the lengths of the output along each axis, of an input of these lengths."""
        return tuple(map(self._length, range(len(self.size)), lengths))

    def _length(self, axis: int, n: int) -> int:
        (before, after), reach = self.padding[axis], self.dilation[axis] * (self.size[axis] - 1)
        if self.transposed:
            return (n - 1) * self.stride[axis] + reach + 1 - before - after
        return (n + before + after - reach - 1) // self.stride[axis] + 1

    def multiplications(self, lengths: Sequence[int]) -> int:
        """Return how many there are for one input of these lengths, none for zeros that are put between entries."""
        places = lengths if self.transposed else self.lengths(lengths)
        return math.prod(self.shape) * math.prod(places)

    def alone(self, **changes: Any) -> Kernel:
        """Return the kernel of one position that this one's axes allow: 1 x 1 …, stride 1."""
        ones = (1,) * len(self.size)
        plain = replace(
            self, size=ones, stride=ones, padding=((0, 0),) * len(ones), dilation=ones, transposed=False, mode="zeros"
        )
        return replace(plain, **changes)

    def along(self, axes: range, **changes: Any) -> Kernel:
        """Return a kernel that does on these axes what this one does, and is one position wide on the others."""
        one = self.alone()
        taken: dict[str, Any] = {
            name: tuple(
                getattr(self if axis in axes else one, name)[axis] for axis in range(len(self.size))
            )
            for name in ("size", "stride", "padding", "dilation")
        }  # fmt: skip
        return replace(self, **taken, **changes)


def kernel_from_json(value: Any) -> Kernel:
    """Return the kernel whose fields JSON gives, lists for tuples; InputError: they are none."""
    try:
        axes: dict[str, Any] = {name: tuple(map(int, value[name])) for name in ("size", "stride", "dilation")}
        padding = tuple((int(before), int(after)) for before, after in value["padding"])
        numbers: dict[str, Any] = {name: int(value[name]) for name in ("out", "into", "groups")}
        flags: dict[str, Any] = {name: bool(value[name]) for name in ("transposed", "bias")}
        kernel = Kernel(**axes, **numbers, **flags, padding=padding, mode=str(value["mode"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a layer's kernel is malformed: {value!r:.80}") from error
    if min(kernel.out, kernel.into, kernel.groups, *kernel.size) < 1 or kernel.out % kernel.groups:
        raise InputError(f"a layer's kernel is none: {value!r:.80}")
    return kernel


def useful_forms(kernel: Kernel) -> tuple[str, ...]:
    """Return the formats in which a layer can have fewer numbers: none for one that reads a single channel a group."""
    if kernel.into == 1 or kernel.out == kernel.groups:
        return ()
    if kernel.groups > 1 or math.prod(kernel.size) == 1:
        return ("pair",)
    split = len(kernel.size) > 1 and kernel.size[0] > 1 and math.prod(kernel.size[1:]) > 1
    return ("pair", "spatial", "tucker") if split else ("pair", "tucker")


def stages(kernel: Kernel, form: str, ranks: Sequence[int]) -> tuple[Kernel, ...]:
    """Return the kernels of the chain that stands for one kernel in this format; RankError: no such ranks.

    pair: k filters of the full size a group, and a product. spatial: k filters along the first axis, then what reads
    these along the others. tucker: a product from `into` to r channels, a kernel from r to q, a product from q to
    `out`; where r is `into` or q is `out` the product is left out.
    """
    most = largest_ranks(kernel, form)
    if len(ranks) != len(most) or not all(1 <= k <= m for k, m in zip(ranks, most, strict=True)):
        raise RankError(
            f"ranks {list(ranks)} asked of a {' x '.join(map(str, kernel.shape))} kernel as {form!r}",
            fix="choose them from 1 to " + " and ".join(map(str, most)),
        )
    if form == "pair":
        (k,), g = ranks, kernel.groups
        return replace(kernel, out=g * k, bias=False), kernel.alone(into=k)
    if form == "spatial":
        (k,), axes = ranks, len(kernel.size)
        first = kernel.along(range(1), out=k, bias=False)
        return first, kernel.along(range(1, axes), into=k)
    r, q = ranks
    inner = kernel.alone(out=r, bias=False)
    core = replace(kernel, out=q, into=r, bias=kernel.bias and q == kernel.out)
    outer = kernel.alone(into=q)
    return (*((inner,) if r < kernel.into else ()), core, *((outer,) if q < kernel.out else ()))


def largest_ranks(kernel: Kernel, form: str) -> tuple[int, ...]:
    """Return the ranks at which a format is the kernel itself, to rounding."""
    if form not in useful_forms(kernel):
        raise RankError(f"a {' x '.join(map(str, kernel.shape))} kernel in {kernel.groups} groups has no form {form!r}")
    if form == "pair":
        return (min(kernel.out // kernel.groups, kernel.columns),)
    if form == "spatial":
        return (min(kernel.into * kernel.size[0], kernel.out * math.prod(kernel.size[1:])),)
    return kernel.into, kernel.out


def weights_of(kernel: Kernel, form: str, factors: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the weights of the stages, given the factors of each group: (down, up), or the kernels of the chain.

    Factors of "tucker" are three, of which those whose stage is left out are multiplied into the one in the middle.
    """
    xp = array_namespace(factors[0][0])
    if form == "pair":
        down, up = (xp.concat([group[i] for group in factors]) for i in (0, 1))
        ones = (1,) * len(kernel.size)
        return [down.reshape(-1, kernel.into, *kernel.size), up.reshape(*up.shape, *ones)]
    (chain,) = factors
    if form == "spatial":
        return list(chain)
    inner, core, outer = chain
    q, r, *size = core.shape
    if r == kernel.into:
        core = xp.tensordot(core.reshape(q, r, -1), inner.reshape(r, -1), axes=((1,), (0,)))
        core = xp.permute_dims(core, (0, 2, 1)).reshape(q, kernel.into, *size)
    if q == kernel.out:
        core = (outer.reshape(-1, q) @ core.reshape(q, -1)).reshape(kernel.out, *core.shape[1:])
    return [*([inner] if r < kernel.into else []), core, *([outer] if q < kernel.out else [])]


def multiplied(kernel: Kernel, weights: Sequence[Array]) -> Array:
    """Return the kernel that a chain stands for: at each offset the product of the stages' matrices there."""
    xp, axes = array_namespace(*weights), range(3, 3 + len(kernel.size))
    whole, *rest = (
        xp.permute_dims(w.reshape(kernel.groups, len(w) // kernel.groups, *w.shape[1:]), (0, *axes, 1, 2))
        for w in weights
    )
    for stage in rest:  # (groups, *size, out, into): sizes that are 1 on either side broadcast
        whole = stage @ whole
    last = whole.ndim - 1
    return xp.permute_dims(whole, (0, last - 1, last, *range(1, last - 1))).reshape(kernel.shape)


def patches(x: Array, kernel: Kernel, count: int, draws: np.random.Generator) -> Array:
    """Return what `count` outputs drawn at random (or all, if they are fewer) read: (outputs, groups, columns).

    x: an input, (…, into) of a matrix, (batch, channels, *lengths) or without batch of a convolution.
    """
    xp = array_namespace(x)
    if not kernel.size:
        rows = x.reshape(-1, 1, kernel.into)
        return rows if len(rows) <= count else rows[_placed(x, _drawn(len(rows), count, draws))]
    if x.ndim == len(kernel.size) + 1:
        x = x[None]
    batch, channels, *lengths = x.shape
    whole = (batch, *kernel.lengths(lengths))
    item, *at = np.unravel_index(_drawn(math.prod(whole), count, draws), whole)
    axes = [_read(kernel, axis, n, t) for axis, (n, t) in enumerate(zip(lengths, at, strict=True))]
    index = [item.reshape(-1, *(1 for _ in axes))]
    there = np.ones(1, dtype=bool)
    for axis, (places, inside) in enumerate(axes):
        shape = [len(places), *(1 for _ in axes)]
        shape[1 + axis] = places.shape[1]
        index.append(places.reshape(shape))
        there = there & inside.reshape(shape)
    read = x[(_placed(x, index[0]), slice(None), *(_placed(x, one) for one in index[1:]))]  # (outputs, *size, channels)
    if not there.all():
        read = xp.where(_placed(x, there)[..., None], read, xp.zeros_like(read))
    return xp.permute_dims(read, (0, read.ndim - 1, *range(1, read.ndim - 1))).reshape(
        len(item), kernel.groups, channels // kernel.groups * math.prod(kernel.size)
    )


def _drawn(total: int, count: int, draws: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return places out of `total`, in order, none twice."""
    return np.arange(total) if total <= count else np.sort(draws.choice(total, count, replace=False, shuffle=False))


def _placed(x: Array, index: np.ndarray[Any, Any]) -> Array:
    return array_namespace(x).asarray(index, device=device(x))


def _read(kernel: Kernel, axis: int, n: int, t: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return where outputs t read along one axis of length n, (outputs, size), and which of these places exist."""
    reach, (before, _), stride = kernel.dilation[axis] * (kernel.size[axis] - 1), kernel.padding[axis], 1
    if kernel.transposed:
        before = reach - before
    else:
        stride = kernel.stride[axis]
    places = t[:, None] * stride - before + np.arange(kernel.size[axis]) * kernel.dilation[axis]
    if kernel.transposed:
        apart = kernel.stride[axis]
        inside = (places >= 0) & (places <= (n - 1) * apart) & (places % apart == 0)
        return np.where(inside, places // apart, 0), inside
    inside = (places >= 0) & (places < n)
    if kernel.mode == "zeros":
        return np.where(inside, places, 0), inside
    if kernel.mode == "circular":
        places = places % n
    elif kernel.mode == "reflect":
        places = (n - 1) - np.abs((n - 1) - np.abs(places))
    return np.clip(places, 0, n - 1), np.ones_like(inside)  # "replicate" reads the nearest
