"""The process of one cell: reads a job from standard input, measures, and writes the result to the file it names.

Its threads were set by whoever started it, in the environment, before any library was loaded.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.case import Claim, Measured

PACKAGES = ("eckart", "numpy", "scipy", "scikit-learn", "fbpca", "primme", "torch")


def main() -> None:
    job = json.load(sys.stdin)
    load = os.getloadavg()[0]
    case = records.load_case(Path(job["folder"]), job["case"])
    measured = case.measure(job["settings"], job["threads"], _measured(job["before"]))
    result = {"measured": dataclasses.asdict(measured), "machine": machine() | {"load_before": round(load, 2)}}
    Path(job["out"]).write_text(json.dumps(result, allow_nan=False), encoding="utf-8")


def _measured(values: dict[str, Any] | None) -> Measured | None:
    if values is None:
        return None
    return Measured(**values | {"claims": [Claim(**claim) for claim in values["claims"]]})


def machine() -> dict[str, Any]:
    """Return the processor, the cores this process may use, memory, versions, and which BLAS kernels are loaded."""
    import threadpoolctl

    from eckart import _kernels

    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: v for name in PACKAGES if (v := _version(name))},
        "blas": sorted({f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in pools}),
        "kernels": _kernels.loaded(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
