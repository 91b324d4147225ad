"""A network of convolutions and recurrent layers that reads words.

EasyOCR's english_g2 (six full 3 x 3 convolutions, two bidirectional LSTMs, 3.8 million parameters) on words of BBC
news, rendered in six fonts with blur and so much noise that the dense network reads 90 to 95 % of them. It is
calibrated on words of the news, and tested on those of articles that these are not from. Accuracy counts words that are
right in every character; a loss is in points of it. Time is that of a batch of 1 or of 16 images, 224 pixels wide, in
torch, timed in turns with the dense network.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import eckart
from benchmarks.case import Cell, Claim, Measured
from benchmarks.text_models import CACHE, decoded, reader, rendered, words_in

__all__ = ["CODE", "ORDER", "cells", "measure", "together"]

CODE = ("_compress", "_convolutions.py", "_factorise.py", "_linalg.py", "models")
ORDER = 0.8
SMALL, FAST = {"keep": 0.5, "cost": "params"}, {"keep": 0.6, "cost": "ms"}


def cells(tiny: bool) -> list[Cell]:
    base = {"model": "easyocr english_g2", "words": 2000, "calibrated": 256, "noise": 32.0, "width": 224}
    if tiny:
        return [Cell("tiny", base | SMALL | {"batch": 8, "words": 32, "calibrated": 16, "seed": 0}, (2,))]
    small = [Cell(f"half the parameters, seed {s}", base | SMALL | {"batch": 32, "seed": s}, (2,)) for s in (0, 1, 2)]
    fast = [Cell(f"time of a batch of {b}", base | FAST | {"batch": b, "seed": 0}, (2,), 3600.0) for b in (1, 16)]
    return [*small, *fast]


def measure(settings: dict[str, Any], threads: int, before: Measured | None) -> Measured:
    torch.set_num_threads(threads)
    texts, seed, batch = CACHE / "texts", settings["seed"], settings["batch"]
    look = {"noise": settings["noise"], "width": settings["width"]}
    seen = words_in(texts / "bbc-train.txt", settings["calibrated"], seed)
    words = words_in(texts / "bbc-test.txt", settings["words"], seed)
    network = reader()
    data = list(rendered(seen, seed=seed, **look).split(batch))
    images = rendered(words, seed=seed + 1, **look)
    small = eckart.compress(network, settings["keep"], data=data, cost=settings["cost"], seed=seed)
    accuracy = [_accuracy(one, images, words) for one in (network, small.module)]
    row = {
        "parameters kept": small.plan.keep_reached,
        "dense accuracy": accuracy[0],
        "accuracy": accuracy[1],
        "points lost": 100 * (accuracy[0] - accuracy[1]),
        "speed-up": None if small.measurement is None else small.measurement["speedup"],
    }
    layers = [
        {"layer": layer.name, "was": " x ".join(map(str, layer.kernel.shape)), "numbers": layer.dense.params,
         "becomes": " ".join([layer.option.format, *map(str, layer.option.ranks)]), "now": layer.option.params,
         "saved ms": None if layer.saved_ms is None else layer.saved_ms["run"], "kept": layer.kept}
        for layer in small.plan.layers
    ]  # fmt: skip
    return Measured(_claims(row, settings), layers, row)


@torch.no_grad()
def _accuracy(network: torch.nn.Module, images: torch.Tensor, words: Sequence[str]) -> float:
    read = [word for some in images.split(50) for word in decoded(network(some))]
    return statistics.fmean(a == b for a, b in zip(read, words, strict=True))


def _claims(row: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Claim]:
    if row["speed-up"] is None:
        return [Claim("points of accuracy lost", row["points lost"], 1.0, at_most=True)]
    name = f"batch of {settings['batch']}"
    return [
        Claim(f"speed-up, {name}", row["speed-up"], 1.5),
        Claim(f"points of accuracy lost, {name}", row["points lost"], 2.0, at_most=True),
    ]


def together(found: Sequence[tuple[Mapping[str, Any], Measured]]) -> Measured:
    """Return the mean over seeds at half the parameters beside its bar."""
    lost = [one.facts["points lost"] for settings, one in found if settings["cost"] == "params"]
    if not lost:
        return Measured()
    return Measured([
        Claim("points of accuracy lost at half the parameters", statistics.fmean(lost), 1.0, at_most=True,
              low=min(lost), high=max(lost), note=f"{len(lost)} seeds, lowest and highest")
    ])  # fmt: skip
