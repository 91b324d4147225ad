"""Ranks for every layer within a number of parameters: what is on offer, what is impossible, what is chosen."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._compress._allocate import Choices, least_loss, least_loss_exactly, least_loss_within_both, lower_hulls
from eckart._compress._methods import Method, predicted_loss
from eckart._compress._sharing import as_stack
from eckart._compress._tables import StoredTable, ranks_of_group
from eckart._factorise import Cut
from eckart.errors import BudgetError, UsageError
from eckart.models._model import Layer
from eckart.models._option import RANK_STEP, Option, group_bytes, group_sizes, grouped, largest_useful_rank

__all__ = [
    "Limit",
    "Price",
    "budget_of",
    "choose_ranks",
    "choose_ranks_by_loss",
    "least_within",
    "most_useful_ranks",
    "ranks_on_offer",
    "reason_to_keep",
    "selected",
    "shared_on_offer",
    "smallest",
]

Offers = Mapping[str, Sequence[Option]]
Joint = Mapping[str, Sequence[Mapping[str, Option]]]  # of layers that can share, by the first: options of all at once
Price = Callable[[str, Option], float]  # of a layer, by its name, in the form of an option


@dataclass(frozen=True)
class Limit:
    """What else the layers may cost together at most."""

    price: Price
    most: float


def most_useful_ranks(layer: Layer, formats: Sequence[str]) -> tuple[int, ...]:
    """Return the largest rank that saves numbers in one of these formats; for a table, one a group."""
    if layer.table:
        return tuple(ranks_of_group(size, layer.columns)[-2:][0] for size in group_sizes(layer.rows))
    return (max(largest_useful_rank(form, layer.rows, layer.columns) for form in formats),)


def ranks_on_offer(layer: Layer, method: Method, formats: Sequence[str], step: int = RANK_STEP) -> dict[str, list[Any]]:
    """Return 1 and the multiples of `step` (for uniform ranks, all) that save numbers, for each format.

    For a table, the least ranks alone: which others are worth offering follows from its truncations.
    """
    if layer.table:
        return {"grouped": [tuple(ranks_of_group(size, layer.columns)[0] for size in group_sizes(layer.rows))]}
    step, offer = 1 if method.uniform else step, {}
    for form in formats:
        last = largest_useful_rank(form, layer.rows, layer.columns)
        offer[form] = sorted({k for k in (1, *range(step, last + 1, step)) if k <= last})
    return offer


def shared_on_offer(
    members: Sequence[Layer], dtypes: Sequence[str], step: int, *, timed: bool
) -> list[dict[str, Option]]:
    """Return what layers that read the same input can become as one pair of their stack, at 1 and multiples of `step`.

    timed: whether their time must be known, which is that of a pair that saves numbers in each.
    """
    columns, rows = members[0].columns, sum(one.rows for one in members)
    last = largest_useful_rank("pair", rows, columns)
    if timed:
        last = min(largest_useful_rank("pair", one.rows, columns) for one in members)
    ranks = sorted({k for k in (1, *range(step, last + 1, step)) if k <= last})
    return [as_stack(members, dtype, (k,)) for dtype in dtypes for k in ranks]


def reason_to_keep(layer: Layer, *, tables: bool) -> str:
    """Return why a layer must stay dense, or "". tables: whether embeddings and large heads may change."""
    if layer.kept or tables or not layer.table:
        return layer.kept
    return f"{'an embedding table' if layer.looked_up else 'a large head'}, which this method leaves as it is"


def selected(layers: Mapping[str, Layer], patterns: str | Sequence[str], *, tables: bool) -> dict[str, str]:
    """Return for every layer why it must stay dense, or "" for those that may change.

    patterns: shell patterns, or regular expressions after "re:", on the layers' names; one that begins with "!"
    excludes. tables: whether embeddings and large heads may change. UsageError where nothing is left to compress, or a
    pattern matches no layer.
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    hits = {pattern: {name for name in layers if _matches(name, pattern.removeprefix("!"))} for pattern in given}
    if missed := next((pattern for pattern in given if not hits[pattern]), None):
        raise UsageError(
            f"no layer is named like {missed!r}",
            fix=f"eckart inspect lists the names, for example {next(iter(layers), 'none')!r}",
        )
    wanted = [pattern for pattern in given if not pattern.startswith("!")]
    included = set().union(*(hits[pattern] for pattern in wanted)) if wanted else set(layers)
    excluded = set().union(*(hits[pattern] for pattern in given if pattern.startswith("!")))
    reasons = {}
    for name, layer in layers.items():
        reasons[name] = reason_to_keep(layer, tables=tables) or (
            "" if name in included - excluded else "excluded by layers="
        )
    if all(reasons.values()):
        raise UsageError("no layer is left that could be compressed", fix="widen layers=")
    return reasons


