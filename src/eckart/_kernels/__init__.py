"""Loops in plain C, called through ctypes without holding the GIL; NumPy gives the same results where none is built.

Adding one: a function in kernels.c, its prototype in `_bind`, the NumPy version beside its caller, and a new ABI number
in both files. `csr` has the products of sparse matrices.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["first_nonfinite", "loaded", "where"]

ABI = 3  # kernels.c says the same; a library left from another version must not be called
BLOCK = 1 << 16  # values copied at a time where the memory is not one aligned, contiguous run: at most 512 KiB

# dtype name -> (function, exponent bits: all ones in an infinity or a NaN)
_EXPONENTS = {
    "float16": ("eckart_first_nonfinite_16", 0x7C00),
    "bfloat16": ("eckart_first_nonfinite_16", 0x7F80),
    "float32": ("eckart_first_nonfinite_32", 0x7F80_0000),
    "float64": ("eckart_first_nonfinite_64", 0x7FF0_0000_0000_0000),
}
_WORDS = {"16": ctypes.c_uint16, "32": ctypes.c_uint32, "64": ctypes.c_uint64}


def first_nonfinite(a: np.ndarray[Any, Any]) -> int | None:
    """Return the flat, C-order index of the first NaN or infinity, or None when every value is finite.

    a: any shape, strides and byte order, also read-only memory; nothing larger than a block is copied. Integers and
    booleans are finite. TypeError: a dtype that has no notion of finite, such as object.
    """
    if a.dtype.kind in "biu":
        return None
    search = _native_search if a.dtype.isnative and a.dtype.name in _EXPONENTS and _library()[0] else _numpy_search
    if a.flags.c_contiguous and a.flags.aligned:
        return search(a.reshape(-1))
    for start in range(0, a.size, BLOCK):
        index = search(a.flat[start : start + BLOCK])
        if index is not None:
            return start + index
    return None


def loaded() -> Literal["native", "fallback"]:
    """Return which of the two does the work: the C library, or NumPy."""
    return "native" if _library()[0] else "fallback"


def where() -> str:
    """Return the path of the C library, or why there is none."""
    return _library()[1]


def _native_search(run: np.ndarray[Any, Any]) -> int | None:
    library = _library()[0]
    name, exponent = _EXPONENTS[run.dtype.name]
    index = int(getattr(library, name)(run.ctypes.data, run.size, exponent))
    return None if index < 0 else index


def _numpy_search(run: np.ndarray[Any, Any]) -> int | None:
    for start in range(0, run.size, BLOCK):
        finite = np.isfinite(run[start : start + BLOCK])
        if not finite.all():
            return start + int(finite.argmin())
    return None


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """Return the library and its path, or None and the reason."""
    suffix = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
    # An editable install keeps the sources and the built library in different folders of one package.
    folders = [Path(folder) for folder in __path__]
    reason = "no C library was built when Eckart was installed"
    for path in (folder / f"eckart_kernels.{end}" for folder in folders for end in dict.fromkeys((suffix, "so"))):
        if path.is_file():
            try:
                return _bind(path), str(path)
            except (OSError, AttributeError, RuntimeError) as error:
                reason = f"{path} cannot be used: {error}; install Eckart again"
    return None, reason


def _bind(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.eckart_abi.argtypes, library.eckart_abi.restype = [], ctypes.c_int32
    if (found := library.eckart_abi()) != ABI:
        raise RuntimeError(f"its ABI number is {found}, not {ABI}")
    for name, _ in _EXPONENTS.values():
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, _WORDS[name.rpartition("_")[2]]]
        function.restype = ctypes.c_int64
    return library
