"""The header of a GGUF file, versions 2 and 3: metadata and tensor descriptions, every count checked before it is used.

Layout, little-endian: "GGUF", version u32, tensors u64, pairs u64; pairs of key and typed value; per tensor its name,
dimensions (fastest first), type and offset; then, aligned, the data. Source: docs/gguf.md of the ggml project.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from eckart.errors import InputError
from eckart.models._sizes import format_size
from eckart.models._untrusted import TensorInfo, open_file, truncated

__all__ = ["GGUF", "read_gguf"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_KEPT = 65_536  # bytes; a longer text (an embedded tokenizer) is skipped
_MAX_STRINGS = 20_000_000  # skipped one by one, about a second's work; the largest vocabularies have under a million
_MAX_ITEMS = 1_000_000  # tensors, and pairs of metadata; real files have thousands and dozens
_MAX_DIMENSIONS = 4

# type number: name, values in a block, bytes in a block
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@dataclass(frozen=True)
class GGUF:
    """What the header says. metadata: numbers, truth values and texts of at most 64 KiB; arrays are left out."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    bytes: int

    @property
    def architecture(self) -> str:
        """The architecture's name, such as "llama", or "" where the file does not say."""
        name = self.metadata.get("general.architecture", "")
        return name if isinstance(name, str) else ""


def read_gguf(path: Path) -> GGUF:
    """Return the header of the GGUF file at `path`; no tensor data is read.

    InputError: E-truncated for a file shorter than it says; E-header for a count that the file cannot hold, an unknown
    type, overlapping tensors, or one part of a split model.
    """
    with open_file(path) as (file, size):
        if size < 24:
            raise truncated(path, size, "a GGUF header takes 24 B or more")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, size).read()


class _Reader:
    """A position in the file that only moves forward, and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size = path, data, size
        self.position = 0
        self.strings_left = _MAX_STRINGS

    def read(self) -> GGUF:
        magic, version = self.take(4), self.number("<I")
        if magic != b"GGUF":
            self.fail(f"is no GGUF file: it starts with {magic!r}")
        if version not in (2, 3):
            self.fail(f"is GGUF version {version}; versions 2 and 3, little-endian, can be read")
        tensors = self.count("<Q", 24, "tensors")
        pairs = self.count("<Q", 13, "metadata pairs")
        if max(tensors, pairs) > _MAX_ITEMS:
            self.fail(f"announces {tensors} tensors and {pairs} metadata pairs; the limit is {_MAX_ITEMS}")
        metadata = self.metadata(pairs)
        if metadata.get("split.count", 1) not in (0, 1):
            self.fail("is one part of a split model", fix="join the parts first: llama-gguf-split --merge PART-1 OUT")
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment % 8:
            self.fail(f"gives the alignment as {alignment!r}")
        found = [self.tensor(alignment) for _ in range(tensors)]
        start = -(-self.position // alignment) * alignment
        return GGUF(self.path, metadata, self.placed(found, start), self.size)

    def metadata(self, pairs: int) -> dict[str, Any]:
        seen: set[str] = set()
        kept: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.text("a key")
            if key in seen:
                self.fail(f"has the key {key[:80]!r} twice")
            seen.add(key)
            value = self.value(key)
            if value is not None:
                kept[key] = value
        return kept

    def value(self, key: str) -> Any:
        """Return a scalar or a text that is short enough to keep; skip any other and return None."""
        kind = self.number("<I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            length = self.count("<Q", 1, "bytes of text")
            if length <= _MAX_KEPT:
                return self.decoded(self.take(length), key)
            self.skip(length)
        elif kind == _ARRAY:
            self.skip_array(key)
        else:
            self.fail(f"has a value of unknown type {kind} under {key[:80]!r}")
        return None

    def skip_array(self, key: str) -> None:
        kind = self.number("<I")
        if kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            self.skip(width * self.count("<Q", width, "array items"))
        elif kind == _STRING:
            count = self.count("<Q", 8, "strings")
            self.strings_left -= count
            if self.strings_left < 0:
                self.fail(f"has over {_MAX_STRINGS} strings in its metadata")
            self.skip_strings(count)
        else:
            self.fail(f"has an array of arrays, or of unknown type {kind}, under {key[:80]!r}")

    def skip_strings(self, count: int) -> None:
        unpack, data, position, last = struct.Struct("<Q").unpack_from, self.data, self.position, self.size - 8
        for _ in range(count):
            if position > last:
                break
            position += 8 + unpack(data, position)[0]
        if position > self.size:
            raise truncated(self.path, self.size, "its metadata goes on after that")
        self.position = position

    def tensor(self, alignment: int) -> TensorInfo:
        name = self.text("a tensor name")
        dimensions = self.number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self.fail(f"gives a tensor {dimensions} dimensions: {name[:200]}", name)
        lengths = [self.number("<Q") for _ in range(dimensions)]
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in _TYPES:
            self.fail(f"holds a tensor of unknown type {kind}: {name[:200]}", name)
        dtype, block, block_bytes = _TYPES[kind]
        if prod(max(length, 1) for length in lengths) > 2**63 - 1 or lengths[0] % block or offset % alignment:
            self.fail(f"gives a {dtype} tensor the dimensions {lengths} and the offset {offset}: {name[:200]}", name)
        size = prod(lengths) // block * block_bytes
        return TensorInfo(name, dtype, tuple(reversed(lengths)), size, self.path, offset)

    def placed(self, tensors: list[TensorInfo], start: int) -> dict[str, TensorInfo]:
        """Return the tensors by name, offsets counted from the file's start, after proof that none overlap."""
        end = max((tensor.offset + tensor.bytes for tensor in tensors), default=0)
        if start + end > self.size and tensors:
            raise truncated(self.path, self.size, f"its header describes {format_size(start + end)}")
        position = 0
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.bytes)):
            if tensor.offset < position:
                self.fail(f"holds a tensor that overlaps the one before it: {tensor.name[:200]}", tensor.name)
            position = tensor.offset + tensor.bytes
        named = {t.name: TensorInfo(t.name, t.dtype, t.shape, t.bytes, t.file, start + t.offset) for t in tensors}
        if len(named) != len(tensors):
            self.fail("has two tensors of one name")
        return named

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, code: str, least: int, what: str) -> int:
        """Return a count of things of at least `least` bytes each, which the rest of the file is long enough for."""
        count: int = self.number(code)
        if count * least > self.size - self.position:
            raise truncated(self.path, self.size, f"its header announces {count} {what} more")
        return count

    def text(self, what: str) -> str:
        length = self.count("<Q", 1, "bytes of text")
        if not 1 <= length <= _MAX_KEPT:
            self.fail(f"has {what} of {format_size(length)}")
        return self.decoded(self.take(length), what)

    def decoded(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"has text that is not UTF-8: {what[:80]!r}")

    def take(self, length: int) -> bytes:
        start = self.position
        self.skip(length)
        return self.data[start : self.position]

    def skip(self, length: int) -> None:
        if length > self.size - self.position:
            raise truncated(self.path, self.size, f"its header goes on for {format_size(length)} more")
        self.position += length

    def fail(self, what: str, tensor: str = "", fix: str = "") -> NoReturn:
        raise InputError(f"{self.path.name} {what}", fix=fix, file=str(self.path), tensor=tensor, code="E-header")
