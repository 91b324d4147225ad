"""Safetensors files that Eckart reads and writes, against the safetensors package, and the sizes that it predicts."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file, save_file

from eckart.errors import EckartError, InputError, OutputError, UsageError
from eckart.models._safetensors import (
    PendingTensor,
    numpy_dtype,
    open_checkpoint,
    parse_size,
    predict_bytes,
    read_array,
    read_header,
    stored_dtype,
    write_sharded,
)
from eckart.models._safetensors._header import DTYPES, size_of
from eckart.models._sizes import format_size

NUMPY_ALONE = ["bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "float64", "int64"]
BY_ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"]
READABLE = [*NUMPY_ALONE, "uint64", "complex64", *BY_ML_DTYPES]


def dtype_called(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name)) if name in BY_ML_DTYPES else np.dtype(name)


def sample(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return an array whose every byte is random (a truth value: 0 or 1), NaN and infinity included."""
    known = dtype_called(dtype)
    top = 2 if dtype == "bool" else 256
    raw = np.random.default_rng(seed).integers(0, top, int(np.prod(shape)) * known.itemsize, np.uint8)
    return raw.view(known).reshape(shape)


def write(folder: Path, arrays: dict[str, np.ndarray], limit: int = 10**9, stem: str = "model") -> int:
    pending = [PendingTensor.of(name, array) for name, array in arrays.items()]
    return write_sharded(folder, pending, stem=stem, max_shard_bytes=limit)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("dtype", READABLE)
def test_what_is_written_is_read_back_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    array = sample(dtype, (3, 5))
    write(tmp_path, {"a.weight": array, "empty": array[:0], "scalar": array[:1, :1].reshape(())})
    checkpoint = open_checkpoint(tmp_path)
    for name, expected in {"a.weight": array, "empty": array[:0], "scalar": array[:1, :1].reshape(())}.items():
        found = checkpoint.array(name)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
        assert not found.flags.writeable


@pytest.mark.parametrize("dtype", READABLE)
def test_the_safetensors_package_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    array = sample(dtype, (4, 6))
    write(tmp_path, {"a": array, "b": sample("float32", (3,))})
    ((name, view),) = [
        item for item in deserialize((tmp_path / "model-00001-of-00001.safetensors").read_bytes()) if item[0] == "a"
    ]
    assert (name, view["dtype"], view["shape"]) == ("a", stored_dtype(dtype), [4, 6])
    assert bytes(view["data"]) == array.tobytes()


