"""The C library and NumPy give the same answers, and the library is there wherever a compiler works."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eckart import _kernels

DTYPES = ["float16", "bfloat16", "float32", "float64"]
BLOCK_OF_C = 4096  # the block of kernels.c; sizes around its multiples are where an error would sit
NEVER_FINITE = [np.nan, -np.nan, np.inf, -np.inf]


@st.composite
def runs(draw: st.DrawFn) -> np.ndarray:
    """Draw a 1-D array of any floating dtype, mostly finite, with extreme values next to the non-finite ones."""
    dtype = np.dtype(getattr(ml_dtypes, name) if (name := draw(st.sampled_from(DTYPES))) == "bfloat16" else name)
    size = draw(st.one_of(st.integers(0, 40), st.integers(BLOCK_OF_C - 2, BLOCK_OF_C + 2), st.just(3 * BLOCK_OF_C + 7)))
    info = ml_dtypes.finfo(dtype)
    ordinary = np.array([0.0, -0.0, info.max, info.min, info.tiny, info.smallest_subnormal, 1.0], dtype=dtype)
    a = ordinary[np.arange(size) % ordinary.size]
    for index in draw(st.lists(st.integers(0, max(size - 1, 0)), max_size=4 if size else 0)):
        a[index] = draw(st.sampled_from(NEVER_FINITE))
    return a


@pytest.fixture(params=["native", "fallback"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(_kernels, "_library", lambda: (None, "switched off by a test"))
    elif _kernels.loaded() == "fallback":
        pytest.skip(_kernels.where())
    return str(request.param)


def first_by_definition(a: np.ndarray) -> int | None:
    bad = np.flatnonzero(~np.isfinite(np.ascontiguousarray(a).ravel()))
    return int(bad[0]) if bad.size else None


@pytest.mark.parametrize("name", ["native", "fallback"])
def test_native_and_fallback_find_the_index_that_the_definition_gives(name: str) -> None:
    if name == "native" and _kernels.loaded() == "fallback":
        pytest.skip(_kernels.where())
    search = _kernels._native_search if name == "native" else _kernels._numpy_search

    @given(runs())
    def check(a: np.ndarray) -> None:
        assert search(a) == first_by_definition(a)

    check()


@given(a=runs(), data=st.data())
def test_any_layout_gives_the_flat_index_in_c_order(a: np.ndarray, data: st.DataObject) -> None:
    step = data.draw(st.sampled_from([1, 2, 3, -1, -2]))
    columns = data.draw(st.sampled_from([1, 3, 5]))
    table = a[: a.size // columns * columns].reshape(-1, columns)
    for view in (a[::step], table.T, table[:, ::-1], np.asfortranarray(table)):
        expected = first_by_definition(view)
        assert _kernels.first_nonfinite(view) == expected
        view.flags.writeable = False
        assert _kernels.first_nonfinite(view) == expected


def test_every_position_around_a_block_border(kernels: str) -> None:
    a = np.zeros(2 * BLOCK_OF_C + 1, dtype=np.float32)
    for index in (0, 1, BLOCK_OF_C - 1, BLOCK_OF_C, BLOCK_OF_C + 1, 2 * BLOCK_OF_C - 1, 2 * BLOCK_OF_C):
        a[index] = np.inf
        assert _kernels.first_nonfinite(a) == index
        a[index] = 0.0
    assert _kernels.first_nonfinite(a) is None


@pytest.mark.parametrize("order", ["C", "F"])
def test_values_beyond_the_first_block_are_searched_without_a_copy_of_the_whole(
    kernels: str, order: Literal["C", "F"]
) -> None:
    a = np.zeros((40, _kernels.BLOCK + 3), order=order)
    a[-1, -2] = np.nan
    tracemalloc.start()
    try:
        assert _kernels.first_nonfinite(a) == a.size - 2
        assert tracemalloc.get_traced_memory()[1] < 4 * _kernels.BLOCK * a.itemsize < a.nbytes / 8
    finally:
        tracemalloc.stop()


def test_memory_that_is_unaligned_read_only_or_of_the_other_byte_order(kernels: str) -> None:
    bits = bytes(3) + np.array([1.0, np.nan], dtype="<f8").tobytes()
    unaligned = np.frombuffer(bits, dtype="<f8", offset=3)
    assert not unaligned.flags.aligned
    assert not unaligned.flags.writeable
    assert _kernels.first_nonfinite(unaligned) == 1
    assert _kernels.first_nonfinite(np.array([1.0, 2.0, np.inf], dtype=">f4")) == 2
    assert _kernels.first_nonfinite(np.array([1.0, 2.0], dtype=">f4")) is None


def test_shapes_without_an_axis_or_without_a_value(kernels: str) -> None:
    assert _kernels.first_nonfinite(np.array(np.nan)) == 0
    assert _kernels.first_nonfinite(np.array(1.0)) is None
    assert _kernels.first_nonfinite(np.empty((0, 3))) is None


@pytest.mark.parametrize("dtype", ["int8", "uint64", "bool", ml_dtypes.int4])
def test_integers_are_finite(kernels: str, dtype: str | type) -> None:
    assert _kernels.first_nonfinite(np.ones(3, dtype=dtype)) is None


@pytest.mark.parametrize("dtype", ["complex64", "longdouble", ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_other_floating_types_are_searched_by_numpy(kernels: str, dtype: str | type) -> None:
    assert _kernels.first_nonfinite(np.array([1, 2, np.nan], dtype=dtype)) == 2
    assert _kernels.first_nonfinite(np.array([1, 2, 3], dtype=dtype)) is None


def test_a_dtype_without_a_notion_of_finite_is_a_type_error(kernels: str) -> None:
    with pytest.raises(TypeError):
        _kernels.first_nonfinite(np.array([None, 1.0], dtype=object))


def test_the_library_is_native_wherever_a_compiler_works(tmp_path: Path) -> None:
    if os.environ.get("ECKART_EXPECT_NATIVE") == "1" or a_compiler_works(tmp_path):
        assert _kernels.loaded() == "native", _kernels.where()


def test_a_library_of_another_version_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    if _kernels.loaded() == "fallback":
        pytest.skip(_kernels.where())
    monkeypatch.setattr(_kernels, "ABI", _kernels.ABI + 1)
    library, reason = _kernels._library.__wrapped__()
    assert library is None
    assert f"its ABI number is {_kernels.ABI - 1}" in reason


def a_compiler_works(folder: Path) -> bool:
    source = folder / "one.c"
    source.write_text("int one(void) { return 1; }\n")
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    commands = [shlex.split(name) for name in names if shutil.which(shlex.split(name)[0])]
    arguments = ["-shared", "-fPIC", str(source), "-o", str(folder / "one.so")]
    return any(subprocess.run(c + arguments, capture_output=True, check=False).returncode == 0 for c in commands)
