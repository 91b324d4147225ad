"""Recurrent layers and attention against torch's own, whatever arguments these take, and at full rank."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eckart
from eckart.models._attention import Attention
from eckart.models._recurrent import Recurrent
from eckart.models._torch_network import TorchNetwork

RECURRENT: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@torch.no_grad()
def test_a_recurrent_layer_is_torchs_own_and_so_are_its_factors(kind: str, layers: int, both: bool) -> None:
    torch.manual_seed(0)
    for batch_first, bias in product((False, True), repeat=2):
        own = RECURRENT[kind](5, 4, layers, bidirectional=both, batch_first=batch_first, bias=bias).eval()
        made, x = Recurrent(own), torch.randn(3, 7, 5)
        batch = 3 if batch_first else 7
        start: Any = torch.randn(layers * (1 + both), batch, 4)
        start = (start, start + 1) if kind == "LSTM" else start
        lengths = torch.randint(1, 1 + x.shape[1 if batch_first else 0], (batch,))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)

        def check(own: nn.RNNBase, made: nn.Module, *, inputs: Any = (x, x[0], packed), start: Any = start) -> None:
            for one in inputs:
                close(made(one), own(one))
            close(made(inputs[0], start), own(inputs[0], start))
            close(made(inputs[2], start), own(inputs[2], start))

        check(own, made)
        check(own, made.original())
        assert not made.factored
        for leaf, kernel in made.kernels().items():
            weight, b = made.matrix(leaf)
            assert weight.shape == kernel.shape
            k = min(weight.shape)
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            made.put_(leaf, k, [v, u * s], b)
            close(made.matrix(leaf), (weight, b))
        assert made.factored
        check(own, made)


@torch.no_grad()
def test_a_recurrent_layer_shows_what_its_matrices_read() -> None:
    torch.manual_seed(0)
    own = nn.RNN(5, 4, bidirectional=True, batch_first=True, nonlinearity="relu").eval()
    made, x, seen = Recurrent(own), torch.randn(3, 7, 5), dict[str, torch.Tensor]()
    made.visit = seen.__setitem__
    y, _ = made(x)
    from_input, bias = made.matrix("ih_l0")
    for i, end in enumerate(("", "_reverse")):
        from_state, own_bias = made.matrix(f"hh_l0{end}")
        assert bias is not None
        assert own_bias is not None
        sums = seen["ih_l0"] @ from_input.chunk(2)[i].T + bias.chunk(2)[i] + seen[f"hh_l0{end}"] @ from_state.T
        close((sums + own_bias).relu(), y.chunk(2, dim=-1)[i])


def masks() -> list[dict[str, Any]]:
    late = torch.triu(torch.full((5, 5), float("-inf")), 1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    return [
        {}, {"key_padding_mask": padding}, {"attn_mask": late}, {"attn_mask": late.isinf()}, {"need_weights": False},
        {"attn_mask": late.isinf(), "key_padding_mask": padding}, {"average_attn_weights": False},
        {"need_weights": False, "attn_mask": late, "is_causal": True}, {"attn_mask": torch.ones(6, 5, 5).tril()},
    ]  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
# torch says that masks of two types will not always be taken together
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
@torch.no_grad()
def test_attention_is_torchs_own(bias: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.5)
    made, x, y = Attention(own), torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    if not batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    for mask in masks():
        close(made(x, x, x, **mask), own(x, x, x, **mask))
    close(made(x, y, y), own(x, y, y))
    close(made(x[0], x[0], x[0]), own(x[0], x[0], x[0]))
    close(made.original()(x, x, x), own(x, x, x))


def test_a_transformer_and_a_recurrent_network_are_compressed_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(32, 24, 2, bidirectional=True, batch_first=True)
            layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.cross = nn.MultiheadAttention(48, 4, batch_first=True)
            self.plain = nn.GRU(48, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.encoder(self.rnn(x)[0])
            z: torch.Tensor = self.cross(y, y.flip(1), y)[0]
            return self.plain(z)[0] + z.mean()

    module = Both().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    data = [torch.randn(16, 12, 32) for _ in range(2)]
    layers = TorchNetwork(module, data[0]).layers()
    kept = {name: layer.kept for name, layer in layers.items()}
    assert not any(kept.values())
    for name in ("rnn.ih_l0", "rnn.hh_l1_reverse", "encoder.layers.1.self_attn.in_proj", "cross.out_proj"):
        assert name in kept
    truth = module(data[0]).detach()
    for number, (keep, chosen) in enumerate(((0.7, "encoder.*"), (0.9, "rnn.*"), (0.95, "cross.*"), (0.6, "*"))):
        made = eckart.compress(module, keep, data=data, out=tmp_path / str(number), layers=chosen)
        again = eckart.load(Both().eval(), tmp_path / str(number))
        close(again(data[0]), made.module(data[0]))
        assert made.plan.parameters_after == sum(p.numel() for p in again.parameters())
        assert float((again(data[0]) - truth).detach().norm() / truth.norm()) < 0.5
        for name, own, factored in (("rnn", nn.LSTM, Recurrent), ("cross", nn.MultiheadAttention, Attention)):
            changed = any(one.startswith(f"{name}.") for one in made.replaced)
            assert changed or chosen != f"{name}.*"
            assert type(again.get_submodule(name)) is (factored if changed else own)
