"""The matrices of the benchmarks: made from a seed or from packaged data, and kept in ECKART_CACHE/bench.

A specification is a dictionary that a cell has in its settings: `name`, and the arguments of the function for it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse as sp

from eckart._files import write_whole

__all__ = ["dense", "describe", "sparse"]

VERSION = 1  # a new one where a function below makes something else; kept files of the last are then not used
ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("ECKART_CACHE") or ROOT / ".cache")
WORD = re.compile("[a-z]+")


def sparse(specification: Mapping[str, Any]) -> sp.csr_array:
    """Return the CSR matrix of a specification in float32, from the cache where it is there."""
    text = json.dumps([VERSION, specification], sort_keys=True)
    path = CACHE / "bench" / f"{specification['name']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npz"
    if path.exists():
        return sp.csr_array(sp.load_npz(path))
    arguments = {key: value for key, value in specification.items() if key != "name"}
    A = sp.csr_array(SPARSE[specification["name"]](**arguments), dtype=np.float32)
    A.sum_duplicates()
    A.sort_indices()
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        sp.save_npz(file, A, compressed=False)
    return A


def dense(m: int, n: int, decay: str, seed: int, dtype: str) -> np.ndarray:
    """Return an m x n matrix (m >= n) whose singular values are exact up to rounding: D C [diag(s); 0] C' D'.

    C, C' are orthonormal cosine transforms and D, D' random signs. decay: "slow", s_i = i^(-1/2); "fast",
    s_i = exp(-i/18); or "condition C", from 1 to 1/C in equal ratios.
    """
    rng = np.random.default_rng(seed)
    A = np.zeros((m, n))
    A[:n] = scipy.fft.idct(np.diag(singular_values(n, decay)), axis=1, norm="ortho", overwrite_x=True)
    A *= np.where(rng.random(n) < 0.5, -1.0, 1.0)
    A = scipy.fft.idct(A, axis=0, norm="ortho", overwrite_x=True)
    A *= np.where(rng.random((m, 1)) < 0.5, -1.0, 1.0)
    return np.ascontiguousarray(A, dtype=dtype)


def singular_values(n: int, decay: str) -> np.ndarray:
    i = np.arange(1.0, n + 1)
    if decay == "slow":
        return i**-0.5
    if decay == "fast":
        return np.exp(-i / 18)
    condition = float(decay.removeprefix("condition "))
    return condition ** (-(i - 1) / (n - 1))


def describe(A: Any) -> dict[str, Any]:
    """Return shape, type, number of stored entries, and the first digits of a hash of the values."""
    values = A.data if sp.issparse(A) else np.ascontiguousarray(A.ravel()[:: max(1, A.size // 1_000_000)])
    facts = {"shape": list(A.shape), "type": str(A.dtype), "SHA-256 of values": hashlib.sha256(values).hexdigest()[:12]}
    return facts | ({"non-zeros": int(A.nnz)} if sp.issparse(A) else {})


def topics(documents: int, words: int, tokens: float, count: int, seed: int) -> sp.coo_array:
    """Documents of about `tokens` words: 1 to 3 of `count` topics each, half from the language as a whole; tf-idf.

    Words follow Zipf's law in the language and, in another order, in each topic.
    """
    rng = np.random.default_rng(seed)
    law = np.cumsum(1.0 / np.arange(1, words + 1))
    order = np.array([rng.permutation(words) for _ in range(count + 1)])  # the last one: the language
    length = np.maximum(1, rng.lognormal(np.log(tokens), 0.5, documents)).astype(np.int64)
    document = np.repeat(np.arange(documents), length)
    themes = rng.integers(count, size=(documents, 3))
    themes[:, 2] = np.where(rng.random(documents) < 0.5, themes[:, 0], themes[:, 2])
    theme = themes[document, rng.integers(3, size=len(document))]
    theme[rng.random(len(document)) < 0.5] = count
    word = order[theme, np.searchsorted(law, rng.random(len(document)) * law[-1])]
    A = sp.csr_array((np.ones(len(word)), (document, word)), shape=(documents, words))
    rarity = np.log(documents / np.maximum(1, np.bincount(A.indices, minlength=words)))
    A.data = np.log1p(A.data) * rarity[A.indices]
    return A.tocoo()


def ratings(users: int, items: int, per_user: float, seed: int) -> sp.coo_array:
    """Users who rated about `per_user` items, drawn with a popularity after Pareto; values are standard normal."""
    rng = np.random.default_rng(seed)
    law = np.cumsum(rng.pareto(1.0, items) + 0.05)
    length = rng.poisson(per_user, users)
    user = np.repeat(np.arange(users), length)
    item = np.searchsorted(law, rng.random(len(user)) * law[-1])
    pattern = sp.csr_array((np.ones(len(user), np.float32), (user, item)), shape=(users, items))
    pattern.data = rng.standard_normal(pattern.nnz, dtype=np.float32)
    return pattern.tocoo()


def wordnet() -> sp.coo_array:
    """The pointers between the synsets of WordNet 3.0: 1 where there is one, rows point to columns."""
    folder = CACHE / "wordnet-base" / "share" / "wordnet"
    files = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
    synsets = [
        (kind, line.split(" | ")[0].split())
        for kind, name in files.items()
        for line in _asset(folder / f"data.{name}").read_text(encoding="utf-8").splitlines()
        if not line.startswith("  ")  # the licence
    ]
    number = {(kind, fields[0]): i for i, (kind, fields) in enumerate(synsets)}
    pairs = set()
    for i, (_, fields) in enumerate(synsets):
        start = 4 + 2 * int(fields[3], 16)  # wndb(5WN): offset lexfile type w_cnt (word lex_id)... p_cnt (pointer)...
        pointers = fields[start + 1 : start + 1 + 4 * int(fields[start])]
        pairs |= {(i, number[kind, offset]) for offset, kind in zip(pointers[1::4], pointers[2::4], strict=True)}
    rows, columns = np.array(sorted(pairs)).T
    return sp.coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(synsets), len(synsets)))


def ppmi(window: int, minimum: int, tokens: int | None = None) -> sp.coo_array:
    """max(0, log(c_ij N / (r_i r_j))) of the pairs of words at most `window` apart, of words with `minimum` or more.

    Text: the dictionaries GCIDE and FOLDOC, the glosses of WordNet, An Anarchist FAQ. tokens: only the first so many.
    """
    vocabulary: dict[str, int] = {}
    stream = [vocabulary.setdefault(word, len(vocabulary)) for text in _texts() for word in WORD.findall(text.lower())]
    ids = np.array(stream[:tokens])
    enough = np.bincount(ids, minlength=len(vocabulary)) >= minimum
    renumbered = np.cumsum(enough) - 1
    ids = renumbered[ids[enough[ids]]]
    size = int(enough.sum())
    counts = sp.csr_array((size, size), dtype=np.float64)
    for distance in range(1, window + 1):
        ones = np.ones(len(ids) - distance)
        counts += sp.csr_array((ones, (ids[:-distance], ids[distance:])), shape=(size, size))
    pairs = (counts + counts.T).tocoo()
    total = np.asarray(pairs.sum(axis=0))
    i, j = pairs.coords
    values = np.log(pairs.data) + np.log(total.sum()) - np.log(total[i]) - np.log(total[j])
    positive = values > 0
    return sp.coo_array((values[positive], (i[positive], j[positive])), shape=pairs.shape)


def movielens() -> sp.coo_array:
    """The ratings of MovieLens-100k, 1 to 5, users by films."""
    path = _asset(CACHE / "ml-100k" / "dataset_example" / "ml-100k" / "ml-100k.inter")
    table = np.loadtxt(path, skiprows=1, usecols=(0, 1, 2), dtype=np.int64)
    return sp.coo_array((table[:, 2].astype(np.float32), (table[:, 0] - 1, table[:, 1] - 1)))


def _texts() -> Iterator[str]:
    for name in ("gcide", "foldoc"):
        yield _unzipped(_asset(CACHE / f"dict-{name}" / "share" / "dictd" / f"{name}.dict.dz"))
    for kind in ("noun", "verb", "adj", "adv"):
        data = _asset(CACHE / "wordnet-base" / "share" / "wordnet" / f"data.{kind}").read_text(encoding="utf-8")
        yield "\n".join(gloss for line in data.splitlines() if (gloss := line.partition(" | ")[2]))
    for path in sorted(_asset(CACHE / "anarchism" / "share" / "doc" / "anarchism" / "markdown").iterdir()):
        yield _unzipped(path)


def _unzipped(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")


def _asset(path: Path) -> Path:
    if not path.exists():
        raise SystemExit(f"{path} is missing; `make bench` fetches it (assets/fetch.py)")
    return path


SPARSE: dict[str, Callable[..., sp.coo_array]] = {
    "topics": topics,
    "ratings": ratings,
    "wordnet": wordnet,
    "ppmi": ppmi,
    "movielens": movielens,
}
