"""Products of a matrix in compressed sparse rows with blocks of columns: in C on Python's threads, or by SciPy."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from eckart import _kernels

__all__ = ["CompressedRows", "form", "threads"]

Array: TypeAlias = np.ndarray[Any, Any]
Rows: TypeAlias = tuple[int, int]  # the first, and the one after the last
Kernel: TypeAlias = Callable[[int, Array, Array, Rows], None]  # width, packed block, block Y, rows of A
Form: TypeAlias = Literal["canonical", "unordered", "broken"]

LINE = 64  # bytes of a cache line
WIDTHS = {"float32": (8, 16, 32, 48, 64), "float64": (8, 16, 24, 32)}  # csr.c has the same
SMALL = 1 << 21  # multiplications: a product of fewer takes one thread about as long as handing it to two, 0.2 ms
CUTS = 4  # pieces of a product for each thread, so that a thread that is held up keeps the others waiting less
ACCUMULATED = 64  # entries for each row of a further accumulator of Aᵀ Y; clearing and adding the row costs about 10
MOST_ACCUMULATORS = 16

_SHORT = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i64"}
_CHECK = (*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 2)
_PRODUCT = (*[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 5, ctypes.c_int64)
_FORMS: tuple[Form, ...] = ("canonical", "unordered", "broken")  # by the number that csr.c returns


@dataclass(frozen=True, slots=True, eq=False)
class CompressedRows:
    """A sparse m x n matrix A whose products have the same bits for any number of threads.

    indptr (m + 1,) and indices (nnz,): int32 or int64, both the same. values (nnz,): float32 or float64. All three in
    one aligned run of memory; they are neither copied nor changed. `form` must have found them canonical.

    A X is split by rows. Aᵀ Y adds each row of Y to where the indices point, so that each thread needs an accumulator:
    which rows share one, and the order in which these are added up, depend on the matrix alone.
    """

    shape: tuple[int, int]
    indptr: Array
    indices: Array
    values: Array
    _accumulated: tuple[Rows, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = 1
        while (2 * count - 1) * self.shape[1] * ACCUMULATED <= self.stored and count < MOST_ACCUMULATORS:
            count *= 2
        object.__setattr__(self, "_accumulated", self._cut(count))

    @property
    def stored(self) -> int:
        return int(self.indptr[-1])

    def matmat(self, X: Array) -> Array:
        """Return A X, (m, p), row-major, computed in the wider type of the two. X: (n, p), real, any strides."""
        X = self._block(X, rows=self.shape[1])
        if (gather := self._kernel("gather", X.dtype)) is None:
            return np.ascontiguousarray(self.scipy() @ X)
        workers = self._workers(X)
        pieces = self._cut(CUTS * workers if workers > 1 else 1)
        Y = _empty((self.shape[0], X.shape[1]), X.dtype)
        for columns, width in _tiles(X):
            packed, out = _packed(X[:, columns], width), Y[:, columns]
            tile = out if out.shape[1] == width else _empty((len(Y), width), Y.dtype)
            _each(functools.partial(gather, width, packed, tile), pieces, workers)
            if tile is not out:
                out[...] = tile[:, : out.shape[1]]
        return Y

    def rmatmat(self, Y: Array) -> Array:
        """Return Aᵀ Y, (n, p), row-major, computed in the wider type of the two. Y: (m, p), real, any strides."""
        Y = self._block(Y, rows=self.shape[0])
        if (scatter := self._kernel("scatter", Y.dtype)) is None:
            return np.ascontiguousarray(self.scipy().T @ Y)
        Z = _empty((self.shape[1], Y.shape[1]), Y.dtype)
        workers = self._workers(Y)
        # Where a second accumulator would cost more than it saves, each thread takes some of the columns.
        across, within = (workers, 1) if len(self._accumulated) == 1 else (1, workers)
        _each(functools.partial(self._scatter, scatter, Y, Z, within), [*_tiles(Y, across)], across)
        return Z

    def _scatter(self, scatter: Kernel, Y: Array, Z: Array, workers: int, tile: tuple[slice, int]) -> None:
        """Set the columns of a tile of Z."""
        columns, width = tile
        first = Z if width == Z.shape[1] else _empty((len(Z), width), Z.dtype)
        sums = [first, *(_empty(first.shape, Z.dtype) for _ in self._accumulated[1:])]
        add = functools.partial(_add, scatter, width, _padded(Y[:, columns], width))
        _each(add, [*zip(sums, self._accumulated, strict=True)], workers)
        if len(sums) > 1:
            _each(functools.partial(_total, sums), _even(len(Z), workers), workers)
        if first is not Z:
            Z[:, columns] = first[:, : columns.stop - columns.start]

    def scipy(self) -> Any:
        """Return the same matrix as a scipy.sparse.csr_array that shares its memory."""
        import scipy.sparse

        return scipy.sparse.csr_array((self.values, self.indices, self.indptr), shape=self.shape, copy=False)

    def _block(self, X: Array, rows: int) -> Array:
        """Return a block in the type of the product. The kernels trust its shape, so it is checked here."""
        if X.ndim != 2 or X.shape[0] != rows:
            raise ValueError(
                f"the product of a {self.shape[0]} x {self.shape[1]} matrix takes {rows} rows, not {X.shape}"
            )
        single = np.result_type(X.dtype, self.values.dtype) == np.float32
        return X.astype(np.float32 if single else np.float64, copy=False)

    def _kernel(self, name: Literal["gather", "scatter"], dtype: Any) -> Kernel | None:
        """Return a product of csr.c with this matrix, None where SciPy does the work."""
        kinds = (self.values.dtype.name, dtype.name, self.indices.dtype.name)
        function = _product(f"eckart_csr_{name}_{'_'.join(_SHORT[kind] for kind in kinds)}")
        if function is None:
            return None
        indptr, indices, values = (a.ctypes.data for a in (self.indptr, self.indices, self.values))

        # The arrays are arguments, not addresses: a thread that outlives an interrupted caller must not lose them.
        def call(width: int, packed: Array, Y: Array, rows: Rows) -> None:
            ld = Y.strides[0] // Y.itemsize
            function(width, *rows, self.stored, indptr, indices, values, packed.ctypes.data, Y.ctypes.data, ld)

        return call

    def _workers(self, X: Array) -> int:
        return 1 if self.stored * X.shape[1] < SMALL else threads()

    def _cut(self, count: int) -> tuple[Rows, ...]:
        """Return count ranges of rows, some of them empty maybe, with about as many entries each."""
        shares = [self.stored * i // count for i in range(1, count)]
        borders = [0, *np.searchsorted(self.indptr[:-1], np.array(shares, self.indptr.dtype)).tolist(), self.shape[0]]
        return tuple(itertools.pairwise(borders))


def form(shape: tuple[int, int], indptr: Array, indices: Array) -> Form:
    """Return whether indices ascend in each row without duplicates, do not, or point outside the matrix.

    indptr (m + 1,), indices: int32 or int64, both the same, each in one aligned run of memory.
    """
    if indptr.size != shape[0] + 1:
        return "broken"
    if (library := _kernels._library()[0]) is not None:
        check = _bound(library, f"eckart_csr_check_{_SHORT[indices.dtype.name]}", _CHECK, ctypes.c_int32)
        return _FORMS[int(check(*shape, indices.size, indptr.ctypes.data, indices.ctypes.data))]
    if indptr[0] != 0 or indptr[-1] > indices.size or np.any(indptr[1:] < indptr[:-1]):
        return "broken"
    indices = indices[: indptr[-1]]
    if indices.size and (indices.min() < 0 or indices.max() >= shape[1]):
        return "broken"
    descents = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
    return "canonical" if np.isin(descents, indptr).all() else "unordered"


def threads() -> int:
    """Return how many threads a large product may use: OMP_NUM_THREADS, or the processors this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tiles(X: Array, count: int = 1) -> Iterator[tuple[slice, int]]:
    """Yield the columns of X that are multiplied together, in about count tiles or more, and the width that serves.

    The last tile begins earlier rather than being wider than its columns, where there are columns before it: those come
    out the same twice, since no sum depends on the width.
    """
    widths, p = WIDTHS[X.dtype.name], X.shape[1]
    widest = next((width for width in widths if count * width >= p), widths[-1])
    for start in range(0, p, widest):
        stop = min(start + widest, p)
        width = next(width for width in widths if width >= stop - start)
        yield slice(max(stop - width, 0), stop), width


