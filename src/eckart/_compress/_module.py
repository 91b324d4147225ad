"""Compression of any torch module: the arguments of `compress` that it has, and the folder that it is saved in."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart._compress._plan import Plan
from eckart._compress._target import as_target
from eckart._files import new_folder, refuse_existing
from eckart.errors import EckartError, UsageError
from eckart.models._model import Progress, silent
from eckart.models._option import DTYPE_BYTES
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import TypeIs

    from eckart._compress._network import Found
    from eckart.models._network import Batch
    from eckart.models._torch_network import TorchNetwork

__all__ = ["compress_module", "is_module", "own_arguments", "plan_module"]

ROUNDING = {"float64": 1e-6, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}  # of the largest output


def is_module(model: Any) -> TypeIs[nn.Module]:
    """Return whether a model is a torch module; where torch was not imported, it is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def own_arguments(function: Callable[..., Any], given: Mapping[str, Any], public: Callable[..., Any]) -> dict[str, Any]:
    """Return those of the arguments of a public function that `function` has; UsageError: another one was given."""
    own = inspect.signature(function).parameters
    for name, parameter in inspect.signature(public).parameters.items():
        if name not in own and given[name] != parameter.default:
            raise UsageError(
                f"{name}= has no meaning for a torch module",
                fix="drop it; there are " + ", ".join(f"{n}=" for n in own),
            )
    return {name: given[name] for name in own}


def plan_module(
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
    """Return what `compress_module` would do."""
    _, _, found = _prepared(model, keep, size, max_loss_increase, cost, data, layers, dtype, progress or silent, seed)
    return found.plan


def compress_module(
    model: Any,
    keep: float | None,
    size: str | int | None,
    max_loss_increase: float | None,
    cost: str,
    data: Any,
    correct: bool | None,
    layers: str | Sequence[str],
    dtype: str | None,
    out: str | os.PathLike[str] | None,
    max_shard_size: str | int,
    progress: Progress | None,
    seed: int,
) -> TorchNetwork:
    """Return the compressed network of a torch module, saved in the new folder `out` if one is given.

    EckartError: what was saved did not come back as it was. Nothing is left in `out` after an error.
    """
    from eckart._compress._network import compressed
    from eckart.models._torch_files import load, save

    progress = progress or silent
    if out is not None:
        refuse_existing(Path(out))
    network, batches, found = _prepared(model, keep, size, max_loss_increase, cost, data, layers, dtype, progress, seed)
    small = compressed(network, batches, found, correct=correct is not False, seed=seed, progress=progress)
    small.plan = found.plan
    if out is not None:
        with new_folder(Path(out)) as folder:
            progress("saving", 0, 1)
            save(small, folder, dtype=found.plan.dtype, max_shard_bytes=parse_size(max_shard_size))
            found.plan.save(folder / "eckart_plan.json")
            _check_reloaded(small, load(model, folder), batches[0])
            progress("saving", 1, 1)
        small.path = str(out)
    return small


def _prepared(
    module: Any,
    keep: float | None,
    size: str | int | None,
    max_loss_increase: float | None,
    cost: str,
    data: Any,
    layers: str | Sequence[str],
    dtype: str | None,
    progress: Progress,
    seed: int,
) -> tuple[TorchNetwork, list[Batch], Found]:
    from eckart._compress._network import planned
    from eckart.models._torch_network import TorchNetwork

    target = as_target(keep, size, max_loss_increase, cost, "auto")
    if target.cost == "ms":
        raise UsageError("the time of a torch module is not measured yet", fix="cost='params' or cost='bytes'")
    if isinstance(data, (str, os.PathLike)) or not isinstance(data, Iterable):
        raise UsageError(
            f"data= of a torch module must be batches that it can be called with, not {data!r:.60}", fix=BATCHES
        )
    batches = list(data)
    if not batches:
        raise UsageError("data= has no batch", fix=BATCHES)
    network = TorchNetwork(module, batches[0])
    own = next(str(t.dtype).removeprefix("torch.") for _, t in network.stored() if t.is_floating_point())
    if (dtype or own) not in DTYPE_BYTES:
        raise UsageError(f"dtype {dtype!r} is not known here", fix=f"one of {', '.join(DTYPE_BYTES)}")
    found = planned(network, batches, target, layers=layers, dtype=dtype or own, seed=seed, progress=progress)
    return network, batches, found


BATCHES = "a list of input tensors, or (x for x, y in loader)"


def _check_reloaded(small: TorchNetwork, again: Any, batch: Batch) -> None:
    """Raise EckartError where what was saved does not answer as the network in memory does."""
    from eckart.models._torch_network import TorchNetwork

    here, there = small.outputs(batch), TorchNetwork(again, batch).outputs(batch)
    apart, largest = float((here - there).abs().max()), float(here.abs().max())
    if not apart <= ROUNDING[small.plan.dtype] * max(1.0, largest):
        raise EckartError(f"reloaded, the outputs differ by {apart:.3g}; nothing was kept")