@pytest.mark.parametrize("dtype", NUMPY_ALONE)
def test_we_read_what_the_safetensors_package_writes(tmp_path: Path, dtype: str) -> None:
    arrays = {"x": sample(dtype, (7, 3)), "y.z": sample("float32", (2, 2, 2))}
    save_file(arrays, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(arrays)
    for name, array in arrays.items():
        assert checkpoint.array(name).tobytes() == array.tobytes()
        assert checkpoint.array(name).dtype == array.dtype


def test_torch_reads_our_bfloat16_and_float8_as_the_same_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    values = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    arrays = {name: values.astype(dtype_called(name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
    write(tmp_path, arrays)
    loaded = load_torch(tmp_path / "model-00001-of-00001.safetensors")
    for name, array in arrays.items():
        assert loaded[name].dtype == getattr(torch, name)
        np.testing.assert_array_equal(loaded[name].to(torch.float32).numpy(), array.astype(np.float32))


def test_we_read_torchs_bfloat16_as_the_same_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    value = torch.linspace(-2, 2, 35).reshape(5, 7).to(torch.bfloat16)
    save_torch({"w": value}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path).array("w")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), value.float().numpy())


def test_transposed_and_big_endian_arrays_are_written_as_the_same_numbers(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path, {"t": array.T, "big": array.astype(">f4")})
    loaded = load_file(tmp_path / "model-00001-of-00001.safetensors")
    np.testing.assert_array_equal(loaded["t"], array.T)
    np.testing.assert_array_equal(loaded["big"], array)


def test_our_files_are_laid_out_as_transformers_lays_them_out(tmp_path: Path) -> None:
    arrays = {"b": sample("float32", (8, 8)), "a": sample("float16", (8,)), "c": sample("uint8", (5,))}
    write(tmp_path, arrays, limit=260)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 256 + 16 + 5, "total_parameters": 64 + 8 + 5}
    assert index["weight_map"] == {
        "b": "model-00001-of-00002.safetensors",
        "a": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    for shard in tmp_path.glob("*.safetensors"):
        assert int.from_bytes(shard.read_bytes()[:8], "little") % 8 == 0
        with safe_open(shard, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}


def test_metadata_joins_every_header_and_is_counted(tmp_path: Path) -> None:
    pending = [PendingTensor.of("a", sample("float32", (3,))), PendingTensor.of("b", sample("float32", (3,)))]
    more = {"made by": "a test — ü"}
    predicted = predict_bytes(pending, stem="x", max_shard_bytes=12, metadata=more)
    assert write_sharded(tmp_path, pending, stem="x", max_shard_bytes=12, metadata=more) == predicted
    assert bytes_in(tmp_path) == predicted
    for shard in tmp_path.glob("*.safetensors"):
        with safe_open(shard, framework="numpy") as file:
            assert file.metadata() == {"format": "pt", **more}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(READABLE), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 400),
)
def test_predicted_bytes_are_measured_bytes(tmp_path_factory, specs, limit: int) -> None:
    folder = tmp_path_factory.mktemp("written")
    arrays = {name: sample(dtype, shape) for name, (dtype, shape) in specs.items()}
    pending = [PendingTensor.of(name, array) for name, array in arrays.items()]
    predicted = predict_bytes(pending, stem="eckart", max_shard_bytes=limit)
    assert write(folder, arrays, limit, "eckart") == predicted
    assert bytes_in(folder) == predicted
    checkpoint = open_checkpoint(folder)
    assert checkpoint.bytes == predicted
    assert {name: checkpoint.array(name).tobytes() for name in arrays} == {n: a.tobytes() for n, a in arrays.items()}
    for shard in checkpoint.files:
        held = read_header(shard)
        assert len(held) == 1 or sum(tensor.bytes for tensor in held) <= limit
        deserialize(shard.read_bytes())


def test_arrays_are_views_of_the_file_where_it_is_aligned_and_right_where_it_is_not(tmp_path: Path) -> None:
    write(tmp_path, {"odd": sample("uint8", (3,)), "wide": sample("float64", (4,)), "half": sample("float16", (3,))})
    checkpoint = open_checkpoint(tmp_path)
    for name in checkpoint.tensors:
        assert not checkpoint.array(name).flags.owndata, f"{name} was copied"
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    path = tmp_path / "unaligned.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + np.float32([1.5, -2]).tobytes())
    found = read_array(read_header(path)[1])
    assert found.flags.aligned
    np.testing.assert_array_equal(found, [1.5, -2])


def test_reading_one_tensor_of_a_large_file_takes_no_memory_for_the_others(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = 4 * 10**9
    header = json.dumps(
        {
            "big": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, size]},
            "small": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
        }
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole: no disk is used
        file.seek(0, 2)
        file.write(np.float32([3, 4]).tobytes())
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(open_checkpoint(tmp_path).array("small"), [3, 4])
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_one_tensor_at_a_time_is_in_memory_while_writing(tmp_path: Path) -> None:
    size, count = 4_000_000, 8
    pending = [
        PendingTensor(f"w{i}", "F32", (size // 4,), lambda i=i: np.full(size // 4, i, np.float32)) for i in range(count)
    ]
    tracemalloc.start()
    try:
        write_sharded(tmp_path, pending, stem="model", max_shard_bytes=3 * size)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * size
    finally:
        tracemalloc.stop()
    assert open_checkpoint(tmp_path).array("w7")[0] == 7


def test_bytes_may_be_given_in_place_of_an_array(tmp_path: Path) -> None:
    array = sample("bfloat16", (2, 3))
    write_sharded(tmp_path, [PendingTensor("w", "BF16", (2, 3), array.tobytes)], stem="model", max_shard_bytes=10**6)
    assert open_checkpoint(tmp_path).array("w").tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "given_instead",
    [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64), np.zeros((2, 3), np.int32), b"1234", bytes(28)],
)
def test_values_that_are_not_as_announced_are_refused_and_leave_nothing(tmp_path: Path, given_instead) -> None:
    pending = [
        PendingTensor.of("first", sample("float32", (8,))),
        PendingTensor("w", "F32", (2, 3), lambda: given_instead),
    ]
    with pytest.raises(EckartError, match="w was announced as F32"):
        write_sharded(tmp_path, pending, stem="model", max_shard_bytes=32)
    assert list(tmp_path.iterdir()) == []


