"""A pair whose `down` is another layer's: the same matrix, stored and counted once, reloaded by transformers.

Layers that read the same input are truncated as a stack besides, and take the better of both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM

import eckart
import eckart.hf
from eckart._compress._allocate import Choices, lower_hulls
from eckart._compress._calibrate import truncations
from eckart._compress._journal import Journal
from eckart._compress._methods import METHODS
from eckart._compress._sharing import Stacks, stack_of, within_blocks
from eckart._factorise import truncation
from eckart.errors import InputError, RankError, UsageError
from eckart.models import _option
from eckart.models._factored_layers import frozen
from eckart.models._model import silent
from eckart.models._save_huggingface import predicted_bytes, predicted_parameters, save

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 67)[None] * 5 % 384
GROUPS = {
    "llama": [
        [f"model.layers.{i}.self_attn.{leaf}_proj" for leaf in "qkv"] for i in range(2)
    ] + [[f"model.layers.{i}.mlp.gate_proj" for i in (1, 2)]],
    "gpt2": [[f"transformer.h.{i}.mlp.c_fc" for i in (0, 2)]],
}  # fmt: skip


def sharing(model: Any, group: list[str], k: int, dtype: str = "float32") -> dict[str, tuple[_option.Option, Any]]:
    """Return options and factors of layers that share the `down` of the first: a truncation of their stack."""
    weights = [model.weight(name) for name in group]
    stack = truncation(torch.cat(weights)).pair(k)
    ups = stack.up.split([len(weight) for weight in weights])
    made = {}
    for name, up in zip(group, ups, strict=True):
        (m, n), bias = model.weight(name).shape, model.layers()[name].bias
        owner = group[0]
        option = _option.shared(m, n, bias, dtype, k, "" if name == owner else owner)
        made[name] = (option, replace(stack, up=up))
    return made


def shared_model(tiny: Tiny, kind: str, k: int, dtype: str = "float32") -> tuple[Any, Any]:
    model: Any = eckart.open_model(tiny(kind))
    small = model.copy()
    for group in GROUPS[kind]:
        for name, (option, factors) in sharing(model, group, k, dtype).items():
            small.replace_(name, option, factors)
    return model, small


@pytest.mark.parametrize("kind", GROUPS)
def test_at_full_rank_nothing_changes(tiny: Tiny, kind: str) -> None:
    model, small = shared_model(tiny, kind, 48)
    before, after = model.run(TOKENS), small.run(TOKENS)
    assert float((after - before).abs().max()) <= 300 * torch.finfo(torch.float32).eps * float(before.abs().max())
    for group in GROUPS[kind]:
        for name in group:
            assert torch.allclose(small.module.get_submodule(name).weight, model.weight(name), atol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("llama", "float16"), ("gpt2", "float32")])
def test_saved_once_counted_once_and_reloaded(tiny: Tiny, tmp_path: Path, kind: str, dtype: str) -> None:
    model, small = shared_model(tiny, kind, 20, dtype)
    small.round_(dtype)
    written = save(small, tmp_path, dtype=dtype, max_shard_bytes=10**9)
    assert written == predicted_bytes(model, small.replaced, dtype=dtype, max_shard_bytes=10**9)
    assert small.parameters == predicted_parameters(model, small.replaced) < model.parameters
    downs = [name for name, _ in small.tensors() if name.endswith(".down.weight")]
    assert sorted(downs) == sorted(f"{group[0]}.down.weight" for group in GROUPS[kind])
    again: Any = eckart.open_model(tmp_path)
    assert again.replaced == small.replaced
    assert again.parameters == small.parameters
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    if kind == "llama":  # a bare base model names its layers without the prefix
        bare = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
        hidden = again.module.model(TOKENS)[0]
        assert torch.equal(bare(TOKENS)[0], hidden)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    whole.save_pretrained(tmp_path / "copy")
    copy: Any = eckart.open_model(tmp_path / "copy")
    assert torch.equal(copy.run(TOKENS), small.run(TOKENS))


def test_rows_follow_another_order_and_columns_cannot(tiny: Tiny) -> None:
    _, small = shared_model(tiny, "gpt2", 20)
    layer: Any = small.module.get_submodule(GROUPS["gpt2"][0][1])
    weight, bias = layer.weight.clone(), layer.up.bias.clone()
    places = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    layer.reorder_(0, places)
    assert torch.equal(layer.weight, weight[places])
    assert torch.equal(layer.up.bias, bias[places])
    with pytest.raises(ValueError, match="other layers use as well"):
        layer.reorder_(1, places)


def test_a_copy_shares_with_its_own_layers(tiny: Tiny) -> None:
    _, small = shared_model(tiny, "llama", 20)
    twin = small.copy()
    q, k, _ = GROUPS["llama"][0]
    owner = twin.module.get_submodule(q)
    owner.down.weight = frozen(torch.zeros_like(owner.down.weight))
    assert float(twin.module.get_submodule(k).weight.abs().max()) == 0
    assert float(small.module.get_submodule(k).weight.abs().max()) > 0


def test_an_owner_that_does_not_fit_is_refused(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    q, k, _ = GROUPS["llama"][0]
    made = sharing(model, [q, k], 20)
    with pytest.raises(InputError, match="is to use the factor of"):
        model.copy().replace_(k, *made[k])  # q is still dense
    other = model.copy().replace_(q, *sharing(model, [q], 21)[q])
    with pytest.raises(InputError, match="20 x 48"):
        other.replace_(k, *made[k])
    with pytest.raises(RankError, match="rank 49"):
        _option.shared(24, 48, False, "float32", 49, q)
    wrong = {"version": 1, "format": "shared", "ranks": [3], "dtype": "float32", "down_of": 3}
    with pytest.raises(InputError, match="down_of"):
        _option.read_option(wrong, 48, 48, False)


def test_in_a_plan_layers_that_share_change_rank_together(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    plan = eckart.plan(model, 0.9, method="plain")
    q, k, v = GROUPS["llama"][0]
    options = {name: option for name, (option, _) in sharing(model, [q, k, v], 20).items()}
    layers = tuple(replace(layer, option=options.get(layer.name, layer.option)) for layer in plan.layers)
    shared = replace(plan, layers=layers)
    assert eckart.Plan.from_json(shared.to_json()) == shared
    for name in (q, v):
        smaller = shared.with_rank(name, 10)
        assert [smaller.options[one].ranks for one in (q, k, v)] == [(10,)] * 3
        assert shared.parameters_after - smaller.parameters_after == 10 * (48 + 48 + 24 + 24)
        assert not {q, k, v} & shared.with_rank(name, None).options.keys()
    with pytest.raises(UsageError, match="cannot be stored as 'shared'"):
        eckart.compress(model, plan=shared)


STACKS = [[f"model.layers.{i}.self_attn.{leaf}_proj" for leaf in "qkv"] for i in (0, 2)] + [
    [f"model.layers.1.mlp.{leaf}_proj" for leaf in ("gate", "up")]
]
DIRECTIONS = 12  # of the inputs, of 48, that the layers of STACKS read


@pytest.fixture(scope="module")
def stacked(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model in which some layers that read the same input read the same few directions of it."""
    folder = tmp_path_factory.mktemp("stacked") / "model"
    shutil.copytree(tiny("llama"), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    for group in STACKS:
        basis, _ = torch.linalg.qr(torch.randn(48, DIRECTIONS, generator=draw))
        for name in group:
            layer = model.get_submodule(name)
            layer.weight.data = layer.weight.data @ basis @ basis.T * 2
    model.save_pretrained(folder)
    return folder


def job(texts: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {"data": texts["train"], "tokens": 1024, "context": 64, "storage": "shared", **more}


@given(data=st.data())
def test_the_hulls_hold_what_is_best_at_every_price(data: st.DataObject) -> None:
    layers = []
    for _ in range(data.draw(st.integers(1, 3))):
        size = data.draw(st.integers(1, 6))
        some = [data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)) for _ in range(2)]
        layers.append(Choices(*(np.array(numbers, dtype=float) for numbers in some)))
    hulls = lower_hulls(layers)
    costs = [sum(layer.costs[i] for layer, i in zip(layers, places, strict=True)) for places in hulls]
    losses = [sum(layer.losses[i] for layer, i in zip(layers, places, strict=True)) for places in hulls]
    assert costs == sorted(costs, reverse=True)
    assert losses == sorted(losses)
    for price in (0.0, 0.1, 0.3, 1.0, 3.7, 1e6):
        best = sum(float((layer.losses + price * layer.costs).min()) for layer in layers)
        assert min(np.array(losses) + price * np.array(costs)) == pytest.approx(best)


