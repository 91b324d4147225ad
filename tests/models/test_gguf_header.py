"""The GGUF header reader: against the gguf package on a real file and a made one, and on headers that lie."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eckart.errors import InputError
from eckart.models._gguf import _TYPES, read_gguf

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a GGUF file; counts: (tensors, pairs) to announce, where they are not the truth."""
    announced = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *announced) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment + data)


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_gguf(path)


def test_a_real_file_reads_as_the_gguf_package_reads_it(smollm2_gguf: Path) -> None:
    gguf_package = pytest.importorskip("gguf")
    theirs = gguf_package.GGUFReader(smollm2_gguf)
    ours = read_gguf(smollm2_gguf)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        info = ours.tensors[t.name]
        assert info.shape == tuple(reversed([int(length) for length in t.shape]))
        assert (info.dtype, info.bytes, info.offset) == (t.tensor_type.name, t.n_bytes, t.data_offset)
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        assert value == pytest.approx(expected) if isinstance(value, float) else value == expected
    scalars = [key for key, field in theirs.fields.items() if field.types[0].name != "ARRAY" and "." in key]
    assert set(ours.metadata) == {key for key in scalars if not key.startswith("GGUF.")}
    assert ours.bytes == smollm2_gguf.stat().st_size


def test_a_real_file_is_the_model_that_it_is_known_to_be(smollm2_gguf: Path) -> None:
    found = read_gguf(smollm2_gguf)
    assert found.architecture == "llama"
    assert found.metadata["llama.block_count"] == 30
    assert found.metadata["general.license"] == "apache-2.0"
    assert found.metadata["general.file_type"] == 3
    assert sum(t.parameters for t in found.tensors.values()) == 134_515_008
    assert found.tensors["token_embd.weight"].shape == (49152, 576)
    assert "output.weight" not in found.tensors


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    gguf_package = pytest.importorskip("gguf")
    path = tmp_path / "made.gguf"
    writer = gguf_package.GGUFWriter(path, "gpt2")
    writer.add_block_count(2)
    writer.add_token_list([f"t{i}" for i in range(1000)])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_custom_alignment(64)
    rng = np.random.default_rng(0)
    arrays = {"a.weight": rng.standard_normal((5, 7), np.float32), "b": rng.standard_normal(3).astype(np.float16)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path)
    assert found.architecture == "gpt2"
    assert found.metadata["gpt2.block_count"] == 2
    assert "numbers" not in found.metadata
    raw = path.read_bytes()
    for name, array in arrays.items():
        info = found.tensors[name]
        assert info.shape == array.shape
        assert raw[info.offset : info.offset + info.bytes] == array.tobytes()


def test_the_type_table_is_the_gguf_packages() -> None:
    constants = pytest.importorskip("gguf.constants")
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    assert {number: entry for number, entry in theirs.items() if number in _TYPES} == _TYPES


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_of_every_kind_is_read_or_skipped(tmp_path: Path, version: int) -> None:
    strings = struct.pack("<IQ", STRING, 3) + text("x") + text("") + text("\N{SNOWMAN}")
    pairs = [
        pair("general.architecture", STRING, text("llama")),
        pair("strings", ARRAY, strings),
        pair("numbers", ARRAY, struct.pack("<IQ3i", I32, 3, 1, -2, 3)),
        pair("none", ARRAY, struct.pack("<IQ", F32, 0)),
        pair("long", STRING, text("z" * 70_000)),
        pair("flag", BOOL, b"\1"),
        pair("count", U64, struct.pack("<Q", 2**40)),
        pair("rate", F32, struct.pack("<f", 0.5)),
    ]
    found = read(tmp_path, gguf(pairs, [tensor("w", (4, 3))], data=48, version=version))
    assert found.metadata == {"general.architecture": "llama", "flag": True, "count": 2**40, "rate": 0.5}
    assert found.tensors["w"].shape == (3, 4)
    assert found.tensors["w"].offset % 32 == 0


def blocks_of(kind: int, alignment: int = 32) -> bytes:
    """Return a sound file with one tensor of this type, two blocks long."""
    _, block, size = _TYPES[kind]
    return gguf([], [tensor("w", (2 * block,), kind)], data=2 * size, alignment=alignment)


@pytest.mark.parametrize("kind", sorted(_TYPES))
def test_a_quantised_tensor_takes_its_blocks_and_not_a_byte_less(tmp_path: Path, kind: int) -> None:
    whole = blocks_of(kind)
    assert read(tmp_path, whole).tensors["w"].bytes == 2 * _TYPES[kind][2]
    with pytest.raises(InputError) as caught:
        read(tmp_path, whole[:-1])
    assert caught.value.code == "E-truncated"


