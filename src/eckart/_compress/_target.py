"""What a compression is to reach, and how its cost is counted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart._compress._plan import ADDITIVE_UNIT
from eckart.errors import UsageError
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    from eckart._compress._methods import Method

__all__ = ["Effort", "Target", "as_effort", "as_target", "check_target"]

COSTS = ("params", "bytes")


@dataclass(frozen=True)
class Target:
    """One of keep (a fraction of the cost), size (bytes of the weight files) and loss (most that is predicted).

    cost: "params" or "bytes", the attribute of an Option that is counted.
    """

    cost: str
    keep: float | None = None
    size: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Effort:
    """How long to train: a number of steps, or 0, and then minutes."""

    minutes: float = 0.0
    steps: int = 0


def as_effort(recover: float | str) -> Effort:
    """Return what minutes, or words such as "30" or "400 steps", ask for; UsageError: neither."""
    words = re.fullmatch(r"\s*([0-9.]+)\s*(steps?|minutes?|min|)\s*", str(recover))
    try:
        number = float(words[1]) if words else math.nan
    except ValueError:
        number = math.nan
    counted = words is not None and words[2].startswith("step")
    if not 0 < number < math.inf or (counted and number != int(number)):
        raise UsageError(f"recover = {recover!r} is no time", fix='minutes, such as 30, or "400 steps"')
    return Effort(steps=int(number)) if counted else Effort(minutes=number)


def as_target(keep: float | None, size: str | int | None, loss: float | None, cost: str, method: str) -> Target:
    """Return the target that these arguments of `compress` set; UsageError unless they set just one.

    Method "int8" has but one result, and takes none.
    """
    if method == "int8":
        if (keep, size, loss, cost) != (None, None, None, "params"):
            raise UsageError(
                "method 'int8' stores every layer in int8, which has one size",
                fix="drop keep=, size=, max_loss_increase= and cost=, or the method",
            )
        return Target("bytes")
    if sum(value is not None for value in (keep, size, loss)) != 1:
        raise UsageError("give one of keep= (a fraction), size= (of the weight files), max_loss_increase= and plan=")
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(
            f"keep = {keep:g} is not a fraction to keep", fix="a number above 0 and at most 1, such as 0.8"
        )
    if loss is not None and not 0 <= loss < math.inf:
        raise UsageError(f"max_loss_increase = {loss:g} cannot be", fix="a number from 0 on, in nats a token")
    if cost not in COSTS:
        raise UsageError(f"cost {cost!r} is not known", fix=f"one of {', '.join(COSTS)}")
    if size is not None:
        return Target("bytes", size=parse_size(size))
    return Target(cost, keep=keep, loss=loss)


def check_target(target: Target, method: Method) -> None:
    """Raise UsageError where the method cannot say what a loss of this size would be."""
    if target.loss is not None and (method.uniform or method.unit != ADDITIVE_UNIT):
        raise UsageError(
            f"method {method.name!r} predicts no loss in {ADDITIVE_UNIT}, so max_loss_increase= has no meaning",
            fix="method='two-sided', or keep=",
        )
