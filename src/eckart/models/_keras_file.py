"""Files of Keras 3: opened after proof that they hold weights and a graph of Keras' own layers, and written whole."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import keras

from eckart._files import cannot_write, refuse_existing
from eckart.errors import InputError, OutputError, UnsafeInputError
from eckart.models._keras_layers import unwarned
from eckart.models._sizes import format_size
from eckart.models._untrusted import json_object, open_file

__all__ = ["open_keras", "written"]

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MAX_CONFIG_BYTES = 50_000_000  # of a graph; one of a thousand layers has about one million
SLACK = 2, 1_000_000  # of the numbers stored: layers may make a few for themselves that no file holds
MAX_EXPANSION = 100  # Keras compresses nothing, and what is this much smaller on disk is made to fill a memory

# what Keras has names for in the modules that layers, models and their settings come from
MODULES = re.compile(
    r"keras\.(activations|constraints|dtype_policies|initializers|layers|losses|metrics|models|ops|optimizers"
    r"|optimizers\.schedules|quantizers|random|regularizers)"
    r"|keras\.src\.(ops|losses|metrics|optimizers)\.\w+|keras\.src\.models\.(functional|sequential)"
    r"|keras\.src\.backend\.\w+\.optimizers\.\w+"
)
TOP = ("DTypePolicy", "Functional", "Model", "Sequential")  # of the module keras itself
PLAIN = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__slice__", "__ellipsis__")
CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")  # which hold, or load, programs
FILES = ("vocabulary", "idf_weights")  # which may name a file to be read


def open_keras(path: Path) -> Any:
    """Return the model in a .keras file; nothing in it is executed.

    InputError: it is missing, broken or from Keras 2. UnsafeInputError: it holds code, classes that are not those of
    Keras, links out of the file, or what is far larger unpacked than it is.
    """
    with open_file(path) as (file, _):
        stored = _check_archive(file, path)
    try:
        with warnings.catch_warnings(), _weights_at_most(SLACK[0] * stored + SLACK[1], path):
            warnings.simplefilter("ignore")
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except UnsafeInputError:
        raise
    except Exception as error:  # of whatever class its parsers raise: the file is a stranger's
        raise InputError(
            f"{path} is no model that Keras {keras.__version__} loads", why=str(error)[:300], file=str(path)
        ) from error


@contextlib.contextmanager
def _weights_at_most(numbers: int, path: Path) -> Iterator[None]:
    """Refuse layers that ask for more numbers together: Keras makes all of them before it reads the first."""
    add_weight, asked = keras.layers.Layer.add_weight, 0

    def counted(layer: Any, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += math.prod(shape or ())
        if asked > numbers:
            raise _unsafe(path, f"its layers ask for {asked:,} numbers, of which the file does not hold half")
        return add_weight(layer, shape, *args, **kwargs)

    keras.layers.Layer.add_weight = counted
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def _check_archive(file: IO[bytes], path: Path) -> int:
    """Return how many numbers the weights in an archive are, after proof that nothing in it can do harm."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive, path)
            _check_config(json_object(archive.read(CONFIG), path), path)
            with archive.open(WEIGHTS) as weights:
                return _check_weights(weights, archive.getinfo(WEIGHTS).file_size, path)
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is broken, or no .keras file, which is a zip archive of {CONFIG}, {METADATA} and {WEIGHTS}",
            why=str(error)[:200],
            fix="load a model of Keras 2 with keras.saving.load_model, and save it as .keras",
            file=str(path),
        ) from error


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    names = [info.filename for info in archive.infolist()]
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in names]:
        raise InputError(f"{path} has no {missing[0]}, so it is no .keras file", file=str(path))
    if len(set(names)) < len(names):
        raise _unsafe(path, "a member is there twice")
    for info in archive.infolist():
        name, parts = info.filename, info.filename.split("/")
        known = name in (CONFIG, METADATA, WEIGHTS) or (parts[0] == "assets" and ".." not in parts and "\\" not in name)
        if not known or not name.isprintable():
            raise _unsafe(path, f"a .keras file has no member {name[:100]!r}")
        if info.file_size > max(MAX_EXPANSION * info.compress_size, MAX_CONFIG_BYTES):
            unpacked, stored = format_size(info.file_size), format_size(info.compress_size)
            raise _unsafe(path, f"{name} is {stored}, and {unpacked} unpacked")
        if name != WEIGHTS and not name.startswith("assets/") and info.file_size > MAX_CONFIG_BYTES:
            raise InputError(f"{name} in {path} is {format_size(info.file_size)}", file=str(path))


def _check_config(config: dict[str, Any], path: Path) -> None:
    """Raise UnsafeInputError where a configuration names anything that is not Keras' own, or that runs programs."""
    config["compile_config"] = None  # is not read
    left: list[Any] = [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
            if any(isinstance(value.get(key), str) for key in FILES):
                raise _unsafe(path, "a layer asks for a file from the disk")
            if "class_name" in value:
                _check_object(value, path)
        elif isinstance(value, list):
            left += value


def _check_object(value: dict[str, Any], path: Path) -> None:
    name, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    if name in PLAIN:
        return
    if name in CODE or name in ("__lambda__", "__typespec__"):
        raise _unsafe(path, f"{name} holds code, or loads it")
    what = value.get("config") if name == "function" else name
    ours = isinstance(module, str) and (
        MODULES.fullmatch(module)
        or (module == "keras" and name in TOP)
        or (module == "builtins" and name == "function" and isinstance(what, str) and what.isidentifier())
    )
    if not ours or registered not in (None, name, what):
        raise UnsafeInputError(
            f"refusing {path}: {str(registered or name)[:100]!r} of {str(module)[:100]!r} is not part of Keras",
            why="its code would have to run",
            fix="load the model yourself, if you trust it, and give the model in place of its path",
            file=str(path),
        )


def _check_weights(file: IO[bytes], size: int, path: Path) -> int:
    """Return how many numbers an HDF5 file has; UnsafeInputError: it reaches out of itself, or declares far more than
    it holds.
    """
    numbers = 0
    seen: set[Any] = set()
    with h5py.File(file, "r") as weights:
        left: list[Any] = [weights]
        while left:
            group = left.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise _unsafe(path, f"{name[:100]!r} in its weights is a link")
                item = group[name]
                place = h5py.h5o.get_info(item.id).addr
                if isinstance(item, h5py.Dataset):
                    if item.external or item.is_virtual:
                        raise _unsafe(path, f"{name[:100]!r} in its weights lies in another file")
                    numbers += item.size or 0
                    if item.nbytes > MAX_EXPANSION * size:
                        raise _unsafe(path, f"{name[:100]!r} declares {format_size(item.nbytes)} in its weights")
                elif isinstance(item, h5py.Group) and place not in seen:
                    seen.add(place)
                    left.append(item)
    return numbers


def _unsafe(path: Path, why: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"refusing {path}: loading it could do harm",
        why=why,
        fix="save the model anew, of layers of Keras alone, with model.save('….keras')",
        file=str(path),
    )


@contextlib.contextmanager
def written(model: Any, path: Path) -> Iterator[Path]:
    """Give a .keras file that becomes `path` when the block ends well, and vanishes when it does not.

    OutputError: it exists already, or cannot be written.
    """
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            with unwarned():
                model.save(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            yield temporary
            os.replace(temporary, path)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error
