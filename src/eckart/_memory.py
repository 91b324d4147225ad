"""Memory that was freed and is still held."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["give_back"]


def give_back() -> None:
    """Let the C library return to the system what is free, where it keeps that for itself and can be asked (glibc).

    Threads that allocate matrices of different sizes leave holes: without this a calibration held half as much again.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library; no symbols of its own (Windows)
        ctypes.CDLL(None).malloc_trim(0)
