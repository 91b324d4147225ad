"""LEMS: the error model of its authors, the best choice there is in it, and a divergence measured once a layer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import eckart
from eckart._compress import _allocate
from eckart._compress._allocate import Choices, least_loss_exactly
from eckart._compress._journal import Journal
from eckart._compress._lems import depth_bias, divergence, measured
from eckart._factorise import truncation
from eckart._rounding import rounding

Tiny = Callable[..., Path]
JOB: dict[str, Any] = {"tokens": 1024, "context": 64, "method": "lems"}
BATCH = torch.randint(3, 384, (2, 40), generator=torch.Generator().manual_seed(1))


@given(data=st.data(), rounded=st.booleans())
def test_the_choice_is_the_best_there_is(data: st.DataObject, rounded: bool) -> None:
    layers = {}
    for i in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(1, 4))
        costs = np.array(data.draw(st.lists(st.integers(1, 30), min_size=size, max_size=size, unique=True)), float)
        losses = np.array(data.draw(st.lists(st.integers(0, 30), min_size=size, max_size=size)), float)
        layers[f"layer{i}"] = Choices(costs * 24, losses)
    least = sum(c.costs.min() for c in layers.values())
    budget = data.draw(st.integers(int(least), int(sum(c.costs.max() for c in layers.values()))))
    with pytest.MonkeyPatch.context() as patch:
        if rounded:
            patch.setattr(_allocate, "UNITS", 20)
        chosen = least_loss_exactly(layers, budget)
    loss = sum(layers[name].losses[i] for name, i in chosen.items())
    assert sum(layers[name].costs[i] for name, i in chosen.items()) <= budget
    slack = budget / 20 * len(layers) if rounded else 0

    def best(within: float) -> float:
        return min(
            sum(c.losses[i] for c, i in zip(layers.values(), combination, strict=True))
            for combination in itertools.product(*(range(len(c.costs)) for c in layers.values()))
            if sum(c.costs[i] for c, i in zip(layers.values(), combination, strict=True)) <= within
        )

    assert best(budget) <= loss <= best(max(least, budget - slack))


def test_the_divergence_is_that_of_its_authors() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, other = (torch.randn(2, 600, 9, generator=generator) for _ in range(2))
    target = functional.softmax(dense[:, 256:] / 0.6, dim=-1).flatten(0, 1)
    own = functional.log_softmax(other[:, 256:] / 0.6, dim=-1).flatten(0, 1)
    assert divergence(dense, other) == pytest.approx(float(functional.kl_div(own, target, reduction="batchmean")))


def test_depth_counts_linearly_from_the_first_block_to_the_last() -> None:
    blocks = [f"layers.{i}" for i in range(4)]
    assert [depth_bias(f"{block}.mlp", blocks, 3.0) for block in blocks] == [4.0, 3.0, 2.0, 1.0]
    assert depth_bias("head", blocks, 3.0) == 1.0


def test_run_onward_from_a_boundary_is_the_whole_run(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    whole = model.run(BATCH)
    with contextlib.closing(model.runner([BATCH])) as runner:
        runner.start()
        for i in range(3):
            runner.forward(i)
        for i in range(4):
            assert torch.equal(runner.onward(i, 0)[0], whole)


def test_losses_are_scaled_to_what_is_measured(tiny: Tiny, tmp_path: Path) -> None:
    from eckart._compress._job import prepare
    from eckart._compress._target import as_target

    model: Any = eckart.open_model(tiny("llama"))
    job = prepare(
        model, as_target(0.8, None, None, "params", "lems"), method="lems", loss="auto", correct=None, storage="auto",
        dtype=None, data="text", tokens=64, context=64, layers="*", device=None, max_shard_size="5GB", seed=0,
        workers=None, progress=None,
    )  # fmt: skip
    names = ["model.layers.1.mlp.up_proj", "model.layers.2.self_attn.o_proj"]
    journal = Journal(tmp_path)
    for name in names:
        cut = truncation(model.weight(name)).stored()
        journal.put(name, cut, rounding(model.weight(name), cut))
    raw: dict[str, Any] = {name: journal.get(name) for name in names}
    cuts = measured(job, raw, BATCH, Journal(tmp_path))
    dense = model.run(BATCH)
    for name, k in zip(names, (3, 2), strict=True):  # a tenth of 96 · 48 / 144 and of 48 · 48 / 96, rounded down
        option = model.options(name, "float32", {"pair": [k]})[1]
        twin = model.copy().assign_(name, option, raw[name].factors("pair", [k]))
        expected = divergence(dense, twin.run(BATCH))
        ((part, *_),) = cuts[name].parts("pair", [k])
        assert part.losses[k] == pytest.approx(expected, rel=1e-3)
        assert part.error("pair", "int8", k) / part.losses[k] == pytest.approx(
            raw[name].error("pair", "int8", k) / raw[name].losses[k]
        )
        assert part.losses[10] / part.losses[k] == pytest.approx(raw[name].losses[10] / raw[name].losses[k])
    again = measured(job, raw, BATCH, Journal(tmp_path))  # from the journal
    first, second = ([c[n].parts("pair", [3])[0][0].losses[3] for n in names] for c in (cuts, again))
    assert first == second


@pytest.mark.parametrize("storage", ["auto", "pifa"])
def test_a_model_is_compressed_within_the_budget(
    tiny: Tiny, texts: dict[str, Path], storage: Any, tmp_path: Path
) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    small = eckart.compress(model, 0.75, data=texts["train"], storage=storage, out=tmp_path / "out", **JOB)
    assert 0.73 * model.parameters <= small.parameters <= 0.75 * model.parameters
    assert {option.format for option in small.replaced.values()} == (
        {"pifa", "folded"} if storage == "pifa" else {"pair"}
    )
    assert all(option.ranks[0] % 8 == 0 for option in small.replaced.values())
    again = eckart.compress(model, plan=small.plan, data=texts["train"], tokens=1024, context=64)
    assert again.plan.options == small.plan.options
    assert [layer.loss_increase for layer in again.plan.layers] == [layer.loss_increase for layer in small.plan.layers]
    assert torch.equal(again.run(BATCH), small.run(BATCH))
