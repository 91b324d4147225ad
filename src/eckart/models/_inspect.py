"""What a model is, from the headers of its files alone; no weight is read, neither torch nor transformers imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eckart.errors import InputError
from eckart.models._gguf import GGUF
from eckart.models._safetensors import TensorInfo
from eckart.models._source import Source, resolve

__all__ = ["Inspection", "Matrix", "inspect"]

SCHEMA = "eckart.inspect/1"

_EMBEDDING = re.compile(
    r"(?:.*\.)?(embed_tokens|wte|word_embeddings|shared|tok_embeddings|embed_in|token_embd)\.weight"
)
_HEAD = re.compile(r"(?:\w+\.)?(lm_head|embed_out|output|lm_head\.decoder|cls\.predictions\.decoder)\.weight")
_CLASS_WITH_HEAD = re.compile(r"For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)$|LMHeadModel$")
_NO_MATRIX = re.compile(r"embed(?!_out$)|embd|norm|^(wte|wpe|shared|ln\d*|relative_attention_bias)$|^ln_|_table$")
_WHOLE_NUMBERS = re.compile(r"BOOL|[IU]\d+")


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that could be, or already is, stored in factors or in int8.

    dtype: of its numbers, "I8" beside scales. parameters: numbers stored, scales among them. share: of the model's
    parameters, 0 to 1. rank: of the factors, None of a whole matrix. break_even_rank: mn / (m + n); only a factor pair
    of lower rank stores fewer numbers than the matrix.
    """

    name: str
    rows: int
    columns: int
    dtype: str
    parameters: int
    bytes: int
    share: float
    rank: int | None

    @property
    def break_even_rank(self) -> float:
        return self.rows * self.columns / (self.rows + self.columns)


@dataclass(frozen=True)
class Inspection:
    """A model's kind, size and make-up.

    kind: "huggingface" (a folder with config.json), "eckart" (one whose layers are factored), "safetensors" or "gguf".
    bytes: of the weight files and their index, headers included. parameters: tied weights count once. dtypes: for each,
    how many parameters. tied: groups of names that are one tensor, as far as config.json or the GGUF conventions say.
    remote_code: whether config.json asks for code from the hub to be run, which Eckart never does.
    """

    name: str
    path: str
    kind: str
    architecture: str
    model_type: str
    licence: str
    blocks: int | None
    parameters: int
    bytes: int
    files: int
    dtypes: Mapping[str, int]
    tied: tuple[tuple[str, ...], ...]
    tensors: tuple[TensorInfo, ...]
    matrices: tuple[Matrix, ...]
    remote_code: bool

    def to_json(self) -> dict[str, Any]:
        """Return all of it as strict JSON values; file names are relative to the model's folder."""
        folder = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        plain = {
            key: value for key, value in vars(self).items() if key not in ("tensors", "matrices", "tied", "dtypes")
        }
        return {
            "schema": SCHEMA,
            **plain,
            "dtypes": dict(self.dtypes),
            "tied": [list(group) for group in self.tied],
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "bytes": tensor.bytes,
                    "file": os.path.relpath(tensor.file, folder),
                }
                for tensor in self.tensors
            ],
            "matrices": [{**asdict(m), "break_even_rank": round(m.break_even_rank, 2)} for m in self.matrices],
        }


def inspect(source: str | os.PathLike[str]) -> Inspection:
    """Return what the headers of a model's files say of it; `resolve` says what may be given and what is raised.

    A tensor counts as a matrix that could be compressed if it has two dimensions, both over 1, holds real numbers
    (quantised ones too), and is called `weight` or has no dot in its name, unless its module is by its name an
    embedding, a position or bias table, or a norm. An output head that is tied to the embedding is the embedding.
    """
    found = resolve(source)
    stored = found.weights.tensors
    tied = _tied(found)
    repeated = {name for group in tied for name in [name for name in group if name in stored][1:]}
    distinct = [tensor for tensor in stored.values() if tensor.name not in repeated]
    parameters = sum(tensor.parameters for tensor in distinct)
    dtypes: dict[str, int] = {}
    for tensor in distinct:
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.parameters
    factored = _factored(found, parameters)
    dense = [
        Matrix(t.name, t.shape[0], t.shape[1], t.dtype, t.parameters, t.bytes, t.parameters / parameters, None)
        for t in distinct
        if t.name not in factored and _could_be_compressed(t)
    ]
    return Inspection(
        name=found.name,
        path=str(found.path),
        kind=_kind(found),
        **_description(found),
        parameters=parameters,
        bytes=found.weights.bytes,
        files=len({tensor.file for tensor in stored.values()}),
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        tied=tied,
        tensors=tuple(stored.values()),
        matrices=(*dict.fromkeys(factored.values()), *dense),
        remote_code=bool(found.config and found.config.get("auto_map")),
    )


def _kind(source: Source) -> str:
    if source.is_factored:
        return "eckart"
    return "huggingface" if source.config is not None else "gguf" if source.kind == "gguf" else "safetensors"


