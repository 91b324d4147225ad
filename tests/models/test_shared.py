"""A pair whose `down` is another layer's: the same matrix, stored and counted once, reloaded by transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import eckart
import eckart.hf
from eckart._factorise import truncation
from eckart.errors import InputError, RankError, UsageError
from eckart.models import _option
from eckart.models._factored_layers import frozen
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
