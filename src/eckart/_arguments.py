"""Arguments that several public functions take, checked at the border."""

from __future__ import annotations

import numbers
from typing import Any

from eckart.errors import RankError, UsageError

__all__ = ["checked_fraction", "checked_rank", "is_real", "is_whole"]


def checked_rank(k: Any, largest: int, of: str) -> int:
    """Return k as an int. RankError, which names what k was asked of: not a whole number from 0 to the largest."""
    if not is_whole(k):
        raise RankError(f"k = {k!r} is not a whole number", fix=f"pass 0 <= k <= {largest}, or error=")
    if k < 0 or k > largest:
        raise RankError(
            f"k = {k} singular values asked of {of}, which has at most {largest}",
            fix=f"pass 0 <= k <= {largest} or error=",
        )
    return int(k)


def checked_fraction(error: Any) -> float:
    """Return a relative Frobenius error as a float. UsageError: it is not a number from 0 to 1."""
    if not (is_real(error) and 0 <= error <= 1):
        raise UsageError(f"error = {error!r} is not a part of ‖A‖_F", fix="pass a number from 0 to 1, such as 0.1")
    return float(error)


def is_real(x: Any) -> bool:
    """Say whether x is a real number; True and False are not."""
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def is_whole(x: Any) -> bool:
    """Say whether x is an integer; True and False are not."""
    return isinstance(x, numbers.Integral) and not isinstance(x, bool)
