"""Model files that are broken or that mean harm: only EckartErrors escape, quickly, and nothing outside is read."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from eckart.errors import EckartError, InputError, UnsafeInputError
from eckart.models._inspect import inspect
from eckart.models._safetensors import PendingTensor, open_checkpoint, read_header, write_sharded
from eckart.models._source import resolve

ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def raw(header: bytes, data: int = 24, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(data)


def of(header: Any, data: int = 24) -> bytes:
    return raw(json.dumps(header).encode(), data)


def with_entry(**changes: Any) -> bytes:
    return of({"w": {**ENTRY, **changes}})


def two(first: list[int], second: list[int], data: int) -> bytes:
    entries = [{"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]} for begin, end in (first, second)]
    return of({"a": entries[0], "b": entries[1]}, data)


SOUND = of({"__metadata__": {"format": "pt"}, "w": ENTRY})

ODD = {
    "empty file": (b"", "E-truncated"),
    "seven bytes": (b"\0" * 7, "E-truncated"),
    "length and no header": (raw(b"", 0, 50), "E-truncated"),
    "length beyond the file": (raw(b"{}", 0, 5000), "E-truncated"),
    "length over 100 MB": (raw(b"{}", 0, 100_000_001), "E-header"),
    "length 2^64 - 1": (raw(b"{}", 0, 2**64 - 1), "E-header"),
    "header of no bytes": (raw(b"", 0), "E-header"),
    "not JSON": (raw(b"{'a': 1}"), "E-header"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "E-header"),
    "UTF-16": (raw('{"a": 1}'.encode("utf-16")), "E-header"),
    "a list": (of([1, 2]), "E-header"),
    "a number": (of(5), "E-header"),
    "nested 100,000 deep": (raw(b"[" * 100_000), "E-header"),
    "nested 100,000 deep in objects": (raw(b'{"a":' * 100_000), "E-header"),
    "a number of 5,000 digits": (raw(b'{"w": ' + b"9" * 5000 + b"}"), "E-header"),
    "a name twice": (raw(b'{"w": %b, "w": %b}' % ((json.dumps(ENTRY).encode(),) * 2)), "E-header"),
    "a key of an entry twice": (raw(json.dumps({"w": ENTRY}).replace('"shape"', '"dtype"').encode()), "E-header"),
    "a name with half a surrogate pair": (raw(json.dumps({"\ud800": ENTRY}).encode()), "E-header"),
    "entry that is a list": (of({"w": [1]}), "E-header"),
    "entry without dtype": (of({"w": {"shape": [6], "data_offsets": [0, 24]}}), "E-header"),
    "unknown dtype": (with_entry(dtype="F33"), "E-header"),
    "dtype that is a list": (with_entry(dtype=["F32"]), "E-header"),
    "negative length": (with_entry(shape=[-2, -3]), "E-header"),
    "fractional length": (with_entry(shape=[2.0, 3.0]), "E-header"),
    "truth value as length": (with_entry(shape=[True, 6]), "E-header"),
    "shape that is text": (with_entry(shape="23"), "E-header"),
    "100 dimensions": (with_entry(shape=[1] * 98 + [2, 3]), "E-header"),
    "product over 2^63": (with_entry(shape=[2**40, 2**40]), "E-header"),
    "product that wraps round to 24 bytes": (with_entry(shape=[2**62, 4, 6]), "E-header"),
    "product of 0 after an overflow": (
        of({"w": {"dtype": "F32", "shape": [2**60, 2**60, 0], "data_offsets": [0, 0]}}, 0),
        "E-header",
    ),
    "one offset": (with_entry(data_offsets=[24]), "E-header"),
    "offsets the wrong way round": (with_entry(data_offsets=[24, 0]), "E-header"),
    "negative offset": (with_entry(data_offsets=[-24, 0]), "E-header"),
    "offset of 2^70": (with_entry(data_offsets=[2**70, 2**70 + 24]), "E-header"),
    "size that is not shape times dtype": (with_entry(shape=[2, 2]), "E-header"),
    "packed values that end inside a byte": (
        of({"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, 2),
        "E-header",
    ),
    "data cut short": (SOUND[:-1], "E-truncated"),
    "no data": (SOUND[:-24], "E-truncated"),
    "2^40 values and 24 bytes": (with_entry(shape=[2**40], data_offsets=[0, 2**42]), "E-truncated"),
    "bytes after the end": (SOUND + b"\0", "E-header"),
    "bytes and no tensor": (of({}), "E-header"),
    "overlap": (two([0, 8], [4, 12], 12), "E-header"),
    "overlap and as many bytes as the tensors have": (two([0, 8], [4, 12], 16), "E-header"),
    "hole": (two([0, 4], [8, 12], 12), "E-header"),
    "hole at the start": (two([4, 8], [8, 12], 12), "E-header"),
    "two tensors in one place": (two([0, 8], [0, 8], 8), "E-header"),
    "metadata that is a list": (of({"__metadata__": ["pt"], "w": ENTRY}), "E-header"),
    "metadata that holds a number": (of({"__metadata__": {"a": 1}, "w": ENTRY}), "E-header"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "E-header"),
    "HTML error page": (b"<!DOCTYPE html><html>Not found</html>", "E-header"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_header_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, code = ODD[name]
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert caught.value.code == code
    assert caught.value.status == 3
    assert "odd.safetensors" in str(caught.value)


def test_sound_headers_are_accepted(tmp_path: Path) -> None:
    """What the odd headers are made from is sound; spaces at the end and names that look like paths do no harm."""
    for content in (SOUND, of({}, 0), raw(json.dumps({"w": ENTRY}).encode() + b"   "), two([0, 4], [4, 12], 12)):
        (tmp_path / "a.safetensors").write_bytes(content)
        read_header(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(two([4, 12], [0, 4], 12))
    assert [tensor.name for tensor in read_header(tmp_path / "a.safetensors")] == ["b", "a"]
    (tmp_path / "a.safetensors").write_bytes(of({"../../\x1b[31m\n": ENTRY}))
    assert [tensor.name for tensor in read_header(tmp_path / "a.safetensors")] == ["../../\x1b[31m\n"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("overlap", "overlaps the one before it: b"),
        ("hole", "leaves a hole before it: b"),
        ("bytes after the end", "has 1 bytes that its header does not describe"),
        ("Git LFS pointer", "git lfs pull"),
        ("a name twice", "the key 'w' is there twice"),
        ("nested 100,000 deep", "nested too deeply"),
        ("length over 100 MB", "the limit is 100 MB"),
    ],
)
def test_the_message_says_what_is_wrong(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "odd.safetensors").write_bytes(ODD[name][0])
    with pytest.raises(InputError) as caught:
        read_header(tmp_path / "odd.safetensors")
    assert words in str(caught.value)


def test_the_message_of_a_truncated_file_gives_both_sizes_and_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "U8", "shape": [4_900_000], "data_offsets": [0, 4_900_000]}}).encode()
    (folder / "model.safetensors").write_bytes(raw(header, 1_200_000 - 8 - len(header)))
    with pytest.raises(InputError) as caught:
        resolve(folder)
    assert caught.value.message == "model.safetensors is 1.2 MB but its header describes 4.9 MB"
    assert "cut short" in caught.value.why
    assert caught.value.fix == "hf download org/name model.safetensors --force-download"


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(of({"evil\x1b[31m\u202e\n": {**ENTRY, "shape": [1]}}))
    with pytest.raises(InputError) as caught:
        read_header(tmp_path / "a.safetensors")
    assert str(caught.value).isprintable()
    assert "evil" in str(caught.value)


# Structured mutations: a sound header with a few of its parts replaced, so that most checks are reached

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_length = st.one_of(st.integers(0, 8), st.sampled_from([-1, 2**31, 2**60, 2**63, 2**64, True, 1.0, None, "4"]))
_changes = st.lists(
    st.one_of(
        st.tuples(st.just("shape"), st.lists(_length, max_size=4)),
        st.tuples(st.just("data_offsets"), st.lists(_length, min_size=1, max_size=3)),
        st.tuples(st.just("dtype"), st.sampled_from(["F32", "BF16", "F4", "F6_E2M3", "U8", "", "float32", "C64"])),
        st.tuples(st.sampled_from(["shape", "data_offsets", "dtype", "more", "drop", "__metadata__", "all"]), _json),
    ),
    max_size=4,
)


def _mutated(changes: list[tuple[str, Any]]) -> Any:
    header: Any = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    for number, (part, value) in enumerate(changes):
        entry = header["ab"[number % 2]]
        if part == "all":
            return value
        elif part == "__metadata__":
            header[part] = value
        elif part == "drop":
            entry.pop("shape", None)
        else:
            entry[part] = copy.deepcopy(value)
    return header


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_changes, st.integers(-12, 4), st.binary(max_size=3), st.integers(0, 400))
def test_a_mutated_header_is_read_rightly_or_refused(tmp_path_factory, changes, more, patch, where) -> None:
    content = of(_mutated(changes), 8)
    content = content[:more] if more < 0 else content + bytes(more)
    if patch and where < len(content):
        content = content[:where] + patch + content[where + len(patch) :]
    path = tmp_path_factory.mktemp("mutated") / "model.safetensors"
    path.write_bytes(content)
    try:
        found = inspect(path)
        arrays = {tensor.name: open_checkpoint(path).array(tensor.name) for tensor in found.tensors}
    except EckartError as error:
        refusal = error
    else:
        refusal = None
    event("refused" if refusal else "read")
    if refusal:
        assert str(refusal).isprintable()
        return
    # What was accepted covers the data exactly, so that no byte is read that is not there, and none twice.
    start = 8 + int.from_bytes(content[:8], "little")
    assert sum(array.nbytes for array in arrays.values()) == len(content) - start
    assert b"".join(arrays[tensor.name].tobytes() for tensor in found.tensors) == content[start:]
    json.dumps(found.to_json(), allow_nan=False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(_json, st.dictionaries(st.sampled_from(["w", "v", "é"]), _json, max_size=3)), _json)
def test_any_index_and_any_config_is_read_rightly_or_refused(tmp_path_factory, weight_map, config) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model-00001-of-00001.safetensors").write_bytes(SOUND)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(EckartError) as caught:
        inspect(folder)
    assert str(caught.value).isprintable()
    sound = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(sound))
    keys = ["architectures", "model_type", "tie_word_embeddings", "text_config", "auto_map", "eckart", "num_layers"]
    (folder / "config.json").write_text(json.dumps(dict.fromkeys(keys, config)))
    json.dumps(inspect(folder).to_json(), allow_nan=False)


# Shards and their index


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model of three shards with two tensors each."""
    folder = tmp_path / "model"
    folder.mkdir()
    pending = [PendingTensor.of(f"layer.{i}.weight", np.full((2, 2), i, np.float32)) for i in range(6)]
    write_sharded(folder, pending, stem="model", max_shard_bytes=32)
    assert len(shard_names(folder)) == 3
    assert len(open_checkpoint(folder).tensors) == 6
    return folder


