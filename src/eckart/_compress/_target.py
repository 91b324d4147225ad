"""What a compression is to reach, and how its cost is counted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart._compress._plan import ADDITIVE_UNITS
from eckart.errors import UsageError
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    from eckart._compress._methods import Method

__all__ = ["WORKLOADS", "Effort", "Target", "as_effort", "as_target", "check_target"]

COSTS = ("params", "bytes", "ms")
WORKLOADS = {"prefill": ("prefill",), "decode": ("decode",), "both": ("prefill", "decode")}


@dataclass(frozen=True)
class Target:
    """One of keep (a fraction of the cost), size (bytes of the weight files) and loss (most that is predicted).

    cost: what is counted, "params" and "bytes" of an Option, or "ms" of a workload; of time, keep and size may be given
    together.
    """

    cost: str
    keep: float | None = None
    size: int | None = None
    loss: float | None = None
    workload: str = "both"


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


def as_target(
    keep: float | None, size: str | int | None, loss: float | None, cost: str, method: str, workload: str = "both"
) -> Target:
    """Return the target that these arguments of `compress` set; UsageError unless it is one, or a size and a time.

    Method "int8" has but one result, and takes none.
    """
    if method == "int8":
        if (keep, size, loss, cost, workload) != (None, None, None, "params", "both"):
            raise UsageError(
                "method 'int8' stores every layer in int8, which has one size",
                fix="drop keep=, size=, max_loss_increase= and cost=, or the method",
            )
        return Target("bytes")
    if sum(value is not None for value in (keep, None if cost == "ms" and keep is not None else size, loss)) != 1:
        raise UsageError("give one of keep= (a fraction), size= (of the weight files), max_loss_increase= and plan=")
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(
            f"keep = {keep:g} is not a fraction to keep", fix="a number above 0 and at most 1, such as 0.8"
        )
    if loss is not None and not 0 <= loss < math.inf:
        raise UsageError(f"max_loss_increase = {loss:g} cannot be", fix="a number from 0 on, in the unit of the loss")
    if cost not in COSTS:
        raise UsageError(f"cost {cost!r} is not known", fix=f"one of {', '.join(COSTS)}")
    if workload not in WORKLOADS:
        raise UsageError(f"workload {workload!r} is not known", fix=f"one of {', '.join(WORKLOADS)}")
    if cost != "ms" and workload != "both":
        raise UsageError("workload= says which time counts, so it needs cost='ms'")
    if cost == "ms" and keep is None and loss is None:
        raise UsageError("size= alone leaves no time to be kept", fix="with cost='ms' give keep= as well")
    if size is not None:
        return Target("ms" if cost == "ms" else "bytes", keep, parse_size(size), workload=workload)
    return Target(cost, keep=keep, loss=loss, workload=workload)


def check_target(target: Target, method: Method) -> None:
    """Raise UsageError where the method cannot say what a loss of this size would be, or cannot weigh two costs."""
    if target.size is not None and target.keep is not None and method.ranks != "knapsack":
        raise UsageError(
            f"method {method.name!r} weighs no loss against two costs, so it cannot keep to a size and a time at once",
            fix="keep= or size= alone, or method='two-sided'",
        )
    if target.cost == "ms" and method.reshape:
        raise UsageError(
            f"method {method.name!r} changes the model as a whole, whose time is not known before",
            fix="cost='params' or 'bytes'",
        )
    if target.loss is not None and (method.uniform or method.unit not in ADDITIVE_UNITS):
        raise UsageError(
            f"method {method.name!r} predicts no loss that adds up over layers, so max_loss_increase= has no meaning",
            fix="method='two-sided', or keep=",
        )
