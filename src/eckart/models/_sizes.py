"""Sizes in bytes, as people write them and read them."""

from __future__ import annotations

import re
from decimal import Decimal

from eckart.errors import UsageError

__all__ = ["format_size", "parse_size"]

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str | int) -> int:
    """Return the whole number of bytes, at least 1, that `text` stands for.

    kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of 1024; the B may be left out, capitals do not matter,
    and a bare number counts bytes. A fraction of a byte is dropped. UsageError: anything else.

    >>> parse_size("1.5GB"), parse_size("2 GiB"), parse_size("800")
    (1500000000, 2147483648, 800)
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?(?:([kmgt])(i?))?b?", str(text).strip().lower())
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(Decimal(number) * (1024 if binary else 1000) ** _POWERS[prefix or ""])
    if size < 1:
        raise UsageError(f"{str(text)[:40]!r} is not a size", fix="write it as 5GB, 800MB or 2GiB", code="E-size")
    return size


def format_size(size: int) -> str:
    """Return `size` bytes in decimal units with at least the two leading digits.

    >>> format_size(4_900_000_000), format_size(98_362_432), format_size(999)
    ('4.9 GB', '98 MB', '999 B')
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.2g} {unit}" if value < 9.95 and unit != "B" else f"{value:,.0f} {unit}"
