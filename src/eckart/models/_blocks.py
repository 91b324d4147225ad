"""Running a transformer one block at a time, so that only one block's activations and gradients exist at once.

The model's own forward pass is used for everything around the blocks: each block is replaced for a moment by a stub
that notes what else the block is called with (masks, position embeddings) and passes the hidden state on.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart.errors import InputError
from eckart.models._shelf import Shelf, TensorFile

__all__ = ["BlockRunner", "Loss", "block_names", "home_of"]

Loss = Callable[[Any, torch.Tensor], torch.Tensor]


def block_names(module: nn.Module) -> list[str]:
    """Return the names of the repeated blocks: the list of equal modules that holds most parameters, or []."""
    lists = [
        (sum(p.numel() for p in child.parameters()), name, len(child))
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len({type(block) for block in child}) == 1
    ]
    _, name, count = max(lists, default=(0, "", 0))
    return [f"{name}.{i}" for i in range(count)]


class HiddenStates:
    """The hidden states of some batches at block boundaries, each boundary in a file that vanishes with the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[int, TensorFile] = {}

    def put(self, i: int, states: Iterable[torch.Tensor]) -> None:
        """Keep what reaches boundary i, one batch after the other; OutputError: the disk is full."""
        self.drop(i)
        self._files[i] = TensorFile(self._folder)
        for state in states:
            self._files[i].append(state)

    def get(self, i: int, b: int) -> torch.Tensor:
        """Return what reaches boundary i for batch b, on the CPU."""
        return self._files[i][b]

    def drop(self, i: int) -> None:
        """Let go of what is no longer needed."""
        if i in self._files:
            self._files.pop(i).close()

    def close(self) -> None:
        """Let go of all of them."""
        for i in list(self._files):
            self.drop(i)


class _FirstBlockReached(Exception):
    """Ends a forward pass of which nothing more is needed."""