@pytest.mark.parametrize("method", ["two-sided", "input"])
def test_a_stack_is_truncated_in_the_metric_of_its_layers(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, method: str
) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    row, pieces = METHODS[method], torch.randint(3, 384, (6, 40), generator=torch.Generator().manual_seed(1))
    group = STACKS[0]
    stacks = Stacks({}, within_blocks(model.layers(), group))
    assert {name: [one.name for one in some] for name, some in stacks.within.items()} == {group[0]: group}
    more: dict[str, Any] = {"device": None, "seed": 0, "workers": None, "progress": silent}
    metrics: dict[str, Any] = {}

    def metric(taps: Any, name: str) -> Any:
        metrics[name] = row.metric(taps, name)
        return metrics[name]

    kept = {group[1]: [5], stack_of(group[0]): [9]}
    cuts = truncations(model, kept, pieces, replace(row, metric=metric), stacks, Journal(tmp_path), **more)
    outputs = [part for _, part in (metrics[name] for name in group) if part is not None]
    expected = truncation(
        torch.cat([model.weight(name) for name in group]),
        inputs=metrics[group[0]][0],
        outputs=torch.block_diag(*outputs) if outputs else None,
    )
    ((spectrum, _, k),) = cuts[group[0]].parts("shared", [9])
    assert k == 9
    assert np.allclose(spectrum.losses, expected.losses, rtol=1e-9)
    assert [cuts[name].parts("shared", [9]) for name in group[1:]] == [[], []]
    matrix = torch.cat([cuts[name].factors("shared", [9]).matrix() for name in group])  # type: ignore[union-attr]
    assert torch.allclose(matrix.double(), expected.pair(9).matrix(), atol=1e-5)
    ((alone, _, _),) = cuts[group[1]].parts("pair", [5])
    assert len(alone.losses) == model.layers()[group[1]].rows + 1  # its own truncation, not its part of the stack's
    assert cuts[group[1]].factors("pair", [5]).matrix().shape == (24, 48)  # type: ignore[union-attr]