def smallest(offers: Offers, price: Price) -> dict[str, Option]:
    """Return the option of least cost of every layer."""
    return {name: min(options, key=lambda option: price(name, option)) for name, options in offers.items()}


def budget_of(offers: Offers, total: float, least: float, allowed: float, price: Price, asked: str, unit: str) -> float:
    """Return how much the layers in `offers`, dense first in each, may cost together.

    total: cost of the model, of which `allowed` may stay; least: its cost with the smallest options. unit: of the cost,
    for people; a fraction of time is shown in percent. BudgetError: the smallest options are too large.
    """
    fixed = total - sum(price(name, options[0]) for name, options in offers.items())
    if least > allowed:
        form = ".1%" if unit == "of the time" else ",.0f"
        raise BudgetError(
            f"{asked} leaves {allowed:{form}} of {total:{form}} {unit}, but {fixed:{form}} are in what stays dense, "
            f"and the rest takes at least {least - fixed:{form}}",
            fix=f"keep >= {np.ceil(least / total * 1000) / 1000:g}, or let layers= take in more layers",
        )
    return allowed - fixed


def choose_ranks(
    offers: Offers,
    joint: Joint,
    cuts: Mapping[str, Cut],
    method: Method,
    budget: float,
    price: Price,
    limit: Limit | None = None,
) -> dict[str, Option] | None:
    """Return the option of every layer in `offers` such that their cost adds up to at most `budget`.

    joint, limit: what several may become together, and what all may cost besides, for a method that weighs losses; None
    is returned where the limit is out of reach.
    """
    if method.ranks == "uniform":
        return _by_fraction(offers, budget, price, dict.fromkeys(offers, 1.0))
    if method.ranks == "by type":
        return _by_fraction(offers, budget, price, _shares_by_type(offers, cuts, budget, price))
    units = _units(offers, joint, cuts, method, price)
    known = {name: _choices(options, offers, cuts, method, price) for name, options in units.items()}
    if limit is None:
        solve = least_loss_exactly if method.ranks == "search" else least_loss
        chosen: dict[str, int] | None = solve(known, budget)
    else:
        others = {name: np.array([_sum(option, limit.price) for option in options]) for name, options in units.items()}
        chosen = least_loss_within_both(known, budget, others, limit.most)
    return None if chosen is None else _options_of(units, chosen)


def least_within(offers: Offers, budget: float, price: Price, other: Price) -> float:
    """Return about how little the layers can cost by `other` where they cost at most `budget` by `price`."""
    known = {
        name: Choices(*(np.array([float(by(name, option)) for option in options]) for by in (price, other)))
        for name, options in offers.items()
    }
    return _sum({name: offers[name][i] for name, i in least_loss(known, budget).items()}, other)


def choose_ranks_by_loss(
    offers: Offers, joint: Joint, cuts: Mapping[str, Cut], method: Method, most: float, price: Price
) -> dict[str, Option]:
    """Return the options of least cost whose predicted losses add up to at most `most`: the knapsack, turned round."""
    units = _units(offers, joint, cuts, method, price)
    known = {name: _choices(options, offers, cuts, method, price) for name, options in units.items()}
    turned = {name: Choices(choices.losses, choices.costs) for name, choices in known.items()}
    return _options_of(units, least_loss(turned, most))


def _units(
    offers: Offers, joint: Joint, cuts: Mapping[str, Cut], method: Method, price: Price
) -> dict[str, list[dict[str, Option]]]:
    """Return what is chosen for at once, layers alone and layers that can share, and all that these can become.

    Of layers that can share these are, beside what they can become together, those of their own options that are best
    at some price: all that a knapsack without them would choose, but for the rest of the budget.
    """
    offers = _with_tables(offers, cuts, method)
    units = {name: [{name: option} for option in options] for name, options in offers.items()}
    for first, together in joint.items():
        members = list(together[0])
        hulls = lower_hulls([_choices(units.pop(name), offers, cuts, method, price) for name in members])
        units[first] = [
            *({name: offers[name][i] for name, i in zip(members, places, strict=True)} for places in hulls),
            *map(dict, together),
        ]
    return units


def _options_of(units: Mapping[str, Sequence[Mapping[str, Option]]], chosen: Mapping[str, int]) -> dict[str, Option]:
    return {name: option for unit, i in chosen.items() for name, option in units[unit][i].items()}


