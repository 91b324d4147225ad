"""What a layer can become: one entry of a plan, and the form in which a saved model remembers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eckart.errors import InputError, RankError
from eckart.models._kernel import Kernel, stages

__all__ = [
    "DTYPES",
    "DTYPE_BYTES",
    "Option",
    "dense",
    "factored",
    "folded",
    "group_bytes",
    "group_sizes",
    "grouped",
    "largest_useful_rank",
    "of_stages",
    "pair",
    "pifa",
    "read_option",
    "shared",
]

OPTION_VERSION = 1

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # what may stay can be stored in these
DTYPES = (*DTYPE_BYTES, "int8")  # and a matrix in these

INDEX_BYTES = 4  # of an entry of a permutation
SCALE_BYTES = 4  # of a row's scale beside int8, and of a bias there: float32

RANK_STEP = 8  # ranks on offer are its multiples; matrix products of other sizes waste part of a vector register
GROUPS = 6  # of the rows of a table: half of them in the last, a quarter in the one before, and so on


@dataclass(frozen=True)
class Option:
    """One way of storing a layer.

    format: "dense"; "pair" for W ≈ up @ down; "shared" for a pair whose `down` other layers use as well, or, where
    `down_of` names a layer, one that uses that layer's, which alone stores and counts it; "pifa" for k of W_k's own
    rows and the others as combinations of these; "folded" for the same without the order of the rows, which the layers
    that read its outputs follow instead; "grouped" for the rows of a table, the frequent ones first, in groups that
    each have a factor pair; of a convolution, chains of smaller ones: "pair", "spatial" and "tucker", as
    models/_kernel.py states them. ranks: (), (k,), (r, q) of "tucker", or one for each group, that of all columns for
    a group that stays dense. dtype: of its numbers; with "int8", every matrix that is stored has a float32 scale for
    each of its rows, and the bias is float32. params: numbers stored, bias, scales and permutation included. bytes:
    what they take as tensor data. flops: multiply-adds a token, where the matrix is multiplied by and not looked up in.
    """

    format: str
    ranks: tuple[int, ...]
    dtype: str
    params: int
    bytes: int
    flops: int
    down_of: str = ""

    @property
    def replaces(self) -> bool:
        """Whether another module takes the layer's place: where it does not, only the type in the file may change."""
        return self.format != "dense" or self.dtype == "int8"

    def stored_as(self, dtype: str, rows: int, columns: int, bias: bool) -> Option:
        """Return this option of a (rows, columns) layer in another type."""
        return read_option({**self.to_json(), "dtype": dtype}, rows, columns, bias)

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the option; the counts follow from it and from the layer's shape."""
        owner = {"down_of": self.down_of} if self.down_of else {}
        return {
            "version": OPTION_VERSION,
            "format": self.format,
            "ranks": list(self.ranks),
            "dtype": self.dtype,
            **owner,
        }


Shapes = Sequence[tuple[int, int]]


def _stored(matrices: Shapes, bias: int, dtype: str) -> tuple[int, int]:
    """Return (numbers, bytes) of matrices of these shapes and a bias of so many numbers."""
    numbers = sum(rows * columns for rows, columns in matrices)
    if dtype != "int8":
        return numbers + bias, (numbers + bias) * DTYPE_BYTES[dtype]
    scales = sum(rows for rows, _ in matrices)
    return numbers + scales + bias, numbers + (scales + bias) * SCALE_BYTES


def dense(rows: int, columns: int, bias: bool, dtype: str) -> Option:
    """Return the option that stores a (rows, columns) layer as the matrix that it is."""
    return Option("dense", (), dtype, *_stored([(rows, columns)], rows * bias, dtype), rows * columns)


def pair(rows: int, columns: int, bias: bool, dtype: str, k: int) -> Option:
    """Return the option that stores a (rows, columns) layer as a factor pair of rank k; RankError outside 1 … min."""
    _check_rank(rows, columns, k)
    return Option("pair", (k,), dtype, *_stored([(k, columns), (rows, k)], rows * bias, dtype), k * (rows + columns))


def shared(rows: int, columns: int, bias: bool, dtype: str, k: int, down_of: str = "") -> Option:
    """Return the option of one of several layers that share the `down` of a factor pair; RankError outside 1 … columns.

    down_of: name of the layer that stores `down`, of the same rank and columns; "" for that layer itself.
    """
    if not 1 <= k <= columns:
        raise RankError(f"rank {k} asked of layers with {columns} columns", fix=f"choose a rank from 1 to {columns}")
    matrices = [(rows, k)] if down_of else [(k, columns), (rows, k)]
    return Option("shared", (k,), dtype, *_stored(matrices, rows * bias, dtype), k * (rows + columns), down_of)


def pifa(rows: int, columns: int, bias: bool, dtype: str, k: int) -> Option:
    """Return the option that stores a (rows, columns) layer of rank k by pivoting; RankError outside 1 … min.

    That is k of its rows, the coefficients of the others, and the order of all (PIFA: Zhao et al., ICML 2025).
    """
    _check_rank(rows, columns, k)
    params, size = _stored([(k, columns), (rows - k, k)], rows * bias, dtype)
    return Option("pifa", (k,), dtype, params + rows, size + rows * INDEX_BYTES, k * (rows + columns - k))


def folded(rows: int, columns: int, bias: bool, dtype: str, k: int) -> Option:
    """Return `pifa` without the order, which need not be stored where others can follow that of this layer's rows."""
    _check_rank(rows, columns, k)
    stored = _stored([(k, columns), (rows - k, k)], rows * bias, dtype)
    return Option("folded", (k,), dtype, *stored, k * (rows + columns - k))


