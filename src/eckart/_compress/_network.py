"""Compression of what is no language model: the arguments of `compress` that it has, its data, and what is saved."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eckart._compress._chains import check_plan, compressed, planned
from eckart._compress._plan import Plan
from eckart._compress._target import as_target
from eckart._files import refuse_existing
from eckart.errors import EckartError, UsageError
from eckart.models._model import Progress, silent
from eckart.models._network import Batch, Network
from eckart.models._network_times import speed_of
from eckart.models._networks import batches_in, check_name, is_network, open_network, what
from eckart.models._option import DTYPE_BYTES
from eckart.models._safetensors import parse_size

__all__ = ["compress_network", "is_network", "own_arguments", "plan_network"]

ROUNDING = {"float64": 1e-6, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}  # of the largest output


def own_arguments(function: Callable[..., Any], given: Mapping[str, Any], public: Callable[..., Any]) -> dict[str, Any]:
    """Return those of the arguments of a public function that `function` has; UsageError: another one was given."""
    own = inspect.signature(function).parameters
    for name, parameter in inspect.signature(public).parameters.items():
        if name not in own and given[name] != parameter.default:
            raise UsageError(
                f"{name}= has no meaning for {what(given['model'])}",
                fix="drop it; there are " + ", ".join(f"{n}=" for n in own),
            )
    return {name: given[name] for name in own}


def plan_network(
    model: Any,
    keep: float | None,
    size: str | int | None,
    max_loss_increase: float | None,
    cost: str,
    data: Any,
    layers: str | Sequence[str],
    dtype: str | None,
    progress: Progress | None,
    seed: int,
) -> Plan:
    """Return what `compress_network` would do."""
    target = as_target(keep, size, max_loss_increase, cost, "auto")
    network, batches = _opened(model, data, dtype)
    return planned(
        network, batches, target, layers=layers, dtype=dtype or network.dtype, seed=seed, progress=progress or silent
    )


def compress_network(
    model: Any,
    keep: float | None,
    size: str | int | None,
    max_loss_increase: float | None,
    cost: str,
    plan: Plan | str | os.PathLike[str] | None,
    data: Any,
    correct: bool | None,
    layers: str | Sequence[str],
    dtype: str | None,
    out: str | os.PathLike[str] | None,
    max_shard_size: str | int,
    progress: Progress | None,
    seed: int,
) -> Network:
    """Return the compressed network, saved at `out` if that is given.

    EckartError: what was saved did not come back as it was. Nothing is left at `out` after an error.
    """
    progress = progress or silent
    if out is not None:
        check_name(model, Path(out))
        refuse_existing(Path(out))
    if plan is None:
        target = as_target(keep, size, max_loss_increase, cost, "auto")
        network, batches = _opened(model, data, dtype)
        plan = planned(
            network, batches, target, layers=layers, dtype=dtype or network.dtype, seed=seed, progress=progress
        )
    else:
        if (keep, size, max_loss_increase, cost, layers, dtype) != (None, None, None, "params", "*", None):
            raise UsageError(
                "plan= says what every layer becomes, so keep=, size=, max_loss_increase=, cost=, layers= and dtype= "
                "cannot be given with it"
            )
        plan = plan if isinstance(plan, Plan) else Plan.load(os.fspath(plan))
        network, batches = _opened(model, data, plan.dtype)
        plan = check_plan(plan, network)
    small = compressed(network, batches, plan, correct=correct is not False, seed=seed, progress=progress)
    small.plan = plan
    if plan.timing is not None:
        small.measurement = speed_of(network, small)
    if out is not None:
        progress("saving", 0, 1)
        with small.saved(Path(out), max_shard_bytes=parse_size(max_shard_size)) as again:
            _check_reloaded(small, again, batches[0])
        small.path = str(out)
        progress("saving", 1, 1)
    return small


def _opened(model: Any, data: Any, dtype: str | None) -> tuple[Network, Sequence[Batch]]:
    batches = batches_in(data, model)
    network = open_network(model, batches[0])
    if (dtype or network.dtype) not in DTYPE_BYTES:
        raise UsageError(f"dtype {dtype!r} is not known here", fix=f"one of {', '.join(DTYPE_BYTES)}")
    network.given(dtype or network.dtype)  # which raises for a type that it cannot be saved in
    return network, batches


def _check_reloaded(small: Network, again: Network, batch: Batch) -> None:
    """Raise EckartError where what was saved does not answer as the network in memory does."""
    here, there = small.outputs(batch), again.outputs(batch)
    apart, largest = float(abs(here - there).max()), float(abs(here).max())
    if not apart <= ROUNDING[small.plan.dtype] * max(1.0, largest):
        raise EckartError(f"reloaded, the outputs differ by {apart:.3g}; nothing was kept")
