"""Orders of rows folded into neighbours: the same outputs, before and after, saved and reloaded, and with gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eckart
from eckart.errors import UsageError
from eckart.models._folding import Fold, candidates, verified
from eckart.models._shelf import Shelf

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 67)[None] * 5 % 384
LEADERS = {"llama": "mlp.gate_proj", "gpt2": "mlp.c_fc", "bert": "intermediate.dense"}


@pytest.fixture
def job(texts: dict[str, Path]) -> dict[str, Any]:
    return {"data": texts["train"], "tokens": 1024, "context": 64, "dtype": "float32"}


def with_format(plan: eckart.Plan, form: str, *, where: str = "") -> eckart.Plan:
    """Return the plan as one edited by hand: layers whose names end with `where` in another format."""
    value = plan.to_json()
    for layer in value["layers"]:
        if layer["option"]["format"] != "dense" and layer["name"].endswith(where) and not layer["table"]:
            layer["option"]["format"] = form
    return eckart.Plan.from_json(value)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_outputs_are_those_of_the_same_factors_with_every_order_stored(
    tiny: Tiny, job: dict[str, Any], kind: str
) -> None:
    model: Any = eckart.open_model(tiny(kind))
    small = eckart.compress(model, 0.65, storage="pifa", **job)  # saved and reloaded in test_pifa.py
    formats = {name: option.format for name, option in small.plan.options.items()}
    leaders = [name for name, form in formats.items() if form == "folded"]
    assert len(model.folds()) == 3
    assert leaders == [name for name in formats if name.endswith(LEADERS[kind])]
    assert len(leaders) > 1
    assert not [name for name, _ in small.tensors() if name.endswith(f"{LEADERS[kind]}.order")]
    other = eckart.compress(model, plan=with_format(small.plan, "pifa"), **job)
    expected = other.run(TOKENS)
    assert float((small.run(TOKENS) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert other.parameters == small.parameters + sum(x.rows for x in small.plan.layers if x.name in leaders)


@pytest.mark.parametrize("peer", ["dense", "pair", "pifa"])
@pytest.mark.parametrize("follower", ["dense", "pair", "pifa"])
def test_neighbours_follow_whatever_they_are(tiny: Tiny, job: dict[str, Any], peer: str, follower: str) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    before = {name: model.weight(name).clone() for name in model.layers()}
    plan = eckart.plan(model, 1.0, storage="pifa", **job)
    for layer in plan.layers:
        if not layer.kept and not layer.table:
            form = {"up_proj": peer, "down_proj": follower, "gate_proj": "folded"}.get(layer.name.rpartition(".")[2])
            plan = plan.with_rank(layer.name, None if form in (None, "dense") else 20)
    for where, form in (("up_proj", peer), ("down_proj", follower), ("gate_proj", "folded")):
        plan = with_format(plan, form, where=where)
    assert sum(option.format == "folded" for option in plan.options.values()) == 3
    small = eckart.compress(model, plan=plan, **job)
    expected = eckart.compress(model, plan=with_format(plan, "pair"), **job).run(TOKENS)
    assert float((small.run(TOKENS) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert all(torch.equal(model.weight(name), weight) for name, weight in before.items())  # the source is untouched


def test_gradients_flow_through_layers_with_an_order_and_without(tiny: Tiny, job: dict[str, Any]) -> None:
    small: Any = eckart.compress(tiny("llama"), 0.75, storage="pifa", **job)
    leader = next(m for name, m in small.module.named_modules() if name.endswith("gate_proj"))
    other = next(m for name, m in small.module.named_modules() if name.endswith("q_proj"))
    assert leader.order is None
    assert other.order is not None
    for layer in (leader, other):
        layer.double().requires_grad_(True)
        x = torch.randn(2, 5, layer.in_features, dtype=torch.float64, requires_grad=True)
        weights = {name: p.detach().requires_grad_() for name, p in layer.named_parameters()}
        assert torch.autograd.gradcheck(
            lambda x, *values, layer=layer, names=tuple(weights): torch.func.functional_call(
                layer, dict(zip(names, values, strict=True)), (x,)
            ).sum(-1),
            (x, *weights.values()),
        )


def test_excluded_neighbours_are_left_alone(tiny: Tiny, job: dict[str, Any]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    small = eckart.compress(model, 0.8, storage="pifa", layers=["*", "!*down_proj"], **job)
    assert "folded" not in {option.format for option in small.plan.options.values()}
    name = "model.layers.0.mlp.down_proj"
    assert torch.equal(small.weight(name), model.weight(name))


def test_an_order_that_nobody_follows_cannot_be_folded(tiny: Tiny, job: dict[str, Any]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    plan = with_format(eckart.plan(model, 0.75, storage="pifa", **job), "folded", where="q_proj")
    with pytest.raises(UsageError, match=r"q_proj cannot be stored as 'folded'"):
        eckart.compress(model, plan=plan, **job)


class Block(nn.Module):
    """Hidden units between fc1 and fc2; each is treated alike, or has a gain of its own, or is not used at all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.kind = nn.Linear(8, 16), nn.Linear(16, 8), kind
        self.gain = nn.Parameter(1 + 0.1 * torch.rand(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.fc1(x))
        if self.kind == "gains":
            hidden = hidden * self.gain
        elif self.kind == "groups":
            hidden = hidden.unflatten(-1, (4, 4)).softmax(-1).flatten(-2)
        return x + (0 if self.kind == "unused" else self.fc2(hidden))


@pytest.mark.parametrize(("kind", "holds"), [("alike", True), ("gains", False), ("groups", False), ("unused", False)])
def test_a_fold_is_tried_out_before_it_is_believed(kind: str, holds: bool) -> None:
    torch.manual_seed(0)

    class Network(nn.Module):
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.table, self.blocks = nn.Embedding(11, 8), nn.ModuleList([Block(kind), Block("alike")])

        def get_input_embeddings(self) -> nn.Module:
            return self.table

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.table(tokens)
            for block in self.blocks:
                x = block(x)
            return x

    network = Network()
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    folds = candidates(names, [["fc1", "fc2"]])
    assert folds == [Fold(f"blocks.{i}.fc1", (), f"blocks.{i}.fc2") for i in range(2)]
    assert verified(network, ["blocks.0", "blocks.1"], folds, Shelf()) == folds[0 if holds else 1 :]


def test_adapters_and_hooks_inside_a_factor_pair_are_called() -> None:
    from eckart.models._factored_layers import FactorPair

    torch.manual_seed(0)
    layer = FactorPair(6, 5, 2, True)
    x, called = torch.randn(3, 5), []
    expected = layer.up(layer.down(x))
    assert torch.equal(layer(x), expected)
    handle = layer.down.register_forward_hook(lambda *args: called.append(1))
    layer(x)
    assert called == [1]
    handle.remove()
    layer.up = nn.Sequential(layer.up, nn.Tanh())  # type: ignore[assignment]
    assert torch.equal(layer(x), torch.tanh(expected))
