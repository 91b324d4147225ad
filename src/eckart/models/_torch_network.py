"""Any torch module as a network of kernels."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from eckart._files import new_folder
from eckart.errors import InputError, NumericalError, UsageError
from eckart.models._batch_norms import fold_, settle_, statistics
from eckart.models._composite import closed_, opened_
from eckart.models._factored_convolutions import KERNELS, fill_, weight_of
from eckart.models._factored_layers import FactorPair
from eckart.models._kernel import Kernel, stages
from eckart.models._model import Layer
from eckart.models._network import Batch, Network, Visit
from eckart.models._processor import processor
from eckart.models._recurrent import Recurrent
from eckart.models._tensors import dtype_name
from eckart.models._torch_modules import described, moved_to, placeholder, size_of, stored, tensors_in, twin

__all__ = ["TorchNetwork"]


class TorchNetwork(Network):
    """A torch module in evaluation mode, its weights shared with the one given, which is not changed.

    example: what it can be called with; the layers are those that this calls.
    """

    gradients = True

    def __init__(self, module: nn.Module, example: Batch) -> None:
        self.name, self.path, self._given, self._example = type(module).__name__, "", module, example
        if isinstance(module, (*KERNELS, nn.RNNBase, nn.MultiheadAttention)):
            raise UsageError(f"{self.name} is a single layer, not a network of them", fix="nn.Sequential(layer)")
        self._inner, self._closed = twin(module).eval(), cast("nn.Module | None", None)
        self.replaced: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.dtype = next((dtype_name(t) for _, t in stored(module) if t.is_floating_point()), "float32")
        opened_(self._inner, lambda: self.outputs(example))
        self.folded = fold_(self._inner, lambda: self.outputs(example))
        self._calls: dict[str, int] = {}  # of every layer in one run
        self._shapes: dict[str, list[tuple[int, ...]]] = {}  # of what it reads in each
        self._layers = self._found(example)

    @property
    def module(self) -> nn.Module:
        """The network as a torch module, in which only what was factored is not torch's own."""
        if self._closed is None:
            self._closed = closed_(copy.deepcopy(self._inner))  # with memory of its own: it may be trained further
        return self._closed

    def size(self, dtype: str) -> tuple[int, int]:
        return size_of(self._inner, dtype)

    def given(self, dtype: str) -> tuple[int, int]:
        return size_of(self._given, dtype)

    @contextlib.contextmanager
    def saved(self, path: Path, *, max_shard_bytes: int) -> Iterator[TorchNetwork]:
        from eckart.models._torch_files import load, save

        with new_folder(path) as folder:
            save(self, folder, max_shard_bytes=max_shard_bytes)
            yield TorchNetwork(load(self._given, folder), self._example)

    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    def _found(self, example: Batch) -> dict[str, Layer]:
        every = dict(self._inner.named_modules())
        modules = {name: m for name, m in every.items() if isinstance(m, (*KERNELS, Recurrent))}
        order: dict[str, None] = {}
        self._listen(modules, lambda name, x: order.setdefault(name), example)
        names = [*order, *(name for name in modules if name not in order)]
        found = [layer for name in names for layer in described(name, modules[name], every, name in order)]
        if not found:
            raise InputError(f"{self.name} has no convolution, no linear and no recurrent layer")
        for layer in found:
            self._calls[layer.name] = 0

        def note(name: str, x: torch.Tensor) -> None:
            self._calls[name] += 1
            self._shapes.setdefault(name, []).append(tuple(x.shape))

        self.read(example, list(self._calls), note)
        return {layer.name: layer for layer in found}

    # Running it

    def run(self, batch: Batch) -> Any:
        """Return what the module returns for a tensor, for a tuple of arguments, or for arguments by name."""
        home, fast = self._device, torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # which would bypass the layers that are listened to
        try:
            if isinstance(batch, torch.Tensor):
                return self._inner(batch.to(home))
            if isinstance(batch, Mapping):
                return self._inner(**{name: moved_to(value, home) for name, value in batch.items()})
            return self._inner(*(moved_to(value, home) for value in batch))
        except TypeError as error:
            raise InputError(
                f"{self.name} cannot be called with a batch of data=: {error}",
                fix="a batch is one tensor, a tuple of all arguments, or a dict of them; leave labels out",
            ) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    @torch.no_grad()
    def outputs(self, batch: Batch) -> torch.Tensor:
        found = torch.cat([one.reshape(len(one), -1).float() for one in tensors_in(self.run(batch))], dim=1)
        if not torch.isfinite(found).all():
            raise NumericalError(f"the outputs of {self.name} are not finite on the data")
        return found

    def read(self, batch: Batch, names: Sequence[str], visit: Visit) -> None:
        owners = {owner: self._inner.get_submodule(owner) for owner in {self._owner(name)[0] for name in names}}
        recurrent = {owner: m for owner, m in owners.items() if isinstance(m, Recurrent)}
        left = sum(self._calls[name] for name in names)

        def visited(name: str, x: torch.Tensor) -> None:
            nonlocal left
            visit(name, x)
            left -= 1
            if left == 0:
                raise _Enough

        def take(owner: str, leaf: str, x: torch.Tensor) -> None:
            if (name := f"{owner}.{leaf}") in names:
                visited(name, x.detach())

        for owner, m in recurrent.items():
            m.visit = partial(take, owner)
        try:
            self._listen({name: owners[name] for name in names if name in owners}, visited, batch)
        except _Enough:
            pass
        finally:
            for m in recurrent.values():
                m.visit = None

    def _owner(self, name: str) -> tuple[str, str]:
        """Return the name of the module that a layer belongs to, and its own within that, "" for the module itself."""
        owner, _, leaf = name.rpartition(".")
        return (owner, leaf) if isinstance(self._inner.get_submodule(owner), Recurrent) else (name, "")

    def _listen(self, modules: Mapping[str, nn.Module], visit: Visit, batch: Batch) -> None:
        handles = [
            m.register_forward_pre_hook(lambda m, args, name=name: visit(name, args[0].detach()))
            for name, m in modules.items()
        ]
        try:
            with torch.no_grad():
                self.run(batch)
        finally:
            for handle in handles:
                handle.remove()

    def pulled(self, batch: Batch, names: Sequence[str], visit: Visit, seed: int) -> None:
        def listen(name: str, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:  # nothing before it is listened to; a clone may be changed in place
                output = output.detach().requires_grad_().clone()
            axes = 0 if isinstance(module, nn.Linear) else -len(cast("Any", module).kernel_size)
            output.register_hook(lambda g: visit(name, g.movedim(axes - 1, -1) if axes else g))
            return output

        modules = [(name, self._inner.get_submodule(name)) for name in names if not self._owner(name)[1]]
        handles = [m.register_forward_hook(partial(listen, name)) for name, m in modules]
        draws, trained = torch.Generator().manual_seed(seed), [p for p in self._inner.parameters() if p.requires_grad]
        try:
            self._inner.requires_grad_(False)  # no gradient of a weight is asked for
            with torch.enable_grad():
                found = [one for one in tensors_in(self.run(batch)) if one.requires_grad]
                numbers = sum(one[0].numel() for one in found)
                total = sum(
                    (one.float() * torch.randn(one.shape, generator=draws).to(one.device)).sum() for one in found
                )
                if isinstance(total, torch.Tensor):
                    (total / numbers**0.5).backward()
        finally:
            for parameter in trained:
                parameter.requires_grad_()
            for handle in handles:
                handle.remove()

    # Timing it

    def machine(self) -> str:
        threads, where = torch.get_num_threads(), f", {self._device}" if self._device.type != "cpu" else ""
        return f"{processor()}; {threads} threads; torch {torch.__version__}{where}"

    def timer(self, name: str = "", chain: Sequence[Kernel] = ()) -> Callable[[], float]:
        if not name:
            return partial(_seconds, partial(self.run, self._example), self._device)
        owner, leaf = self._owner(name)
        old = module = self._inner.get_submodule(owner)
        if isinstance(old, Recurrent):
            module = twin(old)
            if chain:
                cast("Recurrent", module).put_(leaf, chain[0].out, None, None)
            shapes = self._shapes[f"{owner}.ih_l0"]
        else:
            kernel = self._layers[name].kernel
            assert kernel is not None
            module = placeholder(kernel, chain, like=old) if chain else old
            shapes = self._shapes[name]
        for parameter in module.parameters() if chain else ():
            nn.init.normal_(parameter, std=0.01)  # what was in that memory could be denormal, and slow
        inputs = [torch.randn(shape, device=self._device, dtype=_weight_type(module)) for shape in shapes]
        return partial(_seconds, lambda: [module(x) for x in inputs], self._device)

    def timed_as(self, name: str) -> Hashable:
        owner, leaf = self._owner(name)
        module = self._inner.get_submodule(owner)
        if isinstance(module, Recurrent):
            return str(module.kernels()), leaf, tuple(self._shapes[f"{owner}.ih_l0"])
        return self._layers[name].kernel, tuple(self._shapes[name])

    @property
    def _device(self) -> torch.device:
        return next(self._inner.parameters()).device

    # Changing it

    def weight(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        owner, leaf = self._owner(name)
        module = self._inner.get_submodule(owner)
        if isinstance(module, Recurrent):
            recurrent, own = module.matrix(leaf)
            return recurrent.detach(), None if own is None else own.detach()
        bias = cast("torch.Tensor | None", module.bias)
        return weight_of(module).detach(), None if bias is None else bias.detach()

    def copy(self) -> TorchNetwork:
        other = copy.copy(self)
        other._inner, other.replaced, other._closed = twin(self._inner), dict(self.replaced), None
        return other

    def settled(self, dense: TorchNetwork, batches: Sequence[Batch]) -> TorchNetwork | None:
        runs = [[partial(one.outputs, batch) for batch in batches] for one in (dense, self)]
        before, after = statistics(dense._inner, runs[0]), statistics(self._inner, runs[1])
        if not before:
            return None
        other = self.copy()
        settle_(other._inner, before, after)
        return other

    def replace_(
        self,
        name: str,
        form: str,
        ranks: Sequence[int],
        weights: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
    ) -> None:
        (owner, leaf), kernel = self._owner(name), self._layers[name].kernel
        assert kernel is not None
        self.replaced[name], self._closed = (form, tuple(ranks)), None
        old = self._inner.get_submodule(owner)
        if isinstance(old, Recurrent):
            old.put_(leaf, ranks[0], weights, bias)
            return
        new = placeholder(kernel, stages(kernel, form, ranks), like=old)
        parts = [new.down, new.up] if isinstance(new, FactorPair) else list(cast("Any", new).stages)
        for part, weight in zip(parts, weights, strict=True):
            fill_(part, weight, bias if part is parts[-1] else None)
        self._inner.set_submodule(name, new)


@torch.no_grad()
def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes, on a GPU until its work is done."""
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _weight_type(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


class _Enough(Exception):
    """Everything was seen that a network was run for, so that the rest need not run."""
