"""Writing a model as safetensors shards and an index, whose bytes are known before the first is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from eckart._files import check_room, dump_json, refuse_existing, write_whole
from eckart.errors import EckartError, UsageError
from eckart.models._safetensors._header import DTYPES, size_of, stored_dtype
from eckart.models._safetensors._shards import INDEX_SUFFIX

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PendingTensor", "predict_bytes", "write_sharded"]


class Spec(Protocol):
    """What the layout of files depends on: a name, a safetensors dtype and a shape; a TensorInfo has them too."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class PendingTensor:
    """A tensor to be written. data: gives its values when their turn comes, as an array or as the bytes themselves."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], NDArray[Any] | bytes | bytearray | memoryview]

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> PendingTensor:
        """Return the tensor that an array in memory is."""
        return cls(name, stored_dtype(array.dtype.name), array.shape, lambda: array)


_S = TypeVar("_S", bound=Spec)


@dataclass(frozen=True)
class _Shard(Generic[_S]):
    file: str
    start: bytes  # the header and its length
    tensors: tuple[_S, ...]

    @property
    def bytes(self) -> int:
        return len(self.start) + sum(_size(tensor) for tensor in self.tensors)


def write_sharded(
    folder: Path,
    tensors: Iterable[PendingTensor],
    *,
    stem: str,
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write {stem}-0000k-of-0000n.safetensors and, last, {stem}.safetensors.index.json; return the bytes of them all.

    max_shard_bytes counts tensor bytes, as transformers does; a larger tensor gets a shard of its own. metadata joins
    {"format": "pt"} in every header. One tensor at a time is in memory. OutputError: the index exists, or the disk is
    full or too small; then no shard of this call is left. UsageError: no tensor, a name twice, or an unknown dtype.
    """
    shards, index = _layout(list(tensors), stem, max_shard_bytes, metadata)
    total = len(index) + sum(shard.bytes for shard in shards)
    target = folder / (stem + INDEX_SUFFIX)
    refuse_existing(target)
    check_room(folder, total)
    written: list[Path] = []
    try:
        for shard in shards:
            path = folder / shard.file
            with write_whole(path) as file:
                file.write(shard.start)
                for tensor in shard.tensors:
                    file.write(_values(tensor))
            written.append(path)
        with write_whole(target) as file:
            file.write(index)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return total


def predict_bytes(
    specs: Iterable[Spec], *, stem: str, max_shard_bytes: int, metadata: Mapping[str, str] | None = None
) -> int:
    """Return the exact bytes of all files that `write_sharded` makes of tensors of these names, dtypes and shapes."""
    shards, index = _layout(list(specs), stem, max_shard_bytes, metadata)
    return len(index) + sum(shard.bytes for shard in shards)


def _layout(
    tensors: Sequence[_S], stem: str, max_shard_bytes: int, metadata: Mapping[str, str] | None
) -> tuple[list[_Shard[_S]], bytes]:
    """Return the shards and the bytes of the index: all that is decided before anything is written."""
    _check(tensors)
    groups: list[list[_S]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + _size(tensor) > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += _size(tensor)
    shards = [
        _shard(f"{stem}-{k:05d}-of-{len(groups):05d}.safetensors", group, metadata) for k, group in enumerate(groups, 1)
    ]
    counts = {
        "total_size": sum(_size(tensor) for tensor in tensors),
        "total_parameters": sum(prod(tensor.shape) for tensor in tensors),
    }
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    return shards, dump_json({"metadata": counts, "weight_map": weight_map}).encode()


def _shard(file: str, tensors: list[_S], metadata: Mapping[str, str] | None) -> _Shard[_S]:
    # Wide values first: then every tensor lies at a multiple of its item size, and readers need not copy.
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].bits)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for tensor in ordered:
        end = position + _size(tensor)
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _Shard(file, len(text).to_bytes(8, "little") + text, tuple(ordered))


def _check(tensors: Sequence[Spec]) -> None:
    if not tensors:
        raise UsageError("there is no tensor to write")
    seen = {"__metadata__"}
    for tensor in tensors:
        if tensor.name in seen:
            raise UsageError(f"a second tensor named {tensor.name!r} cannot be written", tensor=tensor.name)
        if tensor.dtype not in DTYPES or size_of(tensor.dtype, tensor.shape) is None:
            raise UsageError(
                f"{tensor.name!r} cannot be written: safetensors has no {tensor.dtype} tensor of shape {tensor.shape}",
                tensor=tensor.name,
                code="E-dtype",
            )
        seen.add(tensor.name)


def _size(tensor: Spec) -> int:
    size = size_of(tensor.dtype, tensor.shape)
    assert size is not None  # _check came first
    return size


def _values(tensor: PendingTensor) -> memoryview:
    """Return the bytes of a tensor, row by row, little-endian, and exactly as many as its header promises."""
    import numpy as np

    given = tensor.data()
    if isinstance(given, np.ndarray):
        found = f"{given.dtype.name} {given.shape}"
        fits = stored_dtype(given.dtype.name) == tensor.dtype and given.shape == tensor.shape
        little = given.astype(given.dtype.newbyteorder("<"), copy=False)
        raw = np.ascontiguousarray(little).reshape(-1).view(np.uint8).data
    else:
        raw = memoryview(given).cast("B")
        found, fits = f"{len(raw)} bytes", len(raw) == _size(tensor)
    if not fits:
        raise EckartError(
            f"{tensor.name} was announced as {tensor.dtype} {tensor.shape}, but is {found}", tensor=tensor.name
        )
    return raw
