"""The rank of a matrix by a rule, or by the rule that its noise calls for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from eckart._arguments import is_real, is_whole
from eckart._rank._answer import Rank
from eckart._rank._data import Data
from eckart._rank._evidence import Evidence, gathered
from eckart._rank._noise_law import bulk_median, hard_threshold
from eckart._rank._noise_model import CUT, noise_model
from eckart._rank._parallel import FLIPS, parallel
from eckart._rank._reason import Finding, answer
from eckart._rank._values import MoreValuesNeeded, Values, evbmf_sigma, evbmf_threshold, tail_sigma
from eckart._rank._whitened import Whitened, whitened
from eckart.errors import UsageError

__all__ = ["RULES", "choose_rank"]

RULES = ("auto", "evbmf", "gavish-donoho", "whitened", "parallel", "energy")
USE_NOISE = ("auto", "evbmf", "gavish-donoho")
VOTE_ENTRIES = 100_000  # of a matrix up to which "auto" also asks the rules that decompose it many times
ASSUMED = "assumed, not tested"


def choose_rank(
    A: Any,
    *,
    rule: str = "auto",
    energy: float | None = None,
    noise: float | None = None,
    shape: tuple[int, int] | None = None,
    seed: int = 0,
) -> Rank:
    """Return how many components of A = low rank + noise stand out of the noise: an int that carries its reason.

    A: what as_matrix takes, as it is (centre it first if its means are no component); an SVD, which "whitened" and
    "parallel" cannot use; or, with shape=(m, n), all singular values of a matrix of that shape.
    rule: "auto" tests whether noise is white, unequal by row or column, or heavy-tailed; divides and cuts accordingly;
    and counts by "evbmf".
    "evbmf": empirical variational Bayes matrix factorisation, for white noise.
    "gavish-donoho": the hard threshold that denoises with the least error, for white noise; it is not made to count.
    "whitened": "evbmf" on columns divided by the deviation of their noise, which is estimated in turn with the rank.
    "parallel": values above the largest one that columns of one size have once their entries get random signs.
    "energy": the smallest k whose components hold this part of ‖A‖_F², 0 to 1; energy= alone chooses it.
    noise: the standard deviation of white noise where it is known. seed: of random signs and start vectors.
    UsageError: another wrong argument, or a rule that needs what was not given. NumericalError: NaN or infinity.

    >>> choose_rank([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]], energy=0.5)
    Rank(1, rule='energy', noise='not used')
    """
    rule = _checked(rule, energy, noise, seed)
    evidence = gathered(A, shape, seed)
    if not evidence.values.s.any() and evidence.numerical_rank is not None:
        return Rank(0, rule=rule, reason="The matrix is zero, so no component is kept.", noise="none")
    if rule == "energy":
        return answer(_energy(evidence, energy), _votes(evidence))
    if noise is None and rule != "parallel" and evidence.noise_free:
        return _noise_free(evidence, rule)
    if rule in ("whitened", "parallel"):
        data = _data(evidence, rule)
        by_rule = _whitened if rule == "whitened" else _parallel
        return answer(by_rule(data, seed), _votes(evidence))
    sigma = None if noise is None else noise / evidence.unit
    if rule != "auto":
        return answer(_white(evidence, rule, sigma, _given_or_assumed(noise)), _votes(evidence, sigma))
    return _auto(evidence, sigma)


def _auto(evidence: Evidence, sigma: float | None) -> Rank:
    """Return the answer of the rule that goes with the noise."""
    data = evidence.data
    if sigma is not None or data is None or data.entries is None:
        return answer(_white(evidence, "evbmf", sigma, _given_or_assumed(sigma)), _votes(evidence, sigma))
    model = noise_model(data, evidence.seed)
    if model.name == "white":
        found = _white(evidence, "evbmf", None, model.tested)
    else:
        changes = [f"divided by the noise of its {' and '.join(model.axes)}"] if model.axes else []
        changes += [f"cut at {CUT:g} deviations from low rank"] if model.heavy else []
        found = _of_fit(model.fit, data, model.name, model.tested, " and ".join(changes))
    votes = _votes(evidence)
    if data.entries.size <= VOTE_ENTRIES:
        votes |= {"whitened": whitened(data, ("columns",), seed=evidence.seed).rank}
        votes |= {"parallel": _parallel(data, evidence.seed).rank}
    return answer(found, votes)


def _white(evidence: Evidence, rule: str, sigma: float | None, about: str) -> Finding:
    """Return the finding of a rule for white noise. sigma: in the unit of the evidence; None: to be estimated."""

    def find(values: Values) -> Finding:
        level, threshold = WHITE[rule](values, sigma)
        return Finding(
            rank=values.above(threshold),
            rule=rule,
            by=rule,
            noise="white",
            about=about,
            s=values.s,
            shape=values.shape,
            of="the matrix",
            threshold=threshold,
            level=level,
            sigma=level * evidence.unit,
            unit=evidence.unit,
        )

    return evidence.ask(find)


def _evbmf(values: Values, sigma: float | None) -> tuple[float, float]:
    """Return the deviation of the noise and the threshold of empirical variational Bayes."""
    level = evbmf_sigma(values) if sigma is None else sigma
    return level, evbmf_threshold(values.beta) * level * math.sqrt(values.long)


def _gavish_donoho(values: Values, sigma: float | None) -> tuple[float, float]:
    """Return the deviation of the noise, by the median value if all are known, else by the tail; and the threshold."""
    best, scale = hard_threshold(values.beta), math.sqrt(values.long)
    if sigma is None and values.complete:
        sigma = float(np.median(values.s)) / (bulk_median(values.beta) * scale)
    level = tail_sigma(values, best) if sigma is None else sigma
    return level, best * level * scale


Thresholds: TypeAlias = Callable[[Values, float | None], tuple[float, float]]
WHITE: dict[str, Thresholds] = {
    "evbmf": _evbmf,
    "gavish-donoho": _gavish_donoho,
}


def _whitened(data: Data, seed: int) -> Finding:
    fit = whitened(data, ("columns",), seed=seed)
    return _of_fit(fit, data, "column-unequal", "allowed for, not tested", "divided by the noise of its columns")


def _of_fit(fit: Whitened, data: Data, noise: str, about: str, changes: str) -> Finding:
    sigma = math.sqrt(float(np.mean(fit.rows**2) * np.mean(fit.columns**2))) * data.unit
    doubt = "" if fit.settled else "; the rank did not settle, and this is the last round's"
    of = f"the matrix {changes}"
    return Finding(
        fit.rank, "whitened", "evbmf", noise, about + doubt, fit.s, data.shape, of, fit.threshold, 1.0, sigma
    )


def _parallel(data: Data, seed: int) -> Finding:
    rank, s, threshold = parallel(data, seed)
    by, of = f"parallel analysis with {FLIPS} draws of signs", "the matrix with columns of one size"
    return Finding(rank, "parallel", by, "symmetric", "it may differ by entry", s, data.shape, of, threshold)


def _energy(evidence: Evidence, energy: float | None) -> Finding:
    def find(values: Values) -> Finding:
        allowed = (1 - float(energy or 0)) * values.energy[0]
        within = np.flatnonzero(values.energy <= allowed * (1 + 4 * evidence.eps))
        if not len(within):
            raise MoreValuesNeeded
        rank = int(within[0])
        held = 1 - values.energy[rank] / values.energy[0]
        try:
            level = evbmf_sigma(values)
        except MoreValuesNeeded:
            level = None
        return Finding(
            rank=rank,
            rule="energy",
            by=f"energy, since they hold {held:.4g} of ‖A‖_F² where {energy:g} was asked",
            noise="not used",
            about="taken to be white in what follows",
            s=values.s,
            shape=values.shape,
            of="the matrix",
            level=level,
            sigma=None if level is None else level * evidence.unit,
            unit=evidence.unit,
        )

    return evidence.ask(find)


def _noise_free(evidence: Evidence, rule: str) -> Rank:
    rank, p = evidence.numerical_rank or 0, min(evidence.shape)
    reason = (
        f"{rank} of {p} singular values are more than rounding; noise would leave none at zero, so there is none to "
        f"measure by {rule}, and the numerical rank is given."
    )
    return Rank(rank, rule=rule, reason=reason, noise="none", sigma=0.0)


def _votes(evidence: Evidence, sigma: float | None = None) -> dict[str, int]:
    """Return what the rules say that need no more than the values known already."""
    votes = {}
    if not evidence.noise_free or sigma is not None:
        for rule, thresholds in WHITE.items():
            try:
                votes[rule] = evidence.put(partial(_count, thresholds, sigma))
            except MoreValuesNeeded:
                continue
    return votes


def _count(thresholds: Thresholds, sigma: float | None, values: Values) -> int:
    return values.above(thresholds(values, sigma)[1])


def _given_or_assumed(noise: float | None) -> str:
    return ASSUMED if noise is None else "as given"


def _data(evidence: Evidence, rule: str) -> Data:
    data = evidence.data
    if data is None or data.entries is None:
        raise UsageError(
            f"rule = {rule!r} needs the entries of the matrix, and singular values or products were given",
            fix="pass an array or a scipy.sparse matrix, or rule='evbmf'",
        )
    return data


def _checked(rule: Any, energy: Any, noise: Any, seed: Any) -> str:
    """Return the rule that the arguments choose, or raise UsageError."""
    if rule not in RULES:
        raise UsageError(f"rule = {rule!r} is not known", fix=f"pass one of {', '.join(RULES)}")
    if energy is not None:
        if not (is_real(energy) and 0 <= energy <= 1):
            raise UsageError(
                f"energy = {energy!r} is not a part of ‖A‖_F²", fix="pass a number from 0 to 1, such as 0.9"
            )
        if rule not in ("auto", "energy"):
            raise UsageError(f"energy = {energy} means nothing to rule = {rule!r}", fix="leave one of them out")
        rule = "energy"
    elif rule == "energy":
        raise UsageError("rule = 'energy' needs to know how much to keep", fix="pass energy=, such as 0.9")
    if noise is not None:
        if not (is_real(noise) and 0 < noise < math.inf):
            raise UsageError(f"noise = {noise!r} is not a standard deviation", fix="pass a number above 0, or None")
        if rule not in USE_NOISE:
            raise UsageError(
                f"noise = {noise} means nothing to rule = {rule!r}", fix=f"use it with {', '.join(USE_NOISE)}"
            )
    if not is_whole(seed) or seed < 0:
        raise UsageError(f"seed = {seed!r} is not a whole number from 0 on", fix="pass one, such as 0")
    return str(rule)