class BlockRunner:
    """Runs blocks on some batches, whose hidden states at the block boundaries it keeps on disk, in `folder`.

    Boundary i is before block i, boundary len(blocks) after the last one. InputError where the blocks exchange more
    than a hidden state, which is found out by running a few tokens both ways. Weights that wait on the `shelf` are read
    once for all batches, block by block.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        batches: Sequence[torch.Tensor],
        device: Any,
        folder: Path | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.module, self.blocks, self.batches, self.device = module, blocks, batches, device
        self.states, self.shelf = HiddenStates(folder), shelf or Shelf()
        self.home = home_of(module)
        self._calls: list[list[inspect.BoundArguments]] = [[] for _ in blocks]
        parameters = inspect.signature(module.forward).parameters
        self._extra = {"use_cache": False} if "use_cache" in parameters else {}
        self._returns_tuple = False

    def close(self) -> None:
        """Let go of the hidden states; the runner is of no use after that."""
        self.states.close()

    @torch.no_grad()
    def start(self) -> None:
        """Run what comes before the first block, for every batch."""
        with self._stubs(record=True):
            for batch in self.batches:
                self.module(batch.to(self.home), **self._extra)
        if self.blocks:
            self.states.put(0, (_hidden(call) for call in self._calls[0]))
        for call in (call for calls in self._calls for call in calls):
            call.arguments[next(iter(call.arguments))] = None  # the state itself, which is on disk now

    @torch.no_grad()
    def forward(self, i: int) -> None:
        """Run block i on every batch, from boundary i to the next."""
        self.states.put(i + 1, self.through(i))

    @torch.no_grad()
    def through(self, i: int) -> Iterator[torch.Tensor]:
        """Run block i on one batch after the other and iterate over its outputs."""
        with self._moved(self.blocks[i]) as block:
            for b in range(len(self.batches)):
                yield self._call(block, i, b, self.states.get(i, b))

    def tail(self, loss: Loss) -> list[torch.Tensor]:
        """Run what comes after the last block and return the gradient of the loss in its output, for every batch."""
        return [self._tail(b, loss) for b in range(len(self.batches))]

    def backward(self, i: int, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run block i again on every batch and put the gradient in its input in the place of that in its output."""
        self.states.drop(i + 1)
        with self._moved(self.blocks[i]) as block, torch.enable_grad():
            for b, gradient in enumerate(gradients):
                gradients[b] = self._backward(block, i, b, gradient)
        return gradients

    def before(self, table: nn.Module, gradients: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Iterate over the gradient in the output of an embedding, given that at the input of the first block."""
        reached: list[torch.Tensor] = []
        leaves: list[torch.Tensor] = []

        def stop(*args: Any, **kwargs: Any) -> Any:
            reached.append(_hidden(inspect.signature(original).bind(*args, **kwargs)))
            raise _FirstBlockReached

        def cut(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        original, handle = self.blocks[0].forward, table.register_forward_hook(cut)
        self.blocks[0].forward = stop
        try:
            for batch, gradient in zip(self.batches, gradients, strict=True):
                with torch.enable_grad(), contextlib.suppress(_FirstBlockReached):
                    self.module(batch.to(self.home), **self._extra)
                reached.pop().backward(gradient.to(self.home))
                while leaves:
                    found = leaves.pop().grad
                    assert found is not None
                    yield found
        finally:
            del self.blocks[0].forward
            handle.remove()

    @torch.no_grad()
    def outputs(self, b: int) -> Any:
        """Return what the model returns for batch b, computed from the last state."""
        with self._stubs(last=self._last(b) if self.blocks else None):
            return self.module(self.batches[b].to(self.home), **self._extra)

    @torch.no_grad()
    def onward(self, i: int, b: int) -> Any:
        """Return what the model returns for batch b, run from boundary i on; the states stay as they are."""
        state = self.states.get(i, b)
        for j in range(i, len(self.blocks)):
            with self._moved(self.blocks[j]) as block:
                state = self._call(block, j, b, state)
        with self._stubs(last=state.to(self.home)):
            return self.module(self.batches[b].to(self.home), **self._extra)

    def _last(self, b: int) -> torch.Tensor:
        return self.states.get(len(self.blocks), b).to(self.home)

    def _tail(self, b: int, loss: Loss) -> torch.Tensor:
        leaf = self._last(b).requires_grad_()
        with self._stubs(last=leaf), torch.enable_grad():
            loss(self.module(self.batches[b].to(self.home), **self._extra), self.batches[b]).backward()
        assert leaf.grad is not None
        return leaf.grad

    def _backward(self, block: nn.Module, i: int, b: int, gradient: torch.Tensor) -> torch.Tensor:
        state = self.states.get(i, b).to(self.device).requires_grad_()
        self._call(block, i, b, state).backward(gradient.to(self.device))
        assert state.grad is not None
        return state.grad.to(self.home)

    def _call(self, block: nn.Module, i: int, b: int, state: torch.Tensor) -> torch.Tensor:
        call = self._calls[i][b]
        first, *others = call.arguments
        arguments = {**call.arguments, first: state.to(self.device)}
        if self.device != self.home:
            arguments |= {name: _to(arguments[name], self.device) for name in others}
        bound = inspect.BoundArguments(call.signature, type(call.arguments)(arguments))
        out = block(*bound.args, **bound.kwargs)
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result

    @contextlib.contextmanager
    def _stubs(self, *, record: bool = False, last: torch.Tensor | None = None) -> Iterator[None]:
        def stub(i: int, original: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(original)

            def forward(*args: Any, **kwargs: Any) -> Any:
                call = signature.bind(*args, **kwargs)
                if record:
                    if not self._calls[0]:
                        with self.shelf.filled(self.blocks[0]):
                            self._returns_tuple = isinstance(original(*args, **kwargs), tuple)
                    self._calls[i].append(call)
                hidden = last if last is not None and i == len(self.blocks) - 1 else _hidden(call)
                return (hidden,) if self._returns_tuple else hidden

            return forward

        for i, block in enumerate(self.blocks):
            block.forward = stub(i, block.forward)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    @contextlib.contextmanager
    def _moved(self, block: nn.Module) -> Iterator[nn.Module]:
        with self.shelf.filled(block):
            try:
                yield block.to(self.device)
            finally:
                block.to(self.home)


@torch.no_grad()
def check_blocks_stand_alone(
    module: nn.Module, blocks: Sequence[nn.Module], tokens: torch.Tensor, shelf: Shelf | None = None
) -> None:
    """Raise InputError unless running block by block gives what the model gives, on the few `tokens`, (1, t)."""
    runner = BlockRunner(module, blocks, [tokens], home_of(module), shelf=shelf)
    with contextlib.closing(runner), runner.shelf.in_turn(blocks):
        runner.start()
        for i in range(len(blocks)):
            runner.forward(i)
        apart, whole = runner.outputs(0)[0], module(tokens, **runner._extra)[0]
    scale = torch.finfo(whole.dtype).eps * whole.abs().max()
    if not (apart - whole).abs().max() <= 1e4 * scale:
        raise InputError(
            f"{type(module).__name__} cannot be calibrated block by block: its blocks exchange more than hidden states",
            why=f"run apart they give outputs that differ by {float((apart - whole).abs().max()):.3g}",
            fix="use method='plain', which needs no calibration",
            code="E-architecture",
        )


def home_of(module: nn.Module) -> torch.device:
    """Return the device of the model: that of whatever does not wait in a file."""
    return next(p.device for p in module.parameters() if p.device.type != "meta")


def _hidden(call: inspect.BoundArguments) -> torch.Tensor:
    value: torch.Tensor = next(iter(call.arguments.values()))
    return value


def _to(value: Any, device: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_to(part, device) for part in value)
    if isinstance(value, dict):
        return {key: _to(part, device) for key, part in value.items()}
    return value
