"""Calibration one block at a time sees what one pass through the whole model sees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eckart
from eckart._compress._calibrate import _predicted, _sweep
from eckart._compress._journal import Journal
from eckart._compress._methods import METHODS
from eckart._factorise import truncation
from eckart._rounding import rounding
from eckart.errors import InputError, RankError
from eckart.models._blocks import check_blocks_stand_alone
from eckart.models._model import silent
from eckart.models._quality import next_token_loss

Tiny = Callable[..., Path]
BATCHES = torch.randint(3, 384, (6, 40), generator=torch.Generator().manual_seed(1)).split(2)
EPS = torch.finfo(torch.float32).eps


def compressible(model: Any) -> list[str]:
    return [name for name, layer in model.layers().items() if not layer.kept and not layer.table]


def close(a: Any, b: Any) -> bool:
    scale = float(torch.linalg.matrix_norm(b.sum))
    return a.count == b.count and float(torch.linalg.matrix_norm(a.sum - b.sum)) <= 200 * EPS * scale


@pytest.mark.parametrize("kind", ["llama", "untied", "gpt2", "bert"])
def test_grams_are_those_of_one_pass_through_the_whole_model(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny(kind))
    names = compressible(model)
    method = METHODS["input" if kind == "bert" else "two-sided"]
    with model.tap(names, gradients=method.gradients) as whole:
        for batch in BATCHES:
            embedded = model.module.get_input_embeddings()(batch).detach().requires_grad_()
            output = model.module(inputs_embeds=embedded)[0]
            if method.gradients != "none":
                next_token_loss(output, batch).backward()
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}

    def take(some: Sequence[str], taps: Any) -> None:
        inputs.update({name: taps.inputs[name] for name in some})
        outputs.update({name: taps.outputs[name] for name in some if method.gradients != "none"})

    with contextlib.closing(model.runner(BATCHES)) as runner:
        _sweep(runner, model, names, [], method, take, Journal(tmp_path), silent, _predicted)
    assert inputs.keys() == set(names)
    for name in names:
        assert inputs[name].count == sum(batch.numel() for batch in BATCHES)
        assert close(inputs[name], whole.inputs[name]), name
        if method.gradients != "none":
            assert float(outputs[name].sum.trace()) > 0
            assert close(outputs[name], whole.outputs[name]), name
    assert not any("forward" in vars(module) for module in model.module.modules()), "a stub was left in place"


def test_layers_that_read_one_input_share_one_gram(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    names = compressible(model)
    with model.tap(names, gradients=False) as taps:
        model.run(BATCHES[0])
    attention = [taps.inputs[f"model.layers.0.self_attn.{leaf}_proj"] for leaf in "qkvo"]
    assert attention[0] is attention[1] is attention[2]
    assert attention[3] is not attention[0]
    assert len({id(gram) for gram in taps.inputs.values()}) == 4 * 3  # four distinct inputs a block, three blocks


def test_a_group_that_does_not_hold_is_noticed(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    attention = model.module.model.layers[0].self_attn
    forward = type(attention.k_proj).__call__

    class Scaled(nn.Linear):
        def __call__(self, x: torch.Tensor) -> Any:
            return forward(self, 2 * x)

    attention.k_proj.__class__ = Scaled
    with model.tap(["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"], gradients=False) as taps:
        model.run(BATCHES[0])
    q, k = (taps.inputs[f"model.layers.0.self_attn.{leaf}_proj"] for leaf in "qk")
    assert torch.allclose(k.sum, 4 * q.sum)


def test_blocks_that_exchange_more_than_hidden_states_are_refused(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    blocks = [model.module.get_submodule(name) for name in model.blocks()]
    check_blocks_stand_alone(model.module, blocks, BATCHES[0][:1])
    kept: list[torch.Tensor] = []
    blocks[0].register_forward_hook(lambda module, args, output: kept.append(args[0]))
    inner = model.module.model.norm.forward
    model.module.model.norm.forward = lambda x: inner(x + len(kept))
    with pytest.raises(InputError, match="exchange more than hidden states"):
        check_blocks_stand_alone(model.module, blocks, BATCHES[0][:1])


def test_a_stored_truncation_is_the_truncation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, journal = torch.randn(9, 6), Journal(tmp_path)
    made = truncation(weight, keep_rank=4).stored()
    lost = rounding(weight, made)
    journal.put("layer", made, lost)
    found = journal.get("layer")
    assert np.array_equal(found.losses, made.losses)
    for form, dtype, k in (
        ("dense", "float16", 6),
        ("dense", "float32", 6),
        ("pair", "int8", 3),
        ("pifa", "bfloat16", 2),
    ):
        assert found.error(form, dtype, k) == made.losses[k] + lost.error(form, dtype, k)
    for k in range(5):
        assert torch.equal(found.factors("pair", [k]).up, made.pair(k).up)
        assert torch.equal(found.factors("pair", [k]).down, made.pair(k).down)
    for factors in (lambda: found.factors("pair", [5]), lambda: made.pair(5)):
        with pytest.raises(RankError, match="up to rank 4"):
            factors()