def _description(source: Source) -> dict[str, Any]:
    """Return the fields that config.json or the GGUF metadata give; a value of the wrong type counts as absent."""
    if isinstance(source.weights, GGUF):
        name = source.weights.architecture
        blocks = source.weights.metadata.get(f"{name}.block_count")
        described = {"architecture": name, "model_type": name, "blocks": blocks if type(blocks) is int else None}
    else:
        config = source.config or {}
        names, model_type = config.get("architectures"), config.get("model_type")
        counts = (_setting(config, key) for key in ("num_hidden_layers", "n_layer", "num_layers"))
        described = {
            "architecture": names[0] if isinstance(names, list) and names and isinstance(names[0], str) else "",
            "model_type": model_type if isinstance(model_type, str) else "",
            "blocks": next((count for count in counts if type(count) is int), None),
        }
    return {**described, "licence": source.licence}


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of the config, or of the part that describes the text model of a larger one."""
    text = config.get("text_config")
    return config.get(key, text.get(key) if isinstance(text, dict) else None)


def _tied(source: Source) -> tuple[tuple[str, ...], ...]:
    """Return the pair (embedding, output head) where they are one matrix, or nothing.

    They are where config.json has tie_word_embeddings, or is silent on it and a model that needs a head stores none; in
    GGUF where there is no output.weight.
    """
    stored = source.weights.tensors
    embedding = next((name for name in stored if _EMBEDDING.fullmatch(name)), None)
    head = next((name for name in stored if _HEAD.fullmatch(name) and len(stored[name].shape) == 2), None)
    if embedding is None:
        return ()
    if source.kind == "gguf":
        return () if head else ((embedding, "output.weight"),)
    if source.config is None or not _CLASS_WITH_HEAD.search(_description(source)["architecture"]):
        return ()
    said = _setting(source.config, "tie_word_embeddings")
    if not (head is None if said is None else said is True):
        return ()
    if head and stored[head].shape != stored[embedding].shape:
        return ()
    return ((embedding, head or "lm_head.weight"),)


def _factored(source: Source, parameters: int) -> dict[str, Matrix]:
    """Return the factored layers that the config names, each under the names of the tensors that it is stored in.

    InputError where the files do not hold them as it says.
    """
    entry = (source.config or {}).get("eckart")
    layers = entry.get("layers") if isinstance(entry, dict) else None
    found: dict[str, Matrix] = {}
    for name, option in layers.items() if source.is_factored and isinstance(layers, dict) else ():
        form = option.get("format") if isinstance(option, dict) else None
        names = _parts(name, option) if form in _MATRICES or form == "dense" else []
        stored = [part for part in map(source.weights.tensors.get, names) if part is not None]
        if not names:
            continue
        shape = _shape_of(form, [part.shape for part in stored]) if len(stored) == len(names) else None
        if shape is None:
            raise InputError(
                f"config.json says that {name[:200]} is stored as {form!r}, but it is not",
                file=str(source.path),
                tensor=name,
                code="E-index",
            )
        stored = [part for part in stored if part.name.startswith(f"{name}.")]  # another layer's are counted there
        count, size = sum(part.parameters for part in stored), sum(part.bytes for part in stored)
        m, n, k = shape
        matrix = Matrix(name, m, n, stored[0].dtype, count, size, count / parameters, k)
        found |= dict.fromkeys((part.name for part in stored), matrix)
    return found


_MATRICES = {"pair": ("down", "up"), "shared": ("down", "up"), "pifa": ("rows", "rest"), "folded": ("rows", "rest")}


def _parts(name: str, option: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that a layer is stored in, its matrices first; [] where it is as it was."""
    form, int8 = option["format"], option.get("dtype") == "int8"
    if form == "dense":
        return [f"{name}.values", f"{name}.scales"] if int8 else []
    homes = [option.get("down_of") or name, name] if form == "shared" else [name, name]
    matrices = [f"{home}.{matrix}" for home, matrix in zip(homes, _MATRICES[form], strict=True)]
    order = [f"{name}.order"] if form == "pifa" else []
    if int8:
        return [f"{matrix}.{leaf}" for leaf in ("values", "scales") for matrix in matrices] + order
    return [f"{matrix}.weight" if form in ("pair", "shared") else matrix for matrix in matrices] + order


def _shape_of(form: object, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int, int | None] | None:
    """Return (m, n, k) of a layer that is stored in parts of these shapes, None where they do not fit together."""
    count = 1 if form == "dense" else 2
    matrices, vectors = shapes[:count], shapes[count:]
    if not all(len(shape) == 2 for shape in matrices):
        return None
    if form == "dense":
        (m, n), k = matrices[0], None
        wanted = [(m,)]
    else:
        (k, n), (first, columns) = matrices
        m = first + k if form in ("pifa", "folded") else first
        scales = [(k,), (first,)] if len(vectors) >= 2 else []
        wanted = scales + ([(m,)] if form == "pifa" else [])
        if columns != k:
            return None
    return (m, n, k) if list(vectors) == wanted else None


def _could_be_compressed(tensor: TensorInfo) -> bool:
    *modules, leaf = tensor.name.split(".")
    return (
        len(tensor.shape) == 2
        and min(tensor.shape) > 1
        and not _WHOLE_NUMBERS.fullmatch(tensor.dtype)
        and (leaf.endswith("weight") or not modules)
        and not _NO_MATRIX.search(modules[-1] if modules else leaf)
    )