def test_a_producer_that_fails_leaves_no_shard_behind(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise KeyboardInterrupt

    pending = [PendingTensor.of("a", sample("float32", (4,))), PendingTensor("b", "F32", (4,), fail)]
    with pytest.raises(KeyboardInterrupt):
        write_sharded(tmp_path, pending, stem="model", max_shard_bytes=16)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, {"a": sample("float32", (4,))})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError) as caught:
        write(tmp_path, {"a": sample("float32", (4,), seed=1)})
    assert caught.value.code == "E-exists"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    pending = [PendingTensor("w", "F32", (10**15,), lambda: pytest.fail("was asked for data"))]
    with pytest.raises(OutputError, match="need 4,000,000,000,000,") as caught:
        write_sharded(tmp_path, pending, stem="model", max_shard_bytes=10**9)
    assert caught.value.code == "E-space"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lengths", "letters"),
    [((20_000, 20_000, 200_000), 1), ((4,) * 150, 1000)],
    ids=["in the third shard", "in the index"],
)
def test_a_disk_that_fills_up_while_writing_leaves_nothing_that_looks_like_a_model(
    tmp_path: Path, lengths: tuple[int, ...], letters: int
) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from eckart.errors import OutputError
from eckart.models._safetensors import PendingTensor, write_sharded
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder, letters, *lengths = sys.argv[1:]
pending = [
    PendingTensor.of(f"{i:03}" * int(letters), np.zeros(int(length), np.uint8)) for i, length in enumerate(lengths)
]
try:
    write_sharded(Path(folder), pending, stem="eckart", max_shard_bytes=4)
except OutputError as error:
    print(error.code, error.status)
"""
    arguments = [str(number) for number in (letters, *lengths)]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["E-space", "5"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "no tensor"),
        ([("a", "F32", (1,)), ("a", "F32", (1,))], "second tensor"),
        ([("__metadata__", "F32", (1,))], "second tensor"),
        ([("a", "float32", (1,))], "no float32 tensor"),
        ([("a", "F4", (3,))], "no F4 tensor"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tensors, message: str) -> None:
    pending = [PendingTensor(*spec, lambda: b"") for spec in tensors]
    with pytest.raises(UsageError, match=message):
        predict_bytes(pending, stem="model", max_shard_bytes=100)


def test_every_dtype_of_the_format_is_known_by_its_size() -> None:
    for name in DTYPES:
        size = size_of(name, (16, 8))
        header = json.dumps({"a": {"dtype": name, "shape": [16, 8], "data_offsets": [0, size]}}).encode()
        ((_, view),) = deserialize(len(header).to_bytes(8, "little") + header + bytes(size))  # refuses a wrong size
        assert view["dtype"] == name
        if DTYPES[name].numpy:
            assert numpy_dtype(name).itemsize * 8 == DTYPES[name].bits
            assert stored_dtype(numpy_dtype(name).name) == name


def test_packed_values_are_described_but_not_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["a"].parameters == 4
    with pytest.raises(InputError, match="F4") as caught:
        checkpoint.array("a")
    assert caught.value.code == "E-dtype"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("5 gb", 5 * 10**9),
        ("800MB", 8 * 10**8),
        ("2GiB", 2 * 2**30),
        ("1.5kB", 1500),
        ("1.5KiB", 1536),
        ("3T", 3 * 10**12),
        ("7", 7),
        ("7B", 7),
        (12, 12),
        ("0.1GB", 10**8),
    ],
)
def test_sizes_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "5XB", "-5GB", "0", "0GB", "1e9", "5 G B", "5iB", "nan", "٥GB", "5,5GB", "9" * 40, "0.5B"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write it as 5GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (999_600, "1 MB"), (4.9e9, "4.9 GB"), (10**15, "1,000 TB")],
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert format_size(int(size)) == text