def _packed(X: Array, width: int) -> Array:
    """Return X with zeros on its right up to the width, row-major, no row across more cache lines than it fills."""
    if X.shape[1] == width and X.flags.c_contiguous and X.ctypes.data % min(LINE, width * X.itemsize) == 0:
        return X
    packed = _empty((len(X), width), X.dtype)
    packed[:, : X.shape[1]] = X
    packed[:, X.shape[1] :] = 0
    return packed


def _padded(Y: Array, width: int) -> Array:
    """Return Y with zeros on its right up to the width, each row in one run of memory."""
    in_runs = Y.strides[1] == Y.itemsize and Y.strides[0] % Y.itemsize == 0 and Y.flags.aligned
    return Y if Y.shape[1] == width and in_runs else _packed(Y, width)


def _empty(shape: tuple[int, int], dtype: Any) -> Array:
    """Return an array that begins at a cache line: NumPy's would begin 16 bytes after one."""
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    aligned: Array = memory[start : start + size].view(dtype).reshape(shape)
    return aligned


def _add(scatter: Kernel, width: int, tile: Array, task: tuple[Array, Rows]) -> None:
    into, rows = task
    into.fill(0)
    scatter(width, into, tile, rows)


def _total(sums: Sequence[Array], rows: Rows) -> None:
    part = slice(*rows)
    for other in sums[1:]:
        sums[0][part] += other[part]


def _even(size: int, count: int) -> list[Rows]:
    borders = [size * i // count for i in range(count + 1)]
    return list(itertools.pairwise(borders))


def _each(work: Callable[[Any], None], tasks: Sequence[Any], workers: int) -> None:
    """Do every task, in this thread or in several: the C code and NumPy's sums do not hold the GIL."""
    if workers == 1 or len(tasks) == 1:
        for task in tasks:
            work(task)
    else:
        for _ in _pool(workers).map(work, tasks):
            pass


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="eckart")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # the child has none of its parent's threads


def _product(name: str) -> Any:
    """Return a product of csr.c for this processor, None where there is none."""
    library = _kernels._library()[0]
    level = 0 if library is None else _level(library)
    return _bound(library, f"{name}_{level}", _PRODUCT, None) if level else None


def _level(library: ctypes.CDLL) -> int:
    """Return which of the instruction sets that csr.c is compiled for this processor has, 0 for none."""
    return int(_bound(library, "eckart_csr_level", (), ctypes.c_int32)())


@functools.cache
def _bound(library: ctypes.CDLL, name: str, arguments: tuple[Any, ...], result: Any) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, result
    return function
