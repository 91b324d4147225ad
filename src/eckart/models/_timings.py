"""Measured times as data, and the file under ECKART_CACHE that keeps them for one machine, version and dtype."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eckart._files import dump_json, write_whole
from eckart.errors import OutputError
from eckart.models._processor import processor

__all__ = ["RANK_TILE", "Shape", "Store", "Timings"]

SCHEMA = "eckart.latency/1"
RANK_TILE = 16  # the time of a product grows in steps of this many columns of a factor


@dataclass
class Timings:
    """points[call][k]: milliseconds of a call, as Shape.called names it, at rank k, 0 for dense.

    models: for a whole model, under a hash of its shapes, the milliseconds of each phase.
    """

    points: dict[str, dict[int, float]] = field(default_factory=dict)
    models: dict[str, dict[str, float]] = field(default_factory=dict)

    def ms(self, call: str, k: int = 0) -> float:
        """Return the time at rank k, between measured ranks as on a line, beyond them as at the last."""
        known = self.points[call]
        ranks = sorted(known)
        return float(np.interp(-(-k // RANK_TILE) * RANK_TILE, ranks, [known[rank] for rank in ranks]))


class Shape(NamedTuple):
    """What the time of a layer depends on, beside its format. kind: its class."""

    kind: str
    rows: int
    columns: int
    bias: bool

    def called(self, form: str, tokens: int) -> str:
        """Return the name in a table of a call in a format with so many rows."""
        return f"{self.kind} {self.rows}x{self.columns}{'+bias' if self.bias else ''} {form} x{tokens}"


class Store:
    """The times that are known of this machine, and the file that they are kept in; `weight` tells device and dtype."""

    def __init__(self, weight: torch.Tensor) -> None:
        import eckart

        self.machine = {
            "processor": processor() if weight.device.type == "cpu" else torch.cuda.get_device_name(weight.device),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": f"{torch.get_num_threads()} threads",
            "software": f"torch {torch.__version__}, eckart {eckart.__version__}",
            "dtype": str(weight.dtype).removeprefix("torch."),
        }
        cache = os.environ.get("ECKART_CACHE")
        name = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(cache) / "latency" / f"{name}.json" if cache else None
        self.timings = self._read() or Timings()

    def _read(self) -> Timings | None:
        """Return what the file holds, or None for one that is missing, damaged, or of another machine or version."""
        try:
            value = json.loads(self.path.read_bytes()) if self.path else None
            if not isinstance(value, dict) or (value["schema"], value["machine"]) != (SCHEMA, self.machine):
                return None
            points = {str(name): {int(k): ms for k, ms in some.items()} for name, some in value["points"].items()}
            models = {str(name): dict(some) for name, some in value["models"].items()}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return None
        times = [ms for some in (*points.values(), *models.values()) for ms in some.values()]
        right = all(type(ms) is float and math.isfinite(ms) and ms > 0 for ms in times) and all(points.values())
        return Timings(points, models) if right else None

    def write(self) -> None:
        """Keep what is known; a cache that cannot be written only means that it is measured again."""
        if self.path is None:
            return
        known = {name: {str(k): ms for k, ms in some.items()} for name, some in self.timings.points.items()}
        value = {"schema": SCHEMA, "machine": self.machine, "points": known, "models": self.timings.models}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(self.path) as file:
                file.write(dump_json(value).encode())
        except (OSError, OutputError):
            return