def group_sizes(rows: int) -> list[int]:
    """Return how many rows are in each group of a table: as many as in all before it together, rounding aside."""
    ends = sorted({rows >> shift for shift in range(GROUPS)} - {0})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def grouped(rows: int, columns: int, bias: bool, dtype: str, ranks: Sequence[int]) -> Option:
    """Return the option that stores a (rows, columns) table by groups of its rows; RankError outside 1 … columns.

    Source: GroupReduce (Chen et al., NeurIPS 2018).
    """
    sizes = group_sizes(rows)
    if len(ranks) != len(sizes) or not all(1 <= k <= columns for k in ranks):
        raise RankError(
            f"ranks {list(ranks)} asked of a {rows} x {columns} table, which has {len(sizes)} groups of rows",
            fix=f"{len(sizes)} ranks from 1 to {columns}",
        )
    matrices = [shape for size, k in zip(sizes, ranks, strict=True) for shape in _of_group(size, columns, k)]
    params, stored = _stored(matrices, rows * bias, dtype)
    return Option(
        "grouped", tuple(ranks), dtype, params + rows, stored + rows * INDEX_BYTES, sum(m * n for m, n in matrices)
    )


def of_stages(form: str, ranks: Sequence[int], dtype: str, stages: Sequence[Kernel]) -> Option:
    """Return the option that stores a layer as a chain of kernels; flops: of one place where strides are 1."""
    numbers = sum(stage.numbers for stage in stages)
    products = sum(math.prod(stage.shape) for stage in stages)
    return Option(form, tuple(ranks), dtype, numbers, numbers * DTYPE_BYTES[dtype], products)


def group_bytes(size: int, columns: int, dtype: str, k: int) -> int:
    """Return what one group of a table's rows takes at rank k, that of all columns for a group that stays dense."""
    return _stored(_of_group(size, columns, k), 0, dtype)[1]


def _of_group(size: int, columns: int, k: int) -> Shapes:
    return [(size, columns)] if k == columns else [(size, k), (k, columns)]


_FORMATS: dict[str, Callable[[int, int, bool, str, int], Option]] = {"pair": pair, "pifa": pifa, "folded": folded}


def factored(form: str, rows: int, columns: int, bias: bool, dtype: str, k: int) -> Option:
    """Return the option of this format and rank."""
    return _FORMATS[form](rows, columns, bias, dtype, k)


def largest_useful_rank(form: str, rows: int, columns: int) -> int:
    """Return the largest rank at which a format stores fewer numbers than the matrix, 0 where there is none."""
    if form == "pair":  # k (m + n) < m n
        return max(0, -(-rows * columns // (rows + columns)) - 1)
    most, order = min(rows, columns), rows if form == "pifa" else 0  # k(m + n - k) + order < m n
    return next((k for k in range(most, 0, -1) if (rows - k) * (columns - k) > order), 0)


def _check_rank(rows: int, columns: int, k: int) -> None:
    if not 1 <= k <= min(rows, columns):
        raise RankError(
            f"rank {k} asked of a {rows} x {columns} layer, whose rank is from 1 to {min(rows, columns)}",
            fix=f"choose a rank from 1 to {min(rows, columns)}, or 'dense'",
        )


def read_option(value: Any, rows: int, columns: int, bias: bool, kernel: Kernel | None = None) -> Option:
    """Return the option that `to_json` wrote, of a matrix or, where one is given, of a kernel; InputError where it is
    malformed or newer than this version reads.
    """
    if not isinstance(value, dict) or not isinstance(value.get("ranks"), list):
        raise InputError(f"a layer's option must be an object with format, ranks and dtype, not {value!r:.80}")
    if value.get("version") != OPTION_VERSION:
        raise InputError(
            f"the layer option has version {value.get('version')!r}, this Eckart reads version {OPTION_VERSION}",
            fix="pip install --upgrade eckart",
        )
    form, ranks, dtype = value.get("format"), value["ranks"], value.get("dtype")
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r} in a layer option", fix=f"one of {', '.join(DTYPES)}")
    if kernel is not None and dtype in DTYPE_BYTES and all(type(k) is int for k in ranks):
        if form == "dense" and ranks == []:
            return of_stages(form, (), dtype, [kernel])
        try:
            return of_stages(str(form), ranks, dtype, stages(kernel, str(form), ranks))
        except RankError as error:
            raise InputError(f"a layer's option does not fit its kernel: {error}") from error
    if form == "dense" and ranks == []:
        return dense(rows, columns, bias, dtype)
    if form in _FORMATS and len(ranks) == 1 and type(ranks[0]) is int:
        return factored(form, rows, columns, bias, dtype, ranks[0])
    if form == "shared" and len(ranks) == 1 and type(ranks[0]) is int and isinstance(value.get("down_of", ""), str):
        return shared(rows, columns, bias, dtype, ranks[0], value.get("down_of", ""))
    if form == "grouped" and all(type(k) is int for k in ranks):
        return grouped(rows, columns, bias, dtype, ranks)
    known = ", ".join(f'"{name}"' for name in _FORMATS)
    raise InputError(
        f"unknown layer option {form!r} with ranks {ranks!r}",
        fix=f'"dense" with [], {known} with [k], "shared" with [k] and the name "down_of" of a layer, if not its own, '
        'or, for an embedding or a large head, "grouped" with a rank a group',
    )
