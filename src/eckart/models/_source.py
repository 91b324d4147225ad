"""What a person means by a model: a folder, a file, or a name in the local Hugging Face cache; checked, then opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eckart.errors import InputError, UnsafeInputError
from eckart.models._gguf import GGUF, read_gguf
from eckart.models._option import DTYPE_BYTES
from eckart.models._safetensors import Checkpoint, TensorInfo, array_dtype, open_checkpoint
from eckart.models._safetensors._shards import ECKART_INDEX, INDEX_SUFFIX
from eckart.models._untrusted import member, open_file, read_json

__all__ = ["Source", "resolve"]

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Source:
    """A model on disk, of which every path stays inside its folder and every header agrees with its file.

    kind: "folder" (config: its config.json, None where it has none), "safetensors" (path: the file or the index) or
    "gguf" (path: the file). name: as the person wrote it. weights: the headers of the files that transformers loads.
    """

    kind: Literal["folder", "safetensors", "gguf"]
    path: Path
    name: str
    weights: Checkpoint | GGUF
    config: Mapping[str, Any] | None = None

    @property
    def is_factored(self) -> bool:
        """Whether Eckart wrote the weights, so that only Eckart can make a model of them."""
        index = self.weights.index if isinstance(self.weights, Checkpoint) else None
        return index is not None and index.name == ECKART_INDEX

    @property
    def file_bytes(self) -> int:
        """Bytes on disk of the weight files and their index."""
        return self.weights.bytes

    @property
    def licence(self) -> str:
        """The licence that the GGUF metadata, or the front matter of the folder's model card, names, or ""."""
        if isinstance(self.weights, GGUF):
            return str(self.weights.metadata.get("general.license", ""))
        return _licence(self.path / "README.md") if self.kind == "folder" else ""

    @property
    def floating_dtype(self) -> str:
        """The NumPy name of the floating-point dtype of most stored bytes; "float16" where none is one, as in GGUF.

        Of a factored model it is what its config says: scales and other layers' types may take more bytes.
        """
        said = (self.config or {}).get("dtype")
        if self.is_factored and isinstance(said, str) and said in DTYPE_BYTES:
            return said
        counts: dict[str, int] = {}
        for tensor in self.tensors():
            name = array_dtype(tensor.dtype) if self.kind != "gguf" else ""
            if "float" in name:
                counts[name] = counts.get(name, 0) + tensor.bytes
        return max(counts, key=lambda name: counts[name], default="float16")

    def tensors(self) -> Iterable[TensorInfo]:
        """Iterate over what is stored, in the order of the files."""
        return self.weights.tensors.values()


def resolve(source: str | os.PathLike[str]) -> Source:
    """Return the model that `source` is, every header of it checked; nothing else is read, downloaded or executed.

    source: a model folder, a *.safetensors, *.safetensors.index.json or *.gguf file, or a name such as "org/model" that
    the local Hugging Face cache holds. InputError: E-missing (no such thing), E-kind (not a model), E-pickle (its
    weights are pickled), E-ambiguous, and what `open_checkpoint` and `read_gguf` raise. UnsafeInputError E-path: a file
    that leads outside the model folder, whether by its name or as a symbolic link.
    """
    name = os.fspath(source)
    path = _locate(name)
    if path.is_dir():
        return _folder(path, name)
    if path.name.endswith((".safetensors", INDEX_SUFFIX)):
        return Source("safetensors", path, name, open_checkpoint(path))
    if path.suffix == ".gguf" or _starts_with(path, b"GGUF"):
        return Source("gguf", path, name, read_gguf(path))
    if path.suffix in _PICKLED:
        raise _pickled(path)
    raise InputError(
        f"{path} is not a model file that Eckart reads",
        fix="give a Hugging Face model folder, a .safetensors file, a .safetensors.index.json or a .gguf file",
        file=name,
        code="E-kind",
    )


