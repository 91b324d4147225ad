"""Files are written whole or not at all: a temporary file in the same folder, fsync, then rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from eckart.errors import OutputError

__all__ = ["cannot_write", "check_room", "dump_json", "new_folder", "refuse_existing", "refuse_filled", "write_whole"]


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a binary file that becomes `path` when the block ends well and vanishes when it does not.

    OutputError: disk full, no permission, or a folder that is not there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` that becomes `path` when the block ends well and vanishes when it does not.

    OutputError: `path` exists already, or cannot be made.
    """
    refuse_existing(path)
    building = path.with_name(f".{path.name}.unfinished-{secrets.token_hex(4)}")
    try:
        building.mkdir(parents=True)
        yield building
        os.rename(building, path)
        _sync_folder(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Raise OutputError E-exists where there is something at `path`: nothing is ever overwritten."""
    if path.exists() or path.is_symlink():
        raise OutputError(
            f"the output {path} exists already; nothing was written",
            fix="choose another -o, or remove it first",
            file=str(path),
            code="E-exists",
        )


def refuse_filled(folder: Path) -> None:
    """Raise OutputError E-exists where `folder` is something else than an empty folder or a new one."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise OutputError(
            f"{folder} holds something else",
            fix="name a new folder, or an empty one",
            file=str(folder),
            code="E-exists",
        )


def check_room(folder: Path, needed: int) -> None:
    """Raise OutputError E-space where the disk on which `folder` is, or will be, has fewer than `needed` bytes free."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"need {needed:,} bytes in {folder}, {free:,} free; nothing was written",
            fix="free some space, or choose another -o",
            file=str(folder),
            code="E-space",
        )


def dump_json(value: Any) -> str:
    """Return strict JSON with sorted keys; a float that is not finite is a ValueError: JSON has no word for it."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the error to raise when the system refuses to write `path`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return OutputError(
        f"{path} cannot be written: {os.strerror(error.errno) if error.errno else error}",
        why="nothing half-written was left behind",
        fix="free some space, or choose another -o" if full else "choose another -o",
        file=str(path),
        code="E-space" if full else "E-output",
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
