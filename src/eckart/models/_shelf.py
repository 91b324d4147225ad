"""Weights that wait in files and are read when they are needed, so that one block's are in memory at a time.

A tensor that waits is stood in for by a meta tensor: it has a shape and a type, and takes no memory. Files are read,
not mapped: what was read and let go of counts in no measure of this process's memory.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from eckart._files import cannot_write
from eckart.errors import NumericalError
from eckart.models._safetensors import array_dtype
from eckart.models._untrusted import TensorInfo, open_file, truncated

__all__ = ["PutOff", "Shelf", "TensorFile", "rounded", "shelve"]


class TensorFile:
    """Tensors one after the other in a file that vanishes with this object, and with the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, torch.Size, torch.dtype]] = []

    def append(self, tensor: torch.Tensor) -> int:
        """Keep a tensor and return its number; OutputError: the disk is full."""
        try:
            place = self._file.seek(0, 2)
            self._file.write(_bytes(tensor.detach().cpu().contiguous()))
        except OSError as error:
            raise cannot_write(self._folder or Path(tempfile.gettempdir()), error) from error
        self._places.append((place, tensor.shape, tensor.dtype))
        return len(self._places) - 1

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return a tensor, on the CPU."""
        place, shape, dtype = self._places[number]
        tensor = torch.empty(shape, dtype=dtype)
        self._file.seek(place)
        self._file.readinto(_bytes(tensor))
        return tensor

    def close(self) -> None:
        """Let go of all of them."""
        self._file.close()


class Shelf:
    """The tensors of one model that wait in files; none, for a model that is in memory."""

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device
        self._rounded: dict[int, str] = {}
        self._waiting: dict[int, tuple[torch.Tensor, Callable[[], torch.Tensor]]] = {}
        self._folder: Path | None = None
        self._more: TensorFile | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, tensor: torch.Tensor, read: Callable[[], torch.Tensor]) -> None:
        """Let `read` give the values of a meta tensor."""
        self._waiting[id(tensor)] = tensor, read

    def round_(self, tensor: torch.Tensor, dtype: str) -> None:
        """Round a tensor that waits to what this type can hold, whenever it is read."""
        self._rounded[id(tensor)] = dtype

    def copy(self, folder: Path | None) -> Shelf:
        """Return a shelf of the same tensors, to which others can be added; these go to a file in `folder`."""
        twin = copy.copy(self)
        twin._waiting, twin._rounded, twin._folder, twin._more = dict(self._waiting), dict(self._rounded), folder, None
        return twin

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the values of a tensor of the model: itself, unless it waits.

        NumericalError where it waits and is too large for the type that it is rounded to.
        """
        if id(tensor) not in self._waiting:
            return tensor
        found = self._waiting[id(tensor)][1]().to(device=self.device, dtype=tensor.dtype)
        dtype = self._rounded.get(id(tensor))
        return _like(tensor, rounded(found, dtype) if dtype else found)

    def read(self, module: nn.Module) -> nn.Module:
        """Return a module like this one, without those inside it, whose own tensors are there."""
        twin = copy.copy(module)
        vars(twin).update(
            _parameters={leaf: _if_there(self.value, tensor) for leaf, tensor in module._parameters.items()},
            _buffers={leaf: _if_there(self.value, tensor) for leaf, tensor in module._buffers.items()},
        )
        return twin

    @contextlib.contextmanager
    def filled(self, module: nn.Module) -> Iterator[None]:
        """Have everything that waits inside this module there, as long as the block lasts."""
        empty = [(tensors, leaf, tensor) for tensors, leaf, tensor in _tensors(module) if id(tensor) in self._waiting]
        try:
            for tensors, leaf, tensor in empty:
                tensors[leaf] = self.value(tensor)
            yield
        finally:
            for tensors, leaf, tensor in empty:
                tensors[leaf] = tensor

    @contextlib.contextmanager
    def in_turn(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Have each of these blocks there while it runs, as long as the block lasts."""
        inside = {id(block): contextlib.ExitStack() for block in blocks}

        def enter(block: nn.Module, args: Any) -> None:
            inside[id(block)].enter_context(self.filled(block))

        def leave(block: nn.Module, args: Any, output: Any) -> None:
            inside[id(block)].close()

        with contextlib.ExitStack() as listening:
            for block in blocks if self else ():
                listening.callback(block.register_forward_pre_hook(enter).remove)
                listening.callback(block.register_forward_hook(leave, always_call=True).remove)
            yield

    def waits(self, module: nn.Module) -> bool:
        """Whether something inside this module waits."""
        return any(id(tensor) in self._waiting for _, _, tensor in _tensors(module))

    def put(self, module: nn.Module) -> None:
        """Let whatever is there of this module wait as well; OutputError: the disk is full."""
        self._more = self._more or TensorFile(self._folder)
        for tensors, leaf, tensor in _tensors(module):
            if id(tensor) not in self._waiting:
                stand_in = _like(tensor, torch.empty_like(tensor, device="meta"))
                self.add(stand_in, partial(self._more.__getitem__, self._more.append(tensor)))
                tensors[leaf] = stand_in


class PutOff:
    """What transformers takes for a tensor of a checkpoint, and loads as a meta tensor that remembers which it was.

    Only so is it certain which tensor goes where: transformers renames, ties and merges what it reads. number: from 1
    on, becomes the storage offset of the meta tensor; what transformers computes from it has another. 0: it is read.
    """

    def __init__(self, info: TensorInfo, number: int) -> None:
        self._info, self._number = info, number

    def __getitem__(self, index: Any) -> PutOff:
        return self

    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        if not self._number:
            return _read_tensor(self._info).to(device=device, dtype=dtype)
        storage = torch.empty(self._number + self._info.parameters, dtype=dtype, device="meta")
        return storage[self._number :].view(self._info.shape)


def shelve(infos: Sequence[TensorInfo], blocks: Sequence[str], module: nn.Module, device: Any) -> Shelf | None:
    """Return the shelf of a model that was loaded from `infos`, put off and numbered from 1 on in this order.

    Whatever was put off and is not a parameter of a block is read. None: there is no block, or one of their parameters
    is not in the files as it is in memory, or is tied to another.
    """
    tied = [name for names in getattr(module, "all_tied_weights_keys", {}).items() for name in names]
    if not blocks or any(name.startswith(block + ".") for name in tied for block in blocks):
        return None
    inside = {id(tensor) for block in blocks for tensor in module.get_submodule(block).parameters()}
    shelf, there = Shelf(device), dict[int, torch.Tensor]()
    for tensors, leaf, tensor in _tensors(module):
        number = int(tensor.storage_offset()) if tensor.device.type == "meta" else 0
        is_whole = number > 0 and infos[number - 1].shape == tuple(tensor.shape) and tensor.is_contiguous()
        if is_whole and id(tensor) in inside:
            shelf.add(tensor, partial(_read_tensor, infos[number - 1]))
        elif is_whole:
            if id(tensor) not in there:
                there[id(tensor)] = _like(tensor, _read_tensor(infos[number - 1]).to(device=device, dtype=tensor.dtype))
            tensors[leaf] = there[id(tensor)]
        elif id(tensor) in inside or tensor.device.type == "meta":
            return None
    return shelf


def rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return what `dtype` can hold of these values, in their own type; NumericalError where they are too large for it.

    float16 ends at 65504.
    """
    found = values.to(getattr(torch, dtype))
    if not torch.isfinite(found).all():
        raise NumericalError(
            f"a weight reaches {values.abs().max():.4g}, more than {dtype} can hold", fix="--dtype bfloat16, or float32"
        )
    return found.to(values.dtype)


def _read_tensor(info: TensorInfo) -> torch.Tensor:
    raw = torch.empty(info.bytes, dtype=torch.uint8)
    with open_file(info.file) as (file, size):
        file.seek(info.offset)
        if file.readinto(_bytes(raw)) != info.bytes:  # type: ignore[attr-defined]  # a file opened for reading has it
            raise truncated(info.file, size, f"{info.name} ends at byte {info.offset + info.bytes}")
    dtype: torch.dtype = getattr(torch, array_dtype(info.dtype))
    return raw.view(dtype).reshape(info.shape)


def _tensors(module: nn.Module) -> list[tuple[dict[str, torch.Tensor], str, torch.Tensor]]:
    """Return where each parameter and persistent buffer inside this module is kept, its name there, and itself."""
    return [
        (tensors, leaf, tensor)
        for owner in module.modules()
        for tensors in cast("tuple[dict[str, Any], ...]", (owner._parameters, owner._buffers))
        for leaf, tensor in list(tensors.items())
        if tensor is not None and leaf not in owner._non_persistent_buffers_set
    ]


def _like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _if_there(value: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else value(tensor)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