@pytest.mark.parametrize("more", [{}, {"cost": "bytes", "dtype": "float16,int8"}, {"correct": True}])
def test_layers_that_read_few_directions_share_them(
    stacked: Path, texts: dict[str, Path], tmp_path: Path, more: dict[str, Any]
) -> None:
    small: Any = eckart.compress(stacked, 0.7, out=tmp_path / "small", **job(texts, **more))
    sharing = [name for name, option in small.plan.options.items() if option.format == "shared"]
    for group in STACKS:
        assert {name in sharing for name in group} in ({True}, {False})
        if group[0] in sharing:
            options = [small.plan.options[name] for name in group]
            assert [option.down_of for option in options] == ["", *[group[0]] * (len(group) - 1)]
            assert len({option.ranks for option in options}) == 1
    assert {*STACKS[0], *STACKS[2]} <= {*sharing}
    assert small.parameters == small.plan.parameters_after
    separate = eckart.plan(stacked, 0.7, **job(texts, **more) | {"storage": "auto"})
    assert not any(option.format == "shared" for option in separate.options.values())
    assert small.plan.predicted_loss_increase < separate.predicted_loss_increase
    in_memory: Any = eckart.compress(eckart.open_model(stacked), 0.7, **job(texts, **more))
    assert in_memory.plan == small.plan
    assert torch.equal(in_memory.run(TOKENS), small.run(TOKENS))


def test_a_plan_with_stacks_is_carried_out_as_it_stands(stacked: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    plan = eckart.plan(stacked, 0.7, **job(texts))
    plan.save(tmp_path / "plan.json")
    again = {name: value for name, value in job(texts).items() if name != "storage"}
    given: Any = eckart.compress(stacked, plan=tmp_path / "plan.json", **again)
    found: Any = eckart.compress(stacked, 0.7, **job(texts))
    assert given.plan.options == found.plan.options
    assert torch.allclose(given.run(TOKENS), found.run(TOKENS), atol=1e-4)
    q, k, _ = STACKS[0]
    gate = "model.layers.0.mlp.gate_proj"
    smaller: Any = eckart.compress(stacked, plan=plan.with_rank(k, 4), **again)
    assert smaller.plan.options[q].ranks == (4,)
    options = {name: replace(plan.options[k], down_of=q) for name in (k, gate)}
    options[gate] = _option.shared(96, 48, False, "float32", plan.options[q].ranks[0], q)
    layers = tuple(replace(layer, option=options.get(layer.name, layer.option)) for layer in plan.layers)
    with pytest.raises(UsageError, match="do not read the same input"):
        eckart.compress(stacked, plan=replace(plan, layers=layers), **again)


def test_where_sharing_helps_nothing_is_shared(tiny: Tiny, texts: dict[str, Path]) -> None:
    plans = [eckart.plan(tiny("llama"), 0.95, **job(texts) | {"storage": storage}) for storage in ("shared", "auto")]
    losses = [plan.predicted_loss_increase for plan in plans]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0] <= 1.05 * losses[1]  # what is left of a budget is spent layer by layer, or group by group


def test_only_a_method_that_weighs_losses_can_choose_to_share(tiny: Tiny, texts: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="does not weigh layers alone against layers that share"):
        eckart.plan(tiny("llama"), 0.9, **job(texts), method="svd-llm")