def _choices(
    options: Sequence[Mapping[str, Option]], offers: Offers, cuts: Mapping[str, Cut], method: Method, price: Price
) -> Choices:
    """Return costs and losses of options of one layer or several; losses count beside the layers as they stay, which
    are the first in `offers`.
    """
    dense = sum(predicted_loss(method, cuts[name], offers[name][0]) for name in options[0])
    losses = [sum(predicted_loss(method, cuts[name], one) for name, one in option.items()) for option in options]
    return Choices(np.array([_sum(option, price) for option in options], dtype=np.float64), np.array(losses) - dense)


def _with_tables(offers: Offers, cuts: Mapping[str, Cut], method: Method) -> Offers:
    """Return the offers with those of tables completed: what is best at some price of a byte."""
    return {
        name: [better for option in options for better in _best_of_groups(option, cuts[name], method)]
        for name, options in offers.items()
    }


def _best_of_groups(least: Option, cut: Cut, method: Method) -> list[Option]:
    """Return, for a table's smallest option of some type, options from the largest to it: each takes one more step in
    one group. Another option is returned alone.
    """
    if least.format != "grouped":
        return [least]
    assert isinstance(cut, StoredTable)
    (rows, columns), dtype = cut.weight.shape, least.dtype
    sizes = group_sizes(rows)

    def point(g: int, k: int) -> tuple[float, float]:
        part, form, place = cut.parts("grouped", [k] * len(sizes))[g]
        return group_bytes(sizes[g], columns, dtype, k), method.scale(part) * part.error(form, dtype, place)

    ranks = [list(reversed(ranks_of_group(size, columns))) for size in sizes]
    points = [np.array([point(g, k) for k in some]).T for g, some in enumerate(ranks)]
    _, *smaller = lower_hulls([Choices(*both) for both in points])  # without the table as it is
    return [
        grouped(rows, columns, cut.bias, dtype, [some[i] for some, i in zip(ranks, at, strict=True)]) for at in smaller
    ]


def _shares_by_type(offers: Offers, cuts: Mapping[str, Cut], budget: float, price: Price) -> dict[str, float]:
    """Return by how much more than others of its type, such as q_proj, each layer is reduced; 1 is the mean of a type.

    In proportion to 1 / log L, L the Frobenius norm of its loss at equal fractions (SVD-LLM v2, NAACL 2025, algorithm
    1), or equally where these have no positive sum.
    """
    fraction = budget / sum(price(name, options[0]) for name, options in offers.items())
    types: dict[str, list[str]] = {}
    for name in offers:
        types.setdefault(name.rpartition(".")[2], []).append(name)
    shares = dict.fromkeys(offers, 1.0)
    for names in types.values():
        chosen = [(name, _largest(name, offers[name], fraction, price)) for name in names]
        parts = [part for name, option in chosen for part in cuts[name].parts(option.format, option.ranks)]
        losses = np.array([part.losses[k] ** 0.5 for part, _, k in parts])
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = 1 / np.log(losses)
        if np.isfinite(scores).all() and (scores > 0).all():
            shares |= dict(zip(names, map(float, len(names) * scores / scores.sum()), strict=True))
    return shares


def _by_fraction(offers: Offers, budget: float, price: Price, shares: Mapping[str, float]) -> dict[str, Option]:
    """Return the largest options that fit and reduce every layer in proportion to its share.

    What is left of the budget buys single ranks.
    """
    chosen = smallest(offers, price)
    low, high = 0.0, 1 / min(shares.values())
    for _ in range(60):
        middle = (low + high) / 2
        trial = {name: _largest(name, options, 1 - middle * shares[name], price) for name, options in offers.items()}
        if _sum(trial, price) > budget:
            low = middle
        else:
            high, chosen = middle, trial
    rest = budget - _sum(chosen, price)
    for name, options in offers.items():
        before = price(name, chosen[name])
        larger = [option for option in options if 0 < price(name, option) - before <= rest]
        if larger:
            chosen[name] = min(larger, key=lambda option: price(name, option))
            rest -= price(name, chosen[name]) - before
    return chosen


def _sum(chosen: Mapping[str, Option], price: Price) -> float:
    return sum(price(name, option) for name, option in chosen.items())


def _largest(name: str, options: Sequence[Option], fraction: float, price: Price) -> Option:
    costs = [price(name, option) for option in options]
    fitting = [i for i, cost in enumerate(costs) if cost <= fraction * costs[0]]
    return options[max(fitting, key=costs.__getitem__) if fitting else int(np.argmin(costs))]


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.search(pattern.removeprefix("re:"), name) is not None
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error
    return fnmatch.fnmatchcase(name, pattern)