def _folder(path: Path, name: str) -> Source:
    files = _files(path)
    if any(file.endswith((".safetensors", INDEX_SUFFIX)) for file in files):
        config = read_json(path / "config.json") if "config.json" in files else None
        if config is not None and "adapter_config.json" in files:
            raise InputError(
                f"{path} holds both a model and an adapter",
                why="transformers would load the base model that the adapter names, not this one",
                fix="remove adapter_config.json, or merge the adapter into its base model first",
                file=name,
                code="E-ambiguous",
            )
        return Source("folder", path, name, open_checkpoint(_weights_named(path, config)), config)
    gguf = [file for file in files if file.endswith(".gguf")]
    if len(gguf) == 1:
        return Source("gguf", path / gguf[0], name, read_gguf(path / gguf[0]))
    if gguf:
        raise InputError(
            f"{path} holds {len(gguf)} GGUF files", fix=f"name one, as {path / gguf[0]}", file=name, code="E-ambiguous"
        )
    pickled = [file for file in files if file.endswith(_PICKLED)]
    if pickled:
        raise _pickled(path / pickled[0])
    raise InputError(
        f"{path} holds no weights", why="it has no .safetensors and no .gguf file", file=name, code="E-missing"
    )


def _locate(name: str) -> Path:
    """Return the path that `name` is, or the snapshot of the Hugging Face cache that it names."""
    path = Path(name)
    if name and os.path.exists(path):
        return path
    cache = _hub_cache()
    if re.fullmatch(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?", name, re.ASCII) and "--" not in name and ".." not in name:
        repository = cache / f"models--{name.replace('/', '--')}"
        if (repository / "refs" / "main").is_file():
            return _snapshot(repository)
        fix = f"check the path, or fetch the model first: hf download {name}"
        raise InputError(f"there is no {name} here, and none in {cache}", fix=fix, file=name, code="E-missing")
    raise InputError(f"there is no file or folder {name!r}", fix="check the path", file=name, code="E-missing")


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expanduser(os.path.expandvars(cache)))


def _snapshot(repository: Path) -> Path:
    reference = repository / "refs" / "main"
    with open_file(reference) as (file, _):
        revision = file.read(200).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9A-Za-z]+", revision):
        raise UnsafeInputError(
            f"{reference} names no snapshot: {revision!r}", why="it must be a revision hash", code="E-path"
        )
    snapshot = repository / "snapshots" / revision
    if not snapshot.is_dir():
        raise InputError(f"the snapshot {snapshot} is not there", file=str(snapshot), code="E-missing")
    return snapshot


def _licence(card: Path) -> str:
    if not card.is_file():
        return ""
    with open_file(card) as (file, _):
        lines = file.read(65_536).decode("utf-8", "replace").splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return ""
    front = lines[1 : lines.index("---", 1)]
    named = [line.removeprefix("license:").strip().strip("'\"") for line in front if line.startswith("license:")]
    return named[0] if named else ""


def _weights_named(folder: Path, config: Mapping[str, Any] | None) -> Path:
    """Return the weight file that config.json names for transformers to load, or else the folder, to be searched."""
    named = (config or {}).get("transformers_weights")
    if named is None:
        return folder
    if not isinstance(named, str) or not named.endswith((".safetensors", INDEX_SUFFIX)):
        raise InputError(
            f"config.json names {str(named)[:80]!r} as the weights, which is no safetensors file",
            file=str(folder / "config.json"),
            code="E-kind",
        )
    return member(folder, named, named_in=str(folder / "config.json"))


def _files(folder: Path) -> list[str]:
    """Return the names in the folder, after proof that no link among them leads to a file elsewhere."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}", file=str(folder)) from error
    for entry in entries:
        if entry.is_symlink() and not os.path.isdir(entry):
            member(folder, entry.name, named_in=str(folder))
    return [entry.name for entry in entries]


def _starts_with(path: Path, magic: bytes) -> bool:
    with open_file(path) as (file, _):
        return file.read(len(magic)) == magic


def _pickled(path: Path) -> InputError:
    return InputError(
        f"{path} holds pickled weights, which can run code when they are loaded; it was not loaded",
        fix="get the .safetensors version (hf download ORG/NAME --include '*.safetensors'), or convert the model with "
        "save_pretrained on a machine that you can lose",
        file=str(path),
        code="E-pickle",
    )
