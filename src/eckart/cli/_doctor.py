"""`eckart doctor`: what is installed, what this machine has to offer, and the command that installs what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["diagnose", "diagnosis_shown", "render"]

SCHEMA = "eckart.doctor/1"

_USES = {
    "torch": "torch tensors, layers and gradients",
    "hf": "opening, running, compressing and saving Hugging Face and GGUF models",
    "onnx": "ONNX models",
    "keras": "Keras models",
    "tensorflow": "TensorFlow tensors, and Keras on TensorFlow",
    "jax": "JAX arrays",
    "dask": "Dask arrays, and work spread over machines",
    "zarr": "Zarr arrays",
    "hdf5": "HDF5 data sets",
    "parquet": "Parquet tables",
    "plot": "plots with matplotlib",
    "text": "word vectors in gensim's formats",
}
_RATE_SIZE = 2048  # a matrix of 16 MiB: larger than most caches, multiplied in about 0.1 s on two cores
_RATE_RUNS = 5


def diagnose(*, rate: bool = False) -> dict[str, Any]:
    """Return the document of schema eckart.doctor/1. rate: also measure how fast NumPy multiplies float32 matrices."""
    from eckart import _kernels

    memory_total, memory_free = _memory()
    return {
        "schema": SCHEMA,
        "versions": {"python": platform.python_version(), **_versions()},
        "kernels": _kernels.loaded(),
        "blas": _blas(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_total,
        "memory_available_bytes": memory_free,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "gpu": _gpu(),
        "formats": _formats(),
        "gemm_float32_gflops": round(_gemm_rate(), 1) if rate else None,
    }


def diagnosis_shown(document: Mapping[str, Any]) -> None:
    """Print what `diagnose` found on stdout."""
    from rich.console import Console

    Console().print(render(document))


def render(document: Mapping[str, Any]) -> RenderableType:
    """Return a document of schema eckart.doctor/1 for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from eckart.models._sizes import format_size

    def size(value: int | None) -> str:
        return "unknown" if value is None else format_size(value)

    facts = Table.grid(padding=(0, 2))
    rate = document["gemm_float32_gflops"]
    rows = {
        "versions": ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
        "kernels": {"native": "native (C)", "fallback": "fallback (NumPy and SciPy)"}[document["kernels"]],
        "BLAS": "; ".join(f"{lib['name']} {lib['version']}, {lib['threads']} threads" for lib in document["blas"]),
        "cores": document["cores"],
        "memory": f"{size(document['memory_available_bytes'])} available of {size(document['memory_bytes'])}",
        "disk": f"{size(document['disk_free_bytes'])} free here",
        "GPU": document["gpu"],
        "float32 product": "not measured (--rate measures it)" if rate is None else f"{rate:,.1f} GFLOP/s",
    }
    for name, value in rows.items():
        facts.add_row(Text(name, style="dim"), Text(str(value)))
    extras = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("packages for", "state"):
        extras.add_column(heading, overflow="fold")
    for extra in document["formats"]:
        extras.add_row(Text(extra["use"]), Text("installed" if extra["installed"] else extra["install"]))
    return Group(facts, "", extras)


def _requirements() -> dict[str, list[str]]:
    """Return the packages that Eckart needs, under "", and those that each of its extras adds."""
    found: dict[str, list[str]] = {"": []}
    for line in metadata.requires("eckart") or ():
        requirement, _, marker = line.partition(";")
        named = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        own = re.match(r"eckart\[(.+)\]", requirement)
        if named:
            found.setdefault(extra[1] if extra else "", []).append(own[0] if own else named[0])
    return found


def _packages(extra: str, requirements: Mapping[str, list[str]]) -> list[str]:
    """Return the packages of an extra, those of the extras that it includes among them."""
    packages = []
    for name in requirements.get(extra, ()):
        inner = re.fullmatch(r"eckart\[(.+)\]", name)
        packages += [p for part in inner[1].split(",") for p in _packages(part, requirements)] if inner else [name]
    return packages


def _versions() -> dict[str, str]:
    """Return the version of Eckart and of each package that it or one of its uses needs, where it is installed."""
    requirements = _requirements()
    names = [package for extra in ("", *_USES) for package in _packages(extra, requirements)]
    found = {name: _version(name) for name in ("eckart", *names)}
    return {name: version for name, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _formats() -> list[dict[str, Any]]:
    """Return, for each use that needs packages of its own, which are missing and the command that brings them."""
    built_in: dict[str, Any] = {
        "use": "safetensors, GGUF headers, NumPy and SciPy arrays",
        "extra": None,
        "missing": [],
        "installed": True,
        "install": None,
    }
    found = [built_in]
    requirements = _requirements()
    for extra, use in _USES.items():
        missing = [package for package in _packages(extra, requirements) if _version(package) is None]
        install = f'pip install "eckart[{extra}]"' if missing else None
        found.append({"use": use, "extra": extra, "missing": missing, "installed": not missing, "install": install})
    return found


def _blas() -> list[dict[str, Any]]:
    """Return the linear algebra libraries that NumPy has loaded."""
    import numpy as np  # noqa: F401  (its import loads them)
    from threadpoolctl import threadpool_info

    return [
        {"name": info["internal_api"], "version": info["version"], "threads": info["num_threads"]}
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]


def _memory() -> tuple[int | None, int | None]:
    """Return the bytes of memory that the machine has and that a new process could use; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024


def _gpu() -> str:
    """Say which GPU torch sees. Eckart has not been tested on it in this installation, and says so."""
    if _version("torch") is None:
        return "not looked for: torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{', '.join(names)}: not verified"


def _gemm_rate() -> float:
    """Return the median rate, in 10⁹ operations a second, of float32 products of square matrices (2n³ operations)."""
    import numpy as np

    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((_RATE_SIZE, _RATE_SIZE), dtype=np.float32) for _ in range(2))
    a @ b
    seconds = []
    for _ in range(_RATE_RUNS):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * _RATE_SIZE**3 / statistics.median(seconds) / 1e9
