"""From what a rule found to its answer: the margin, what no rule could see, and a sentence with all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._rank import _noise_law as law
from eckart._rank._answer import Margin, Rank

__all__ = ["Finding", "answer"]

SEEN = 1.5  # BBP thresholds from which a component is detected in finite matrices, by any rule


@dataclass(frozen=True, eq=False)
class Finding:
    """What a rule found in the values s, descending, of an m x n matrix or of a scaled one.

    threshold, level: what s must exceed and the deviation of the noise, in the unit of s; None: the rule has none.
    by: the rule in words. noise: the name of the noise model; about: what is known of it. of: whose values s are.
    sigma: the deviation of the noise in the matrix's unit. unit: of s in the matrix's; 1 where s are of a scaled one.
    """

    rank: int
    rule: str
    by: str
    noise: str
    about: str
    s: Any
    shape: tuple[int, int]
    of: str
    threshold: float | None = None
    level: float | None = None
    sigma: float | None = None
    unit: float = 1.0


def answer(found: Finding, votes: Mapping[str, int]) -> Rank:
    """Return what was found as a Rank with its reason."""
    others = {rule: rank for rule, rank in votes.items() if rule != found.rule}
    margin, detectable, undetectable = _margin(found), None, 0
    if found.level is not None and found.level > 0:
        detectable, undetectable = _detectability(found, found.level)
    threshold = None if found.threshold is None else found.threshold * found.unit
    return Rank(
        found.rank,
        rule=found.rule,
        reason=_sentence(found, threshold, margin, detectable, undetectable, others),
        noise=found.noise,
        sigma=found.sigma,
        threshold=threshold,
        margin=margin,
        detectable=detectable,
        undetectable=undetectable,
        votes=others,
    )


def _margin(found: Finding) -> Margin:
    if not found.threshold:
        return Margin()
    kept = float(found.s[found.rank - 1]) / found.threshold if found.rank else None
    following = float(found.s[found.rank]) / found.threshold if found.rank < len(found.s) else None
    return Margin(kept, following)


def _detectability(found: Finding, level: float) -> tuple[float, int]:
    """Return the weakest component that shows, and how many values stand out or are kept that are weaker."""
    beta, scale = law.aspect(found.shape), level * math.sqrt(max(found.shape))
    y = found.s / scale
    least = SEEN * law.bbp_threshold(beta)
    weak = law.strength(y, beta) < least
    shown = (y > law.noise_maximum(found.shape)) | (np.arange(len(y)) < found.rank)
    return least * scale * found.unit, int(np.count_nonzero(weak & shown))


def _sentence(
    found: Finding,
    threshold: float | None,
    margin: Margin,
    detectable: float | None,
    undetectable: int,
    votes: Mapping[str, int],
) -> str:
    level = "" if found.sigma is None else f", deviation {found.sigma:.3g}"
    parts = [
        f"{found.rank} of the {min(found.shape)} components are kept by {found.by}",
        f"noise: {found.noise}{level} ({found.about})",
    ]
    if threshold is not None:
        sides = ("the last value kept", margin.kept), ("the next" if found.rank else "the largest value", margin.next)
        ratios = " and ".join(f"{side} is {ratio:.3g} x" for side, ratio in sides if ratio is not None)
        parts.append(f"of {found.of}, {ratios} the threshold of {threshold:.4g}")
    if detectable is not None:
        weak = f"below {SEEN:g} x the BBP threshold ({detectable:.4g})"
        seen = f"{undetectable} of those that show are {weak}, undetectable: their number is a guess"
        parts.append(seen if undetectable else f"components {weak} are undetectable")
    if votes:
        parts.append("other rules: " + ", ".join(f"{rule} {rank}" for rule, rank in votes.items()))
    return "; ".join(parts) + "."
