"""Recurrent layers of torch whose matrices can be factored, one layer after the other in torch's own kernels.

What reads the input of a layer, in both directions, is one matrix [W_ih; W_ih_reverse]: of rank k it is a product that
brings the input to k numbers, and a recurrent layer with so many inputs, which takes less time as well. What reads the
state, W_hh, is multiplied out when it is used, since torch has no recurrence with a factored one: that saves numbers
and no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from eckart.models._factored_layers import frozen
from eckart.models._kernel import Kernel

__all__ = ["Recurrent", "reason_to_keep_recurrent"]

_STEP: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


def reason_to_keep_recurrent(module: nn.RNNBase) -> str:
    """Return why a recurrent layer cannot be factored, or ""."""
    if type(module).__name__ not in ("LSTM", "GRU", "RNN"):
        return f"{type(module).__name__} has a forward of its own"
    return "its states are projected (proj_size)" if module.proj_size else ""


class Recurrent(nn.Module):
    """nn.LSTM, nn.GRU or nn.RNN with the same parameters, of which some are replaced by factors.

    Of a factored `ih_l0`, "down_ih_l0" is (k, inputs) and weight_ih_l0 becomes (gates, k), in every direction; of a
    factored `hh_l0`, "down_hh_l0" is (k, hidden) and weight_hh_l0 (gates, k). visit: called with the name of a matrix
    and the rows that it reads, (…, columns), where it is set.
    """

    def __init__(self, like: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size = like.mode, like.input_size, like.hidden_size
        self.num_layers, self.bias, self.batch_first = like.num_layers, like.bias, like.batch_first
        self.dropout, self.bidirectional, self.proj_size = like.dropout, like.bidirectional, 0
        for name, parameter in like.named_parameters():
            self.register_parameter(name, parameter)
        self.visit: Callable[[str, torch.Tensor], None] | None = None
        self.train(like.training)

    @property
    def factored(self) -> bool:
        return any(name.startswith("down_") for name in self._parameters)

    def original(self) -> nn.RNNBase:
        """Return torch's own layer with these parameters, none of which are factored."""
        classes: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
        more = {} if self.mode in classes else {"nonlinearity": self.mode.removeprefix("RNN_").lower()}
        made = cast(
            "nn.RNNBase",
            classes.get(self.mode, nn.RNN)(
                self.input_size, self.hidden_size, self.num_layers, bias=self.bias, batch_first=self.batch_first,
                dropout=self.dropout, bidirectional=self.bidirectional, device="meta", **more,
            ),
        )  # fmt: skip
        for name, parameter in self.named_parameters():
            made.register_parameter(name, parameter)
        made._init_flat_weights()
        return made.train(self.training)

    # Its matrices

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def kernels(self) -> dict[str, Kernel]:
        """Return every matrix that can be factored, by what torch calls it: those of both directions that read the
        input are one.
        """
        gates, found = self._of("weight_hh_l0").shape[0], {}
        for layer in range(self.num_layers):
            columns = self.input_size if layer == 0 else self.hidden_size * len(self._suffixes)
            found[f"ih_l{layer}"] = Kernel(gates * len(self._suffixes), columns, bias=self.bias)
            found |= {f"hh_l{layer}{end}": Kernel(gates, self.hidden_size, bias=self.bias) for end in self._suffixes}
        return found

    def _parts(self, leaf: str) -> list[str]:
        """Return the names of the matrices that one of `kernels` is made of."""
        return [f"{leaf}{end}" for end in self._suffixes] if leaf.startswith("ih") else [leaf]

    def _of(self, name: str) -> torch.Tensor:
        return cast("torch.Tensor", self._parameters[name])

    def matrix(self, leaf: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return one of `kernels` and its bias."""
        weight = torch.cat([self._of(f"weight_{part}") for part in self._parts(leaf)])
        bias = torch.cat([self._of(f"bias_{part}") for part in self._parts(leaf)]) if self.bias else None
        return weight if (down := self._parameters.get(f"down_{leaf}")) is None else weight @ down, bias

    def put_(self, leaf: str, k: int, weights: Sequence[torch.Tensor] | None, bias: torch.Tensor | None) -> None:
        """Factor one of `kernels`: weights are its `down`, (k, columns), and `up`, (rows, k); None: they are unset."""
        kernel, like, parts = self.kernels()[leaf], self._of("weight_hh_l0"), self._parts(leaf)
        if weights is None:
            weights = [like.new_empty(k, kernel.into), like.new_empty(kernel.out, k)]
        self.register_parameter(f"down_{leaf}", frozen(weights[0].to(like)))
        for part, up in zip(parts, weights[1].chunk(len(parts)), strict=True):
            self.register_parameter(f"weight_{part}", frozen(up.to(like)))
        if bias is not None:
            for part, piece in zip(parts, bias.chunk(len(parts)), strict=True):
                self.register_parameter(f"bias_{part}", frozen(piece.to(like)))

    # Running it

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Return what torch's layer does: outputs and last states, of a tensor or a PackedSequence."""
        packed = isinstance(input, PackedSequence)
        x: torch.Tensor = input.data if packed else input
        batched = packed or x.ndim == 3
        if not batched:
            x = x.unsqueeze(0 if self.batch_first else 1)
        sizes = input.batch_sizes if packed else None
        batch = int(sizes[0]) if sizes is not None else x.shape[0 if self.batch_first else 1]
        states = self._states(hx, x, batch, batched, input.sorted_indices if packed else None)
        directions, last = len(self._suffixes), list[list[torch.Tensor]]()
        for layer in range(self.num_layers):
            state = [h[layer * directions : (layer + 1) * directions] for h in states]
            y, *ends = self._step(layer, x, sizes, state)
            if self.visit is not None:
                self._show(layer, x, y, state[0], packed)
            x, last = y, [*last, ends]
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = functional.dropout(x, self.dropout)
        found = [torch.cat(parts) for parts in zip(*last, strict=True)]
        if packed:
            back = input.unsorted_indices
            found = found if back is None else [h.index_select(1, back) for h in found]
            return PackedSequence(x, input.batch_sizes, input.sorted_indices, back), self._left(found)
        if not batched:
            x, found = x.squeeze(0 if self.batch_first else 1), [h.squeeze(1) for h in found]
        return x, self._left(found)

    def _left(self, states: list[torch.Tensor]) -> Any:
        return tuple(states) if self.mode == "LSTM" else states[0]

    def _states(
        self, hx: Any, x: torch.Tensor, batch: int, batched: bool, order: torch.Tensor | None
    ) -> list[torch.Tensor]:
        count = 2 if self.mode == "LSTM" else 1
        if hx is None:
            return [x.new_zeros(self.num_layers * len(self._suffixes), batch, self.hidden_size)] * count
        states = list(hx) if self.mode == "LSTM" else [hx]
        states = states if batched else [h.unsqueeze(1) for h in states]
        return states if order is None else [h.index_select(1, order) for h in states]

    def _step(self, layer: int, x: torch.Tensor, sizes: Any, state: list[torch.Tensor]) -> Any:
        down = self._parameters.get(f"down_ih_l{layer}")
        weights = []
        for end in self._suffixes:
            hh, factor = self._of(f"weight_hh_l{layer}{end}"), self._parameters.get(f"down_hh_l{layer}{end}")
            weights += [self._of(f"weight_ih_l{layer}{end}"), hh if factor is None else hh @ factor]
            if self.bias:
                weights += [self._of(f"bias_{kind}_l{layer}{end}") for kind in ("ih", "hh")]
        x = x if down is None else functional.linear(x, down)
        start = tuple(state) if self.mode == "LSTM" else state[0]
        how = self.bias, 1, 0.0, self.training, self.bidirectional
        if sizes is not None:
            return _STEP[self.mode](x, sizes, start, weights, *how)
        return _STEP[self.mode](x, start, weights, *how, self.batch_first)

    def _show(self, layer: int, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor, packed: bool) -> None:
        """Show what a layer's matrices read. The state before each step is that after the one before; where sequences
        are packed, all states stand for these.
        """
        assert self.visit is not None
        self.visit(f"ih_l{layer}", x)
        for i, (end, states) in enumerate(zip(self._suffixes, y.chunk(len(self._suffixes), dim=-1), strict=True)):
            if not packed:
                time = 1 if self.batch_first else 0
                first, length = start[i].unsqueeze(time), states.shape[time]
                kept = states.narrow(time, i, length - 1)
                states = torch.cat([first, kept] if i == 0 else [kept, first], dim=time)
            self.visit(f"hh_l{layer}{end}", states)