def change_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def refused(folder: Path, error: type[EckartError], code: str) -> EckartError:
    with pytest.raises(error) as caught:
        resolve(folder)
    assert caught.value.code == code
    return caught.value


def test_a_missing_shard_is_named_with_what_needs_it(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    error = refused(sharded, InputError, "E-shard-missing")
    assert error.message == (
        "the index lists 3 shards, 1 missing: model-00002-of-00003.safetensors "
        "(needed by 2 tensors, e.g. layer.2.weight)"
    )


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    path = sharded / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    error = refused(sharded, InputError, "E-truncated")
    assert "model-00003-of-00003.safetensors" in error.message


def test_a_tensor_that_the_index_names_but_no_shard_holds(sharded: Path) -> None:
    change_index(sharded, lambda m: m.update(ghost="model-00001-of-00003.safetensors"))
    assert "ghost" in refused(sharded, InputError, "E-index").message


def test_a_tensor_that_a_shard_holds_but_the_index_does_not_name(sharded: Path) -> None:
    change_index(sharded, lambda m: m.pop("layer.3.weight"))
    assert "layer.3.weight" in refused(sharded, InputError, "E-index").message


def test_a_tensor_that_is_in_two_shards(sharded: Path) -> None:
    names = shard_names(sharded)
    (sharded / names[2]).write_bytes((sharded / names[0]).read_bytes())
    change_index(sharded, lambda m: [m.pop(f"layer.{i}.weight") for i in (0, 1, 4, 5)])
    change_index(sharded, lambda m: m.update({"layer.0.weight": names[0], "layer.1.weight": names[2]}))
    assert "layer." in refused(sharded, InputError, "E-index").message


def test_an_index_that_puts_a_tensor_in_the_wrong_shard(sharded: Path) -> None:
    change_index(sharded, lambda m: m.update({"layer.0.weight": "model-00002-of-00003.safetensors"}))
    refused(sharded, InputError, "E-index")


def test_shards_without_their_index_are_no_model(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    refused(sharded, InputError, "E-shard-missing")
    for name in shard_names(sharded)[1:]:
        (sharded / name).unlink()
    refused(sharded, InputError, "E-shard-missing")


def test_two_sets_of_weights_are_ambiguous_unless_transformers_has_a_rule(sharded: Path) -> None:
    (sharded / "eckart.safetensors.index.json").write_bytes((sharded / "model.safetensors.index.json").read_bytes())
    refused(sharded, InputError, "E-ambiguous")
    (sharded / "eckart.safetensors.index.json").unlink()
    (sharded / "model.safetensors").write_bytes(SOUND)
    assert list(resolve(sharded).weights.tensors) == ["w"]  # as transformers: the single file first


def test_a_stale_index_over_a_single_other_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    (tmp_path / "weights.safetensors").write_bytes(SOUND)
    refused(tmp_path, InputError, "E-shard-missing")


def test_an_index_of_very_many_shards_is_refused_in_seconds(tmp_path: Path) -> None:
    names = {f"t{i}": f"model-{i:06d}.safetensors" for i in range(200_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    start = time.perf_counter()
    refused(tmp_path, InputError, "E-index")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "name",
    [
        "../victim/secret.safetensors",
        "sub/../../victim/secret.safetensors",
        "./model-00001-of-00003.safetensors",
        "sub/../model-00001-of-00003.safetensors",
        "/{victim}/secret.safetensors",
        "..",
        "",
        "a//b.safetensors",
        "..\\victim\\secret.safetensors",
        "C:secret.safetensors",
        "C:\\secret.safetensors",
        "a\0b.safetensors",
        "a\nb.safetensors",
        "\ud800.safetensors",
    ],
)
def test_a_shard_path_that_leaves_the_folder_is_refused_unread(sharded: Path, name: str) -> None:
    victim = sharded.parent / "victim"
    victim.mkdir()
    (victim / "secret.safetensors").write_bytes(of({"layer.0.weight": ENTRY}))
    name = name.replace("/{victim}", str(victim))
    change_index(sharded, lambda m: m.update({"layer.0.weight": name}))
    error = refused(sharded, UnsafeInputError, "E-path")
    assert error.status == 4
    assert str(error).isprintable()


@pytest.mark.parametrize("file", ["model-00002-of-00003.safetensors", "model.safetensors.index.json", "README.md"])
def test_a_link_that_leaves_the_folder_is_refused(sharded: Path, file: str) -> None:
    secret = sharded.parent / "secret"
    (secret).write_bytes((sharded / file).read_bytes() if (sharded / file).exists() else b"key")
    (sharded / file).unlink(missing_ok=True)
    (sharded / file).symlink_to(Path("..") / "secret")
    refused(sharded, UnsafeInputError, "E-path")
    if file != "README.md":
        with pytest.raises(UnsafeInputError):
            open_checkpoint(sharded)


def test_a_config_that_is_a_link_to_elsewhere_is_refused(sharded: Path) -> None:
    (sharded.parent / "secret.json").write_text('{"model_type": "secret"}')
    (sharded / "config.json").symlink_to(sharded.parent / "secret.json")
    refused(sharded, UnsafeInputError, "E-path")


def test_a_shard_in_a_folder_that_is_a_link_to_elsewhere_is_refused(sharded: Path) -> None:
    names = shard_names(sharded)
    outside = sharded.parent / "outside"
    outside.mkdir()
    (sharded / names[0]).rename(outside / names[0])
    (sharded / "sub").symlink_to(outside)
    change_index(sharded, lambda m: m.update({f"layer.{i}.weight": f"sub/{names[0]}" for i in (0, 1)}))
    refused(sharded, UnsafeInputError, "E-path")


def test_a_shard_in_a_folder_below_and_a_link_within_the_folder_are_accepted(sharded: Path) -> None:
    names = shard_names(sharded)
    (sharded / "sub").mkdir()
    (sharded / names[0]).rename(sharded / "sub" / names[0])
    (sharded / names[1]).rename(sharded / "sub" / "blob")
    (sharded / names[1]).symlink_to(Path("sub") / "blob")
    change_index(sharded, lambda m: m.update({f"layer.{i}.weight": f"sub/{names[0]}" for i in (0, 1)}))
    weights = open_checkpoint(sharded)
    assert float(weights.array("layer.1.weight")[0, 0]) == 1
    assert float(weights.array("layer.2.weight")[0, 0]) == 2


@pytest.fixture
def cached(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same model as the Hugging Face cache keeps it: the repository's folder, whose parent HF_HUB_CACHE names."""
    repository = sharded.parent / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(repository / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:064x}")
    (repository / "refs" / "main").write_text("0123456789abcdef")
    monkeypatch.setenv("HF_HUB_CACHE", str(repository.parent))
    return repository


def test_a_snapshot_of_the_hugging_face_cache_is_read_through_its_links(cached: Path) -> None:
    found = resolve("org/name")
    assert found.path == cached / "snapshots" / "0123456789abcdef"
    assert found.kind == "folder"
    assert len(found.weights.tensors) == 6
    assert len(resolve(found.path).weights.tensors) == 6
    assert len(resolve(found.path / "model.safetensors.index.json").weights.tensors) == 6


def test_the_store_of_blobs_that_repositories_share_is_followed(cached: Path) -> None:
    blob = sorted((cached / "blobs").iterdir())[0]
    shared = cached.parent / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert len(resolve("org/name").weights.tensors) == 6


@pytest.mark.parametrize("where", ["models--org--other/blobs/0", "blobs/secret", "secret"])
def test_a_snapshot_that_links_to_another_place_of_the_cache_is_refused(cached: Path, where: str) -> None:
    target = cached.parent / where
    target.parent.mkdir(parents=True, exist_ok=True)
    link = cached / "snapshots" / "0123456789abcdef" / "model-00001-of-00003.safetensors"
    target.write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(target)
    refused(Path("org/name"), UnsafeInputError, "E-path")


def test_only_snapshots_may_link_to_blobs(cached: Path) -> None:
    (cached / "snapshots").rename(cached / "other")
    refused(cached / "other" / "0123456789abcdef", UnsafeInputError, "E-path")


def test_a_blob_that_is_a_link_to_elsewhere_is_refused(cached: Path) -> None:
    blob = sorted((cached / "blobs").iterdir())[0]
    secret = cached.parent.parent / "secret"
    blob.rename(secret)
    blob.symlink_to(secret)
    refused(Path("org/name"), UnsafeInputError, "E-path")


def test_a_blob_that_was_never_downloaded_is_a_missing_shard(cached: Path) -> None:
    (cached / "snapshots" / "0123456789abcdef" / "model-00001-of-00003.safetensors").resolve().unlink()
    error = refused(Path("org/name"), InputError, "E-shard-missing")
    assert error.fix.startswith("hf download org/name model-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    ("revision", "code"),
    [
        ("../../../elsewhere", "E-path"),
        ("{elsewhere}", "E-path"),
        ("..", "E-path"),
        ("", "E-path"),
        ("a b", "E-path"),
        ("x" * 300, "E-missing"),
        ("fedcba", "E-missing"),
    ],
)
def test_a_reference_of_the_cache_that_is_no_revision_is_refused(cached: Path, revision: str, code: str) -> None:
    elsewhere = cached.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_bytes(SOUND)
    (cached / "refs" / "main").write_text(revision.replace("{elsewhere}", str(elsewhere)))
    with pytest.raises(EckartError) as caught:
        resolve("org/name")
    assert caught.value.code == code


def test_the_weights_that_a_config_names_for_transformers_are_the_ones_that_are_checked(sharded: Path) -> None:
    (sharded / "other.safetensors").write_bytes(SOUND)
    (sharded / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    assert list(resolve(sharded).weights.tensors) == ["w"]
    (sharded / "config.json").write_text('{"transformers_weights": "../other.safetensors"}')
    refused(sharded, UnsafeInputError, "E-path")
    (sharded / "config.json").write_text('{"transformers_weights": "pytorch_model.bin"}')
    refused(sharded, InputError, "E-kind")


def test_an_adapter_beside_a_model_is_refused(sharded: Path) -> None:
    (sharded / "config.json").write_text("{}")
    (sharded / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    refused(sharded, InputError, "E-ambiguous")


# Things that are no files


def test_a_pipe_does_not_block_and_a_folder_or_a_device_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    start = time.perf_counter()
    refused(tmp_path, InputError, "E-kind")
    refused(tmp_path / "model.safetensors", InputError, "E-kind")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, InputError, "E-kind")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    refused(tmp_path / "zero.gguf", InputError, "E-kind")
    assert time.perf_counter() - start < 5


def test_a_loop_of_links_is_an_error_not_a_hang(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(EckartError):
        resolve(tmp_path)


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SOUND)
    checkpoint = open_checkpoint(path)
    path.write_bytes(SOUND[:-8])
    with pytest.raises(InputError) as caught:
        checkpoint.array("w")
    assert caught.value.code == "E-truncated"


def test_a_header_that_promises_terabytes_is_refused_in_100_mb_of_memory(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(raw(header, 0))
    script = """
import resource, sys
from eckart.errors import InputError
from eckart.models._inspect import inspect
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
try:
    inspect(sys.argv[1])
except InputError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=20)
    assert (done.stdout.strip(), done.stderr) == ("E-truncated", "")
