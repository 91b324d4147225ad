"""A torch network on disk: its tensors as safetensors, and a small JSON file that says which layers are chains."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart._files import dump_json, write_whole
from eckart.errors import InputError, RankError
from eckart.models._batch_norms import folded_places_, is_norm
from eckart.models._composite import open_at_
from eckart.models._factored_convolutions import KERNELS, kernel_of
from eckart.models._kernel import Kernel, stages
from eckart.models._recurrent import Recurrent
from eckart.models._safetensors import Checkpoint, open_checkpoint, read_array
from eckart.models._safetensors._header import stored_dtype
from eckart.models._safetensors._write import PendingTensor, write_sharded
from eckart.models._tensors import bytes_in, dtype_name
from eckart.models._torch_modules import placeholder, stored, twin
from eckart.models._torch_network import TorchNetwork
from eckart.models._untrusted import read_json

__all__ = ["load", "save"]

SCHEMA = "eckart.module/1"
SIDECAR = "eckart.json"


def save(network: TorchNetwork, folder: Path, *, max_shard_bytes: int) -> int:
    """Write tensors, in the type of the plan, the plan and a sidecar into a folder; return the bytes of the tensors'
    files, index included. OutputError: see `write_sharded`.
    """
    layers = {name: {"format": form, "ranks": list(ranks)} for name, (form, ranks) in network.replaced.items()}
    sidecar = {"schema": SCHEMA, "module": network.name, "folded": network.folded, "layers": layers}
    with write_whole(folder / SIDECAR) as file:
        file.write(dump_json(sidecar).encode())
    network.plan.save(folder / "eckart_plan.json")
    tensors = [_pending(name, tensor, network.plan.dtype) for name, tensor in stored(network.module)]
    return write_sharded(folder, tensors, stem="model", max_shard_bytes=max_shard_bytes)


def _pending(name: str, tensor: torch.Tensor, dtype: str) -> PendingTensor:
    target = dtype if tensor.is_floating_point() else dtype_name(tensor)
    return PendingTensor(name, stored_dtype(target), tuple(tensor.shape), partial(bytes_in, tensor, target))


def load(module: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Return a module like the one given, but compressed: with the layers and the weights that `compress` saved.

    module: as it was before, with any weights; it is not changed. folder: what `compress(module, …, out=folder)` wrote.
    Types and device are those of the module. InputError: the folder is incomplete or broken, or of another module.
    """
    path = Path(folder)
    written = read_json(path / SIDECAR)
    if written.get("schema") != SCHEMA or not isinstance(written.get("layers"), dict):
        raise InputError(
            f"{path / SIDECAR} has schema {written.get('schema')!r}, this Eckart reads {SCHEMA!r}", file=str(path)
        )
    made = twin(module)
    _fold_(made, written.get("folded"), path)
    for name, option in written["layers"].items():
        open_at_(made, name)
        owner, _, leaf = name.rpartition(".")
        modules = dict(made.named_modules())
        recurrent = modules.get(owner)
        if isinstance(recurrent, Recurrent) and leaf in recurrent.kernels():
            (first, _) = _stages(recurrent.kernels()[leaf], option, name, path)
            recurrent.put_(leaf, first.out, None, None)
            continue
        old = modules.get(name)
        if not isinstance(old, KERNELS):
            raise InputError(f"{type(module).__name__} has no layer {name} to be replaced", file=str(path))
        kernel = kernel_of(old)
        made.set_submodule(name, placeholder(kernel, _stages(kernel, option, name, path), like=old))
    _fill_(made, open_checkpoint(path), path)
    return made


def _fold_(module: nn.Module, folded: Any, path: Path) -> None:
    """Give a module the layers that its batch norms were folded into."""
    modules = dict(module.named_modules())
    if not isinstance(folded, dict):
        raise InputError(f"the batch norms folded are {folded!r:.60}, which is no object", file=str(path))
    for norm, layer in folded.items():
        if not is_norm(modules.get(norm)) or type(modules.get(str(layer))) not in KERNELS:
            raise InputError(f"{type(module).__name__} has no batch norm {norm} after a layer {layer}", file=str(path))
    folded_places_(module, folded)


def _stages(kernel: Kernel, option: Any, name: str, path: Path) -> tuple[Kernel, ...]:
    ranks = option.get("ranks") if isinstance(option, Mapping) else None
    if not isinstance(ranks, list) or not all(type(k) is int for k in ranks):
        raise InputError(f"{name} has ranks {ranks!r}, which are no list of integers", file=str(path))
    try:
        return stages(kernel, str(option.get("format")), ranks)
    except RankError as error:
        raise InputError(f"{name} does not fit the module: {error}", file=str(path)) from error


def _fill_(module: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Give a module its values, tied ones once."""
    wanted = module.state_dict(keep_vars=True)
    if unknown := sorted(set(checkpoint.tensors) - set(wanted)):
        raise InputError(f"{unknown[0]} is in the file and not in {type(module).__name__}", file=str(path))
    filled: set[int] = set()
    for name, info in checkpoint.tensors.items():
        if info.shape != tuple(wanted[name].shape):
            raise InputError(
                f"{name} is {info.shape} in the file and {tuple(wanted[name].shape)} in {type(module).__name__}",
                file=str(path),
            )
        array = read_array(info)
        values = torch.from_numpy(array.astype("float32") if array.dtype.name == "bfloat16" else array.copy())
        wanted[name].data = values.to(wanted[name])
        filled.add(id(wanted[name]))
    if missing := [name for name, tensor in wanted.items() if id(tensor) not in filled]:
        raise InputError(f"{missing[0]} of {type(module).__name__} is not in the file", file=str(path))
