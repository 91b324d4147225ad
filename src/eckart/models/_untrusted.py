"""What a reader of strangers' files needs: regular files only, paths that stay inside, JSON without surprises."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from eckart.errors import InputError, UnsafeInputError
from eckart.models._sizes import format_size

__all__ = ["MAX_JSON_BYTES", "TensorInfo", "download", "json_object", "member", "open_file", "read_json", "truncated"]

MAX_JSON_BYTES = 100_000_000
"""The cap that the safetensors package puts on its header; an index or a config is far smaller."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in which file.

    dtype: the file format's own name. shape: in NumPy's order, rows first. bytes: its length in the file, and offset:
    its first byte there, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: Path
    offset: int

    @property
    def parameters(self) -> int:
        """The number of values."""
        return prod(self.shape)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Give the regular file at `path`, open for reading, and its size in bytes.

    InputError: it is not there, may not be read, or is no regular file (a pipe would block, a device never end).
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a regular file", file=str(path), code="E-kind")
            yield file, status.st_size
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}", file=str(path), code="E-missing") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not a file", file=str(path), code="E-kind") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", file=str(path)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`. InputError as for `open_file` and `json_object`."""
    with open_file(path) as (file, size):
        if size > MAX_JSON_BYTES:
            raise InputError(
                f"{path} is {format_size(size)}, too large for a JSON file of a model (at most 100 MB)",
                file=str(path),
                code="E-json",
            )
        return json_object(file.read(size), path)


def json_object(data: bytes, path: Path, code: str = "E-json") -> dict[str, Any]:
    """Return the JSON object that `data`, read from `path`, holds.

    InputError: not UTF-8, not JSON, not an object, nested too deeply, or a key is there twice or is no Unicode text.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path} does not hold valid JSON", why=why[:200], file=str(path), code=code) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object", file=str(path), code=code)
    return value


def member(folder: Path, name: str, *, named_in: str) -> Path:
    """Return folder/name after proof that following it, symbolic links and all, stays inside the folder.

    Links of a Hugging Face cache are allowed: from models--*/snapshots/<revision> to blobs/ of the same repository, or
    to the store of blobs that the repositories of one cache share. The file need not exist. UnsafeInputError: E-path.
    """
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and not PureWindowsPath(name).drive
    if not plain or any(part in ("", ".", "..") for part in parts):
        raise _escapes(folder, name, named_in, "an absolute path, '..' or an odd character is no way to name a shard")
    path = folder / name
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(folder)) and not _is_blob(folder, target):
        raise _escapes(folder, name, named_in, f"it is a symbolic link to {target}")
    return path


def download(path: Path) -> str:
    """Return the command that fetches the model file at `path` again."""
    repository = _cached_repository(path.parent)
    name = repository.name.removeprefix("models--").replace("--", "/") if repository else "ORG/NAME"
    return f"hf download {name} {path.name} --force-download"


def truncated(path: Path, size: int, needed: str) -> InputError:
    """Return the error for a file of `size` bytes that is shorter than its own header says."""
    return InputError(
        f"{path.name} is {format_size(size)} but {needed}",
        why="the download or the copy was cut short, or the file is damaged",
        fix=download(path),
        file=str(path),
        code="E-truncated",
    )


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:80]!r} is there twice")
    for key in value:
        key.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    return value


def _escapes(folder: Path, name: str, named_in: str, why: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"refusing {named_in}: {name[:200]!r} points outside the model folder {folder}",
        why=why,
        fix="put a copy of the file into the folder, and name it by its plain name",
        file=named_in,
        code="E-path",
    )


def _is_blob(folder: Path, target: Path) -> bool:
    repository = _cached_repository(folder)
    if repository is None:
        return False
    shared = repository.parent / "blobs"
    return target.is_relative_to(repository / "blobs") or (
        target.is_relative_to(shared)
        and re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{64}", target.relative_to(shared).as_posix()) is not None
    )


def _cached_repository(folder: Path) -> Path | None:
    """Return the models--* folder of the Hugging Face cache in one of whose snapshots `folder` lies, if it does."""
    real = Path(os.path.realpath(folder))
    for snapshot in (real, *real.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            return repository
    return None
