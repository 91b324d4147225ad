"""Sequential correction: the best `up` for what the compressed blocks let through; resumed to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart._compress._correct import refit
from eckart._compress._methods import SEQUENTIAL, Correction
from eckart._factorise import Gram, truncation
from eckart.errors import UsageError
from eckart.models._cross import CrossGram, calls_in_order, cross_tapped
from eckart.models._texts import contexts, read_text

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 67)[None] * 5 % 384
JOB: dict[str, Any] = {"tokens": 1024, "context": 64}


@pytest.fixture
def layer() -> dict[str, torch.Tensor]:
    """A weight, the inputs of the dense network, and what the compressed one has instead."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 12, generator=generator, dtype=torch.float64)
    return {"W": weight, "x": x, "y": x @ torch.randn(12, 12, generator=generator).double() * 0.1 + 0.9 * x}


def sums(x: torch.Tensor, instead: torch.Tensor) -> CrossGram:
    seen = CrossGram(x.shape[1])
    seen.gram, seen.cross = instead.T @ instead, x.T @ instead
    return seen


@pytest.mark.parametrize(("target", "ridge"), [(0.0, 0.1), (0.6, 0.1), (1.0, 0.1), (0.7, 1e-12)])
def test_no_other_up_comes_nearer_to_the_target(layer: dict[str, torch.Tensor], target: float, ridge: float) -> None:
    W, x, y = layer["W"], layer["x"], layer["y"]
    pair = truncation(W, inputs=x.T @ x).pair(5)
    found = refit(W, pair, sums(x, y), Correction(target, ridge, together=False, shrinkage=0.0))
    assert torch.equal(found.down, pair.down)
    level = ridge * (y.T @ y).diagonal().mean()
    wanted = target * x @ W.T + (1 - target) * y @ W.T  # by the dense solution, the ridge towards W as further rows
    rows = torch.cat([y, level.sqrt() * torch.eye(12, dtype=torch.float64)])
    best = torch.linalg.lstsq(rows, torch.cat([wanted, level.sqrt() * W.T])).solution.T
    generator = torch.Generator().manual_seed(1)
    weighting = torch.randn(20, 20, generator=generator, dtype=torch.float64)  # of outputs: the optimum is the same

    def loss(up: torch.Tensor) -> float:
        return float((y @ (best - up @ pair.down).T @ weighting).square().sum())

    least = loss(found.up)
    assert least < loss(pair.up)
    for _ in range(20):
        assert loss(found.up + 1e-3 * torch.randn(20, 5, generator=generator, dtype=torch.float64)) > least


def test_where_nothing_has_changed_nothing_changes(layer: dict[str, torch.Tensor]) -> None:
    W, x = layer["W"], layer["x"]
    gram = Gram(12)
    gram.sum, gram.count = x.T @ x, len(x)
    for k in (5, 12):
        pair = truncation(W, inputs=gram.shrunk(SEQUENTIAL.shrinkage)).pair(k)
        assert torch.allclose(refit(W, pair, sums(x, x), SEQUENTIAL).up, pair.up, atol=1e-10)
    whole = truncation(W, inputs=x.T @ x).pair(12)
    mpifa = Correction(0.25, 0.0, together=False, down_ridge=1e-3)
    assert torch.allclose(refit(W, whole, sums(x, x), mpifa).matrix(), W, atol=1e-10)


def test_fewer_tokens_than_directions_do_no_harm(layer: dict[str, torch.Tensor]) -> None:
    W, x, y = layer["W"], layer["x"][:3], layer["y"][:3]
    pair = truncation(W).pair(8)
    found = refit(W, pair, sums(x, y), Correction(0.0, 0.0, together=True))
    assert torch.allclose(y @ found.matrix().T, y @ W.T, atol=1e-8)
    assert float(found.up.norm()) < 100 * float(pair.up.norm())


def test_both_versions_are_heard_and_equal_inputs_share_a_sum(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    names = [f"model.layers.1.self_attn.{leaf}_proj" for leaf in "vqko"]
    modules = {name: model.module.get_submodule(name) for name in names}
    twin = model.copy()
    twin.module.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(
        0.5 * model.module.model.layers[0].mlp.down_proj.weight, requires_grad=False
    )
    rows: dict[str, torch.Tensor] = {}
    for label, one in (("x", model), ("y", twin)):
        one.module.get_submodule(names[0]).register_forward_pre_hook(
            lambda module, args, label=label: rows.__setitem__(label, args[0].flatten(0, 1).double())
        )
    with cross_tapped(modules, {name: twin.module.get_submodule(name) for name in names}) as (seen, add):
        assert calls_in_order(modules, lambda: model.run(TOKENS))[-1] == names[-1]
        twin.run(TOKENS)
        add()
    assert seen[names[0]] is seen[names[1]] is seen[names[2]]
    assert seen[names[3]] is not seen[names[0]]
    assert torch.allclose(seen[names[0]].cross, rows["x"].T @ rows["y"], rtol=1e-4, atol=1e-3)
    assert torch.allclose(seen[names[0]].gram, rows["y"].T @ rows["y"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", ["pair", "pifa"])
def test_a_corrected_model_is_nearer_to_the_dense_one(
    tiny: Tiny, texts: dict[str, Path], kind: str, storage: Any
) -> None:
    model: Any = eckart.open_model(tiny(kind))
    calibrated = contexts(model.tokenizer, read_text(texts["train"]), context=64, count=16, seed=0)
    dense = model.run(calibrated)
    job = {"data": texts["train"], "method": "input", "storage": storage, **JOB}
    errors, sizes = [], []
    for correct in (False, True):
        small = eckart.compress(model, 0.8, correct=correct, **job)
        errors.append(float((small.run(calibrated) - dense).norm()))
        sizes.append(small.parameters)
    assert errors[1] < errors[0]
    assert sizes[0] == sizes[1]


def test_correction_is_part_of_the_plan(tiny: Tiny, texts: dict[str, Path]) -> None:
    job = {"data": texts["train"], **JOB}
    plan = eckart.plan(tiny("llama"), 0.7, correct=True, **job)
    assert plan.correct
    assert eckart.Plan.from_json(plan.to_json()) == plan
    direct = eckart.compress(tiny("llama"), 0.7, correct=True, **job).run(TOKENS)
    assert torch.equal(eckart.compress(tiny("llama"), plan=plan, **job).run(TOKENS), direct)
    without = eckart.compress(tiny("llama"), plan=replace(plan, correct=False), **job).run(TOKENS)
    assert not torch.equal(without, direct)


def test_what_cannot_be_corrected_is_refused(tiny: Tiny, texts: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="nothing to correct by"):
        eckart.plan(tiny("llama"), 0.7, method="plain", correct=True)
    with pytest.raises(UsageError, match="nothing without its correction"):
        eckart.plan(tiny("llama"), 0.7, method="mpifa", correct=False, data=texts["train"])
