"""One safetensors file: an 8-byte little-endian length, that many bytes of JSON, then the tensors back to back.

The JSON maps each name to {"dtype", "shape", "data_offsets"}, offsets counted from the end of the header; the entry
"__metadata__" maps strings to strings. Source: the format description of the safetensors package, 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eckart.errors import InputError, UsageError
from eckart.models._sizes import format_size
from eckart.models._untrusted import MAX_JSON_BYTES, TensorInfo, json_object, open_file, truncated

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DTYPES", "array_dtype", "numpy_dtype", "read_array", "read_header", "size_of", "stored_dtype"]


class _Dtype(NamedTuple):
    bits: int
    numpy: str  # its name in NumPy or ml_dtypes; empty where neither can hold it packed


DTYPES = {
    "BOOL": _Dtype(8, "bool"),
    "F4": _Dtype(4, ""),
    "F6_E2M3": _Dtype(6, ""),
    "F6_E3M2": _Dtype(6, ""),
    "U8": _Dtype(8, "uint8"),
    "I8": _Dtype(8, "int8"),
    "F8_E5M2": _Dtype(8, "float8_e5m2"),
    "F8_E4M3": _Dtype(8, "float8_e4m3fn"),
    "F8_E8M0": _Dtype(8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": _Dtype(8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": _Dtype(8, "float8_e5m2fnuz"),
    "I16": _Dtype(16, "int16"),
    "U16": _Dtype(16, "uint16"),
    "F16": _Dtype(16, "float16"),
    "BF16": _Dtype(16, "bfloat16"),
    "I32": _Dtype(32, "int32"),
    "U32": _Dtype(32, "uint32"),
    "F32": _Dtype(32, "float32"),
    "C64": _Dtype(64, "complex64"),
    "F64": _Dtype(64, "float64"),
    "I64": _Dtype(64, "int64"),
    "U64": _Dtype(64, "uint64"),
}
_NAMES = {dtype.numpy: name for name, dtype in DTYPES.items() if dtype.numpy}
_MAX_DIMENSIONS = 64  # NumPy's
_MAX_BYTES = 2**63 - 1  # what an offset in a file can reach


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy (or ml_dtypes) dtype that a safetensors dtype name stands for.

    UsageError: a name that is unknown, or a packed type of fewer than 8 bits, which no NumPy dtype describes.
    """
    import numpy as np

    known = DTYPES.get(name)
    if known is None or not known.numpy:
        raise UsageError(f"values of type {name!r} cannot be read as a NumPy array", code="E-dtype")
    if not name.startswith(("BF", "F8")):
        return np.dtype(known.numpy).newbyteorder("<")
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, known.numpy))
    return dtype


def array_dtype(name: str) -> str:
    """Return what NumPy, ml_dtypes and torch call the safetensors dtype `name`, or "" for one that none of them has.

    >>> array_dtype("BF16"), array_dtype("F4")
    ('bfloat16', '')
    """
    return DTYPES[name].numpy


def stored_dtype(name: str) -> str:
    """Return the safetensors name of the dtype that NumPy, ml_dtypes and torch call `name`.

    UsageError: safetensors has no name for it.

    >>> stored_dtype("bfloat16")
    'BF16'
    """
    if name not in _NAMES:
        raise UsageError(f"safetensors has no name for values of type {name}", code="E-dtype")
    return _NAMES[name]


def size_of(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Return the bytes that a tensor takes in a file, or None where that is no whole number."""
    bits = DTYPES[dtype].bits * prod(shape)
    return None if bits % 8 else bits // 8


def read_header(path: Path) -> list[TensorInfo]:
    """Return the tensors of the file at `path`, in the order in which they lie there.

    No tensor data is read. InputError: E-truncated for a file shorter than it says, E-header for any other fault.
    """
    with open_file(path) as (file, size):
        start = file.read(8)
        if start == b"version ":
            raise _fault(path, "is a Git LFS pointer, not the weights", fix="git lfs pull")
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length > MAX_JSON_BYTES:
            raise _fault(
                path, f"is no safetensors file: its header would be {format_size(length)}, the limit is 100 MB"
            )
        if size < 8 + length:
            raise truncated(path, size, f"its header alone takes {format_size(max(8, 8 + length))}")
        header = json_object(file.read(length), path, code="E-header")
    _check_metadata(path, header.pop("__metadata__", None))
    tensors = sorted(
        (_tensor(path, name, entry, 8 + length) for name, entry in header.items()),
        key=lambda tensor: (tensor.offset, tensor.bytes),
    )
    _check_cover(path, tensors, 8 + length, size)
    return tensors


def read_array(tensor: TensorInfo) -> NDArray[Any]:
    """Return the values as a read-only array: a view of the mapped file, or a copy where the tensor lies unaligned.

    The file stays mapped for as long as the array lives. InputError: the file has shrunk since its header was read, or
    its values are of a type that NumPy cannot hold.
    """
    import numpy as np

    try:
        dtype = numpy_dtype(tensor.dtype)
    except UsageError as error:
        raise InputError(error.message, file=str(tensor.file), tensor=tensor.name, code="E-dtype") from error
    with open_file(tensor.file) as (file, size):
        if size < tensor.offset + tensor.bytes:
            raise truncated(tensor.file, size, f"{tensor.name} ends at {format_size(tensor.offset + tensor.bytes)}")
        if tensor.bytes == 0:
            raw: NDArray[Any] = np.empty(0, np.uint8)
        else:
            raw = np.memmap(file, np.uint8, "r", tensor.offset, (tensor.bytes,)).view(np.ndarray)
    array = raw.view(dtype).reshape(tensor.shape)
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def _check_metadata(path: Path, value: Any) -> None:
    texts = value.values() if isinstance(value, dict) else [value]
    if value is not None and not all(isinstance(text, str) for text in texts):
        raise _fault(path, "has a __metadata__ that does not map strings to strings")


def _tensor(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _fault(path, "describes a tensor without dtype, shape and data_offsets", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _fault(path, f"holds a tensor of unknown dtype {str(dtype)[:40]!r}", name)
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _fault(path, f"gives a tensor a shape that is no list of at most {_MAX_DIMENSIONS} whole numbers", name)
    if prod(max(length, 1) for length in shape) * DTYPES[dtype].bits > 8 * _MAX_BYTES:
        raise _fault(path, "gives a tensor a shape whose product overflows", name)
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _fault(path, "gives a tensor data_offsets that are no pair of whole numbers", name)
    begin, end = offsets
    size = size_of(dtype, tuple(shape))
    if size is None or end - begin != size:
        raise _fault(path, f"gives a {dtype} tensor of shape {shape} the bytes {begin} to {end}", name)
    return TensorInfo(name, dtype, tuple(shape), size, path, data + begin)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_BYTES for item in value)


def _check_cover(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    """Refuse tensors that overlap, leave a hole, or do not end where the file does."""
    end = max((tensor.offset + tensor.bytes for tensor in tensors), default=start)
    if end > size:
        raise truncated(path, size, f"its header describes {format_size(end)}")
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            fault = "overlaps the one before it" if tensor.offset < position else "leaves a hole before it"
            raise _fault(path, f"holds a tensor that {fault}", tensor.name)
        position += tensor.bytes
    if position != size:
        raise _fault(path, f"has {size - position} bytes that its header does not describe")


def _fault(path: Path, what: str, tensor: str = "", fix: str = "") -> InputError:
    named = f": {tensor[:200]}" if tensor else ""
    return InputError(f"{path.name} {what}{named}", fix=fix, file=str(path), tensor=tensor, code="E-header")
