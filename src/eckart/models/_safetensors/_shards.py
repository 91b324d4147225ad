"""A model's safetensors files, found from a folder, an index or one file, and proved to agree with each other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError, UsageError
from eckart.models._safetensors._header import read_array, read_header
from eckart.models._untrusted import TensorInfo, download, member, read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ECKART_INDEX", "INDEX_SUFFIX", "Checkpoint", "open_checkpoint"]

INDEX_SUFFIX = ".safetensors.index.json"
ECKART_INDEX = "eckart" + INDEX_SUFFIX
_DENSE = ("model.safetensors", "model" + INDEX_SUFFIX)  # the order in which transformers looks
_MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model, by name, in the order of the files; every path and header is already checked.

    index: the file that says which shard holds which tensor, if there is one. files: the shards.
    """

    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    index: Path | None

    @property
    def bytes(self) -> int:
        """Bytes on disk of the shards and their index, headers included."""
        return sum(os.stat(file).st_size for file in (*self.files, *([self.index] if self.index else [])))

    def array(self, name: str) -> NDArray[Any]:
        """Return one tensor as a read-only array; see `read_array`. UsageError: there is no such tensor."""
        if name not in self.tensors:
            raise UsageError(f"there is no tensor {name!r}", tensor=name)
        return read_array(self.tensors[name])


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint that `path`, a folder, a *.safetensors.index.json or a *.safetensors file, holds.

    In a folder: eckart.safetensors.index.json, else model.safetensors, else model.safetensors.index.json, else the only
    *.safetensors file that there is. UnsafeInputError E-path: a file outside the folder. InputError: E-missing (no such
    file), E-ambiguous (two sets of weights), E-shard-missing, E-index (index and shards disagree), and `read_header`'s.
    """
    if path.is_dir():
        path = _weights_file(path)
        member(path.parent, path.name, named_in=str(path))
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path)
    return Checkpoint({tensor.name: tensor for tensor in read_header(path)}, (path,), None)


def _weights_file(folder: Path) -> Path:
    names = sorted(entry.name for entry in os.scandir(folder))
    dense = [name for name in _DENSE if name in names]
    if ECKART_INDEX in names and dense:
        raise _ambiguous(folder, [ECKART_INDEX, *dense])
    if ECKART_INDEX in names or dense:
        return folder / (dense[0] if dense else ECKART_INDEX)
    others = [name for name in names if name.endswith((".safetensors", INDEX_SUFFIX)) and not name.startswith(".")]
    if not others:
        raise InputError(f"there are no safetensors weights in {folder}", file=str(folder), code="E-missing")
    if len(others) > 1 and not any(_is_shard(name) for name in others):
        raise _ambiguous(folder, others)
    lone = [name for name in others if name.endswith(INDEX_SUFFIX)] or others
    if len(lone) > 1 or _is_shard(lone[0]):
        raise InputError(
            f"{folder} holds {lone[0]}, one shard of several, without the index that lists them",
            why="the download was cut short, or the writing of the model was",
            fix=download(folder / _DENSE[1]),
            file=str(folder),
            code="E-shard-missing",
        )
    return folder / lone[0]


def _is_shard(name: str) -> bool:
    return re.search(r"-\d{5}-of-\d{5}\.safetensors$", name) is not None


def _ambiguous(folder: Path, names: list[str]) -> InputError:
    return InputError(
        f"{folder} holds several sets of weights: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}",
        fix=f"name the one that you mean, as {folder / names[0]}",
        file=str(folder),
        code="E-ambiguous",
    )


def _open_index(index: Path) -> Checkpoint:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise _disagree(index, "has no weight_map from tensor names to file names")
    shards = sorted(set(weight_map.values()))
    if len(shards) > _MAX_SHARDS:
        raise _disagree(index, f"lists {len(shards)} shards; the limit is {_MAX_SHARDS}")
    files = {shard: member(index.parent, shard, named_in=index.name) for shard in shards}
    missing = [shard for shard, file in files.items() if not os.path.exists(file)]
    if missing:
        raise _shards_missing(index, weight_map, len(shards), missing)
    tensors: dict[str, TensorInfo] = {}
    for shard, file in files.items():
        for tensor in read_header(file):
            name = tensor.name
            if weight_map.get(name) != shard:
                said = f"says {weight_map[name]!r}" if name in weight_map else "does not name it"
                raise _disagree(index, f"and its shards disagree: {name!r} is in {shard!r}, the index {said}", name)
            tensors[name] = tensor
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        shard = weight_map[absent[0]]
        raise _disagree(index, f"puts {absent[0]!r} in {shard!r}, which does not hold it", absent[0], len(absent))
    return Checkpoint(tensors, tuple(files.values()), index)


def _shards_missing(index: Path, weight_map: dict[str, str], shards: int, missing: list[str]) -> InputError:
    needed = [name for name, shard in weight_map.items() if shard in set(missing)]
    tensors = f"{len(needed)} tensor{'s' if len(needed) > 1 else ''}, e.g. {needed[0]}"
    return InputError(
        f"the index lists {shards} shards, {len(missing)} missing: {missing[0]} (needed by {tensors})",
        fix=download(index.parent / missing[0]),
        file=str(index),
        tensor=needed[0],
        code="E-shard-missing",
    )


def _disagree(index: Path, what: str, tensor: str = "", count: int = 1) -> InputError:
    more = f" (and {count - 1} more)" if count > 1 else ""
    return InputError(f"{index.name} {what}{more}", file=str(index), tensor=tensor, code="E-index")
