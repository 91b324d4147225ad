"""Texts for calibration and evaluation: read, hashed, tokenised and cut into contexts of equal length."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eckart.errors import InputError

__all__ = ["Text", "contexts", "read_text", "read_texts"]


@dataclass(frozen=True)
class Text:
    """name: file name, or what the caller calls it. sha256: of the text as UTF-8."""

    name: str
    content: str
    sha256: str


def read_text(path: str | os.PathLike[str]) -> Text:
    """Return the text of a UTF-8 file; InputError when it is missing, empty or not UTF-8."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the text {path}: {error.strerror}", file=str(path), code="E-missing") from error
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            fix="convert it, for example with iconv -t UTF-8",
            file=str(path),
        ) from error
    if not content.strip():
        raise InputError(
            f"the text {path} is empty", fix="give a text like that the model is for", file=str(path), code="E-empty"
        )
    return Text(path.name, content, hashlib.sha256(data).hexdigest())


def read_texts(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Text]:
    """Return the texts of one path or of several."""
    return [read_text(path) for path in ([data] if isinstance(data, (str, os.PathLike)) else data)]


def contexts(tokenizer: Any, text: Text, *, context: int, count: int, seed: int | None = None) -> torch.Tensor:
    """Return at most `count` pieces of `context` tokens, non-overlapping, (pieces, context), int64.

    seed: None takes the first pieces, a number draws them from the whole text. A text shorter than one context gives
    one shorter piece. InputError when it has fewer than two tokens.
    """
    enough = text.content if seed is not None else text.content[: count * context * _CHARACTERS_PER_TOKEN]
    ids = torch.tensor(tokenizer(enough, verbose=False)["input_ids"], dtype=torch.int64)
    if len(ids) < 2:
        raise InputError(f"the text {text.name} has {len(ids)} tokens; at least 2 are needed", code="E-empty")
    context = min(context, len(ids))
    pieces = ids[: len(ids) // context * context].view(-1, context)
    if seed is None:
        return pieces[:count]
    order = np.random.default_rng(seed).permutation(len(pieces))[:count]
    return pieces[torch.from_numpy(np.sort(order))]


_CHARACTERS_PER_TOKEN = 32  # more than any tokenizer packs into one token on average; only bounds how much is tokenised
