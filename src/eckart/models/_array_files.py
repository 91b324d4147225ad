"""Arrays for calibration from .npy and .npz files, read so that nothing in them is executed or blown up."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from eckart._decomposed import MALFORMED
from eckart.errors import InputError
from eckart.models._network import Batch
from eckart.models._sizes import format_size
from eckart.models._untrusted import open_file

__all__ = ["EXAMPLES", "SUFFIXES", "batches_of"]

SUFFIXES = (".npy", ".npz")
EXAMPLES = 32  # of a batch, at most
MOST_EXPANDED = 50  # times its file; arrays of measurements are compressed about twofold, and deflate reaches 1032
ALWAYS_ALLOWED = 1 << 26  # bytes, whatever the file's size

FIX = "write it with numpy.save(FILE, x) or numpy.savez(FILE, input_name=x, …), the examples along the first axis"


def batches_of(path: Path) -> Iterator[Batch]:
    """Iterate over what a file holds in batches of at most EXAMPLES along the first axis: of a .npy file arrays, of a
    .npz file a dict by name, or a tuple in order where NumPy chose the names (arr_0, …).

    InputError: no such file, pickles, arrays of different lengths, or a file that is damaged or expands beyond reason.
    """
    try:
        arrays = _read(path)
    except InputError:  # a ValueError as well
        raise
    except MemoryError as error:
        raise InputError(f"{path} holds more than fits into memory", file=str(path), code="E-memory") from error
    except MALFORMED as error:
        raise InputError(f"{path} holds no arrays", why=str(error), fix=FIX, file=str(path), code="E-data") from error
    lengths = {len(one) if one.ndim else 0 for one in arrays.values()}
    if len(lengths) != 1 or not (count := max(lengths)):
        raise InputError(
            f"{path} holds arrays of {', '.join(map(str, sorted(lengths))) or 'no'} examples",
            fix=FIX, file=str(path), code="E-data",
        )  # fmt: skip
    in_order = [f"arr_{i}" for i in range(len(arrays))]
    for start in range(0, count, EXAMPLES):
        some = {name: one[start : start + EXAMPLES] for name, one in arrays.items()}
        if sorted(some) == sorted(in_order):
            yield some["arr_0"] if len(some) == 1 else tuple(some[name] for name in in_order)
        else:
            yield some


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with open_file(path) as (file, size):
        if path.suffix.lower() == ".npy":
            return {"arr_0": _array(file, size)}
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_expansion(path, members, size)
            found = {}
            for one in members:
                if not one.filename.endswith(".npy"):
                    raise ValueError(f"{one.filename[:80]!r} in it is no array")
                with archive.open(one) as inner:
                    found[one.filename.removesuffix(".npy")] = _array(inner, one.file_size)
            return found


def _check_expansion(path: Path, members: Sequence[zipfile.ZipInfo], size: int) -> None:
    whole = sum(one.file_size for one in members)
    if whole > max(ALWAYS_ALLOWED, MOST_EXPANDED * size):
        raise InputError(
            f"{path} is {format_size(size)} and would become {format_size(whole)} of arrays; it was not unpacked",
            why="so much expansion is a trap, or data that are nearly all the same",
            fix="numpy.savez, which does not compress",
            file=str(path),
            code="E-size",
        )


def _array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """Return the array in a .npy file of so many bytes; ValueError: it is none, or holds Python objects."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format holds records")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype} is refused: only numbers are read, and no pickles")
    needed = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed > size:
        raise ValueError(f"an array of shape {shape} takes {needed:,} bytes, and there are {size:,}")
    data = file.read(needed)
    if len(data) < needed:
        raise EOFError("it was cut short")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if by_columns else "C")