HUGE = 2**60
LIES = {
    "empty file": (b"", "E-truncated"),
    "too short": (b"GGUF\3\0\0\0", "E-truncated"),
    "other magic": (b"GGML" + gguf()[4:], "E-header"),
    "version 1": (gguf(version=1), "E-header"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "E-header"),
    "2^60 pairs": (gguf(counts=(0, HUGE)), "E-truncated"),
    "2^60 tensors": (gguf(counts=(HUGE, 0)), "E-truncated"),
    "2^64 - 1 of both": (gguf(counts=(2**64 - 1, 2**64 - 1)), "E-truncated"),
    "more pairs than there are": (gguf([pair("a", U32, bytes(4))], counts=(0, 2)), "E-header"),
    "key longer than the file": (gguf([struct.pack("<Q", HUGE) + b"abc"]), "E-truncated"),
    "key of 1 MB": (gguf([pair("k" * 10**6, U32, bytes(4))]), "E-header"),
    "text longer than the file": (gguf([pair("a", STRING, struct.pack("<Q", HUGE))]), "E-truncated"),
    "array longer than the file": (gguf([pair("a", ARRAY, struct.pack("<IQ", U32, HUGE))]), "E-truncated"),
    "string array longer than the file": (gguf([pair("a", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "E-truncated"),
    "string in an array past the end": (
        gguf([pair("a", ARRAY, struct.pack("<IQQ", STRING, 1, HUGE))]),
        "E-truncated",
    ),
    "array of arrays": (gguf([pair("a", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U32, 0))]), "E-header"),
    "unknown type": (gguf([pair("a", 13, bytes(8))]), "E-header"),
    "unknown type in an array": (gguf([pair("a", ARRAY, struct.pack("<IQ", 99, 0))]), "E-header"),
    "key that is not UTF-8": (gguf([text(b"\xff\xfe") + struct.pack("<II", U32, 0)]), "E-header"),
    "text that is not UTF-8": (gguf([pair("a", STRING, text(b"\xff"))]), "E-header"),
    "one key twice": (gguf([pair("a", U32, bytes(4))] * 2), "E-header"),
    "alignment 0": (gguf([pair("general.alignment", U32, bytes(4))]), "E-header"),
    "alignment that is text": (gguf([pair("general.alignment", STRING, text("32"))]), "E-header"),
    "alignment 2^63": (gguf([pair("general.alignment", U64, struct.pack("<Q", 2**63))]), "E-header"),
    "part of a split model": (gguf([pair("split.count", 2, struct.pack("<H", 3))]), "E-header"),
    "2^32 - 1 dimensions": (gguf([], [text("w") + struct.pack("<I", 2**32 - 1) + bytes(40)]), "E-header"),
    "no dimension": (gguf([], [text("w") + struct.pack("<IIQ", 0, 0, 0) + bytes(9)]), "E-header"),
    "2^60 x 2^60 values": (gguf([], [tensor("w", (HUGE, HUGE))], data=64), "E-header"),
    "2^60 x 0 x 2^60 values": (gguf([], [tensor("w", (HUGE, 0, HUGE))], data=64), "E-header"),
    "2^40 values": (gguf([], [tensor("w", (2**40,))], data=64), "E-truncated"),
    "unknown tensor type": (gguf([], [tensor("w", (4,), 4)], data=64), "E-header"),
    "a third of a block": (gguf([], [tensor("w", (11, 3), 2)], data=64), "E-header"),
    "unaligned offset": (gguf([], [tensor("w", (4,), 0, 4)], data=64), "E-header"),
    "offset past the end": (gguf([], [tensor("w", (4,), 0, 2**63 // 32 * 32)], data=64), "E-truncated"),
    "overlap": (gguf([], [tensor("v", (16,)), tensor("w", (16,), 0, 32)], data=128), "E-header"),
    "one name twice": (gguf([], [tensor("w", (4,)), tensor("w", (4,), 0, 32)], data=128), "E-header"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "E-header"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_at_once_and_in_little_memory(tmp_path: Path, name: str) -> None:
    content, code = LIES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(InputError) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(content) + 1_000_000
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 5
    assert caught.value.code == code
    assert caught.value.status == 3


def test_a_sound_file_of_the_same_making_is_read(tmp_path: Path) -> None:
    """What the lies above are told with is sound where it does not lie."""
    content = gguf(
        [pair("general.alignment", U32, struct.pack("<I", 32)), pair("split.count", 2, struct.pack("<H", 1))],
        [tensor("v", (16,)), tensor("w", (32, 3), 2, 64)],
        data=128,
    )
    assert list(read(tmp_path, content).tensors) == ["v", "w"]


def test_every_cut_of_a_sound_file_is_refused(tmp_path: Path) -> None:
    content = gguf(
        [
            pair("general.architecture", STRING, text("llama")),
            pair("tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("ab") + text("c")),
            pair("scores", ARRAY, struct.pack("<IQ2f", F32, 2, 0, 1)),
        ],
        [tensor("token_embd.weight", (8, 4))],
        data=128,
    )
    read(tmp_path, content)
    for length in range(len(content)):
        with pytest.raises(InputError) as caught:
            read(tmp_path, content[:length])
        assert caught.value.code == "E-truncated", length


def test_millions_of_strings_are_skipped_quickly_or_refused(tmp_path: Path) -> None:
    count = 1_000_000
    many = struct.pack("<IQ", STRING, count) + bytes(8 * count)
    start = time.perf_counter()
    assert read(tmp_path, gguf([pair("a", ARRAY, many)])).metadata == {}
    assert time.perf_counter() - start < 10
    path = tmp_path / "sparse.gguf"
    for counts in ((1_000_001, 0), (0, 1_000_001)):
        with path.open("wb") as file:
            file.write(gguf(counts=counts))
            file.truncate(10**8)
        with pytest.raises(InputError, match="the limit is 1000000"):
            read_gguf(path)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 10**9)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 8 * 10**9)  # a hole: no disk is used
    start = time.perf_counter()
    with pytest.raises(InputError, match="strings") as caught:
        read_gguf(path)
    assert caught.value.code == "E-header"
    assert time.perf_counter() - start < 5
