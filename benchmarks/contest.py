"""Several solvers on one matrix: for each the loosest setting that reaches a target, then rounds of taking turns."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.case import Claim, Measured
from benchmarks.solvers import ECKART, SKLEARN, Setting, Solver
from benchmarks.timing import Errors, Timed, claim_ratio, take_turns, timed

__all__ = ["Bars", "contest"]

CONTENDS = 1.5  # a peer slower than this multiple of the best one, in the one run of the search, is not run again
GIVE_UP = 3.0
FALLS = 0.9  # an error that is more than this part of the one before has reached its floor, which rounding sets
SHORT_S = 1.0  # what takes less is run three times in the search, and the shortest time counts
DEFAULTS = "randomized_svd's defaults"
AGAINST = "Eckart, against these defaults"


@dataclass(frozen=True)
class Bars:
    """The ratios wanted at the target `at`; default_*: against randomized_svd as it is called without settings.

    Both of these are of one setting of Eckart's: the loosest whose error is so many times smaller, if a bar is set.
    """

    at: float
    best: float
    default_time: float | None = None
    default_error: float | None = None


@dataclass(frozen=True)
class Entry:
    """The setting with which a solver enters for a target; why: it does not reach it, and this is its nearest."""

    solver: Solver
    label: str
    target: float | None
    setting: Setting
    seconds: float
    error: float
    why: str = ""

    @property
    def key(self) -> str:
        return f"{self.solver.name} {sorted(self.setting.items())}"


def contest(
    A: Any,
    k: int,
    targets: Sequence[float],
    peers: Sequence[Solver],
    others: Sequence[Solver],
    bars: Bars,
    before: Measured | None,
) -> Measured:
    """Return Eckart's ratios to the best of `peers`, for which the bar is, and to each of `others`, at every target.

    before: what this cell found at fewer threads. Its settings are taken over, and only what contends is run.
    """
    solvers = [solver for solver in (ECKART, *peers, *others) if solver.installed]
    absent = ", ".join(solver.name for solver in others if not solver.installed)
    errors = Errors(A)
    warm_up = np.random.default_rng(0).standard_normal((64, 48)).astype(A.dtype)
    for solver in solvers:  # imports and first calls are not timed; a peer that fails on noise may do better on A
        with contextlib.suppress(np.linalg.LinAlgError):
            solver.run(sp.csr_array(warm_up) if sp.issparse(A) else warm_up, 2, {})
    if before is None:
        entries = Search(A, k, errors).entries(solvers, peers, targets, bars)
    else:
        entries = [_entry(row, solvers) for row in before.table]
    contenders = {entry.key: entry for entry in entries if _contends(entry, entries, peers)}
    turns = take_turns({key: partial(e.solver.run, A, k, e.setting) for key, e in contenders.items()})
    found = {key: errors(turn.result) for key, turn in turns.items()}
    entries = [_measured(entry, turns.get(entry.key), found.get(entry.key)) for entry in entries]
    claims = [claim for target in targets for claim in _claims(entries, target, peers, others, bars, turns)]
    table = [_row(entry, turns.get(entry.key)) for entry in entries]
    return Measured(claims, table, {"k": k} | ({"not installed": absent} if absent else {}))


class Search:
    """The search for settings on one matrix; each setting is tried once, whatever the number of targets."""

    def __init__(self, A: Any, k: int, errors: Errors) -> None:
        self.A, self.k, self.errors = A, k, errors
        self.tried: dict[str, Entry] = {}
        self.values: dict[str, Any] = {}

    def entries(
        self, solvers: Sequence[Solver], peers: Sequence[Solver], targets: Sequence[float], bars: Bars
    ) -> list[Entry]:
        """Return an entry for each solver and target; then, if a bar asks for it, one for randomized_svd's defaults,
        and one for Eckart against these.

        targets: the largest first. A ladder is walked while a missing run takes less than CONTENDS times the time of
        the best peer, or, before a peer has reached this target, GIVE_UP times that for the target before.
        """
        found, patience_s = [], math.inf
        for target in targets:
            best_s = math.inf
            for solver in solvers:
                entry = self._loosest(solver, target, min(patience_s, CONTENDS * best_s))
                found.append(entry)
                if solver in peers and not entry.why:
                    best_s = min(best_s, entry.seconds)
            if best_s < math.inf:
                patience_s = GIVE_UP * best_s
        if bars.default_time is not None:
            default = self._try(SKLEARN, {}, DEFAULTS)
            goal = bars.at if bars.default_error is None else default.error / bars.default_error
            found += [default, replace(self._loosest(ECKART, goal, math.inf), label=AGAINST, target=None, why="")]
        return [self._leading(entry) for entry in found]

    def _try(self, solver: Solver, setting: Setting, label: str = "", target: float | None = None) -> Entry:
        entry = Entry(solver, label or solver.name, target, setting, math.nan, math.inf)
        if entry.key not in self.tried:
            self.tried[entry.key] = self._run(entry)
        done = self.tried[entry.key]
        why = done.why or ("misses the target" if target is not None and done.error > target else "")
        return Entry(solver, entry.label, target, setting, done.seconds, done.error, why)

    def _run(self, entry: Entry) -> Entry:
        run = partial(entry.solver.run, self.A, self.k, entry.setting)
        try:
            seconds, factors = timed(run)
            if seconds < SHORT_S:
                seconds = min(seconds, timed(run)[0], timed(run)[0])
        except Exception as error:  # a peer that fails on a matrix loses there, with its own words
            return Entry(
                entry.solver, entry.label, None, entry.setting, 0.0, math.inf, f"{type(error).__name__}: {error}"
            )
        self.values[entry.key] = np.sort(np.asarray(factors[1], np.float64))[::-1]
        return Entry(entry.solver, entry.label, None, entry.setting, seconds, self.errors(factors))

    def _loosest(self, solver: Solver, target: float, patience_s: float) -> Entry:
        """Return the quickest of the ladders' loosest settings that reach the target, or else the nearest to it.

        A ladder ends where a setting missed in more than patience_s, since what follows takes longer, and where the
        error is no longer smaller than at the setting before; Eckart's ends with the target.
        """
        tried = []
        for ladder in solver.ladders(self.k, target):
            last = math.inf
            for setting in ladder:
                tried.append(entry := self._try(solver, setting, target=target))
                hopeless = entry.seconds > patience_s or entry.error > FALLS * last
                if not entry.why or (hopeless and solver is not ECKART):
                    break
                last = entry.error
        reached = [entry for entry in tried if not entry.why]
        return min(reached, key=lambda e: e.seconds) if reached else min(tried, key=lambda e: e.error)

    def _leading(self, entry: Entry) -> Entry:
        """Return the entry, refused where a singular value falls short of the most exact run's by twice the target.

        Small residuals alone do not show that the triplets are the leading ones.
        """
        best = self.values[min(self.values, key=lambda key: self.tried[key].error)]
        if entry.target is None or entry.why or np.all(best - self.values[entry.key] <= 2 * entry.target * best[0]):
            return entry
        why = "leaves out a singular value"
        return Entry(entry.solver, entry.label, entry.target, entry.setting, entry.seconds, entry.error, why)


def _best_s(entries: Sequence[Entry], peers: Sequence[Solver], target: float | None) -> float:
    return min((e.seconds for e in entries if e.target == target and e.solver in peers and not e.why), default=math.inf)


def _contends(entry: Entry, entries: Sequence[Entry], peers: Sequence[Solver]) -> bool:
    near = entry.seconds <= CONTENDS * _best_s(entries, peers, entry.target)
    return entry.solver is ECKART or entry.target is None or (near and not entry.why)


def _measured(entry: Entry, turn: Timed | None, error: float | None) -> Entry:
    """Return the entry with what the rounds found, which decides where they ran."""
    if turn is None or error is None:
        return entry
    missed = "misses the target" if entry.target is not None and error > entry.target else ""
    why = missed if entry.why in ("", "misses the target") else entry.why
    return Entry(entry.solver, entry.label, entry.target, entry.setting, turn.median, error, why)


def _claims(
    entries: Sequence[Entry],
    target: float,
    peers: Sequence[Solver],
    others: Sequence[Solver],
    bars: Bars,
    turns: dict[str, Timed],
) -> list[Claim]:
    """Return the claims at one target; the bars count at bars.at alone."""

    def bar(value: float | None) -> float | None:
        return value if target == bars.at else None

    claims = _against_defaults(entries, bars, turns) if target == bars.at and bars.default_time is not None else []
    at, here = f"at {target:g}", [entry for entry in entries if entry.target == target]
    mine = next(entry for entry in here if entry.solver is ECKART)
    names = f"best of {', '.join(peer.name for peer in peers)}" if len(peers) > 1 else peers[0].name
    first = f"{names} / Eckart, time {at}"
    if mine.why:
        return [Claim(first, None, bar(bars.best), note=f"Eckart {mine.why}: error {mine.error:.2g}"), *claims]
    able = [entry for entry in here if entry.key in turns and not entry.why]
    for entry in reversed(able):
        if entry.solver in others:
            what = f"{entry.label} / Eckart, time {at}"
            claims.insert(0, Claim(what, **claim_ratio(turns[entry.key], turns[mine.key])))
    if rivals := [entry for entry in able if entry.solver in peers]:
        best = min(rivals, key=lambda entry: entry.seconds)
        note = f"best: {best.label}" if len(peers) > 1 else ""
        ratio = claim_ratio(turns[best.key], turns[mine.key])
        return [Claim(first, wanted=bar(bars.best), note=note, **ratio), *claims]
    return [Claim(first, None, note="no peer reaches the target"), *claims]


def _against_defaults(entries: Sequence[Entry], bars: Bars, turns: dict[str, Timed]) -> list[Claim]:
    """Return what one setting of Eckart's gains on randomized_svd's defaults, in time and in error."""
    theirs, mine = (next(entry for entry in entries if entry.label == label) for label in (DEFAULTS, AGAINST))
    times = claim_ratio(turns[theirs.key], turns[mine.key])
    errors = theirs.error / max(mine.error, np.finfo(float).tiny)
    return [
        Claim(f"{DEFAULTS} / Eckart, time", wanted=bars.default_time, **times),
        Claim(f"{DEFAULTS} / Eckart, error", errors, bars.default_error, note=f"tol {mine.setting['tol']:g}"),
    ]


def _row(entry: Entry, turn: Timed | None) -> dict[str, Any]:
    return {
        "solver": entry.label,
        "target": entry.target,
        "setting": entry.setting,
        "error": entry.error if math.isfinite(entry.error) else None,
        "median s": entry.seconds,
        "rounds": 0 if turn is None else len(turn.seconds),  # 0: the one run of the search
        "remark": entry.why,
    }


def _entry(row: dict[str, Any], solvers: Sequence[Solver]) -> Entry:
    name = {DEFAULTS: SKLEARN.name, AGAINST: ECKART.name}.get(row["solver"], row["solver"])
    solver = next(solver for solver in solvers if solver.name == name)
    error = math.inf if row["error"] is None else row["error"]
    return Entry(solver, row["solver"], row["target"], row["setting"], row["median s"], error, row["remark"])
