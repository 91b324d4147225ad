"""Blocks left out and a narrower stream: ordinary models that reload anywhere, as near to the dense one as said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import eckart
from eckart._result import parse, read_result
from eckart.errors import BudgetError, InputError, UsageError
from eckart.models._reshape import narrowed, without_blocks
from eckart.models._texts import contexts, read_text

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 67)[None] * 5 % 384
EPS = torch.finfo(torch.float32).eps
JOB: dict[str, Any] = {"tokens": 1024, "context": 64}


def near(a: torch.Tensor, b: torch.Tensor, factor: float) -> bool:
    return float((a - b).abs().max()) <= factor * EPS * float(b.abs().max())


@pytest.mark.parametrize("kind", ["llama", "untied"])
def test_a_rotated_model_that_is_not_sliced_is_the_dense_one(tiny: Tiny, kind: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    for norm in [m for m in model.module.modules() if type(m).__name__.endswith("RMSNorm")]:
        norm.weight.data = 0.5 + torch.rand(48, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(1)).double())
    same = narrowed(model, rotation)
    assert near(same.run(TOKENS), model.run(TOKENS), 1000)
    assert not torch.equal(same.module.get_input_embeddings().weight, model.module.get_input_embeddings().weight)


def test_a_stream_that_never_leaves_a_subspace_is_narrowed_without_loss(tiny: Tiny) -> None:
    model: Any = eckart.open_model(tiny("untied"))
    basis, _ = torch.linalg.qr(torch.randn(48, 40, generator=torch.Generator().manual_seed(1)).double())
    inside = (basis @ basis.T).float()
    for name, module in model.module.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.weight.data = inside @ module.weight
        elif name.endswith("embed_tokens"):
            module.weight.data = module.weight @ inside
    assert near(narrowed(model, basis).run(TOKENS), model.run(TOKENS), 2000)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_without_blocks_the_others_are_what_they_were(tiny: Tiny, kind: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    blocks = model.blocks()
    shorter = without_blocks(model, [blocks[1]])
    assert shorter.blocks() == blocks[:2]
    assert shorter.module.config.num_hidden_layers == 2
    skipped = model.copy()
    block = skipped.module.get_submodule(blocks[1])
    whole = isinstance(block(torch.zeros(1, 1, 48), **extra(skipped)), tuple)
    block.forward = lambda x, *args, **kwargs: (x,) if whole else x
    assert torch.equal(shorter.run(TOKENS), skipped.run(TOKENS))
    assert shorter.parameters == model.parameters - sum(p.numel() for p in block.parameters())


def extra(model: Any) -> dict[str, Any]:
    if model.model_type != "llama":
        return {}
    position = torch.zeros(1, 1, dtype=torch.long)
    return {"position_embeddings": model.module.model.rotary_emb(torch.zeros(1, 1, 48), position)}


def test_blocks_go_in_the_order_of_their_influence(tiny: Tiny, texts: dict[str, Path]) -> None:
    """ShortGPT (arXiv 2403.03853): BI = 1 - E[x_iᵀ x_{i+1} / (‖x_i‖ ‖x_{i+1}‖)]."""
    model: Any = eckart.open_model(tiny("untied"))
    pieces = contexts(model.tokenizer, read_text(texts["train"]), context=64, count=16, seed=0)
    states: list[torch.Tensor] = []
    for name in model.blocks():
        block = model.module.get_submodule(name)
        block.register_forward_hook(
            lambda module, args, output: states.append(
                1 - torch.cosine_similarity(args[0], output[0] if isinstance(output, tuple) else output, dim=-1).mean()
            )
        )
    model.run(pieces)
    order = [model.blocks()[i] for i in sorted(range(3), key=[float(s) for s in states].__getitem__)]
    for keep in (0.8, 0.6):
        plan = eckart.plan(tiny("untied"), keep, method="drop-layers", data=texts["train"], **JOB)
        assert plan.change is not None
        assert plan.change["dropped"] == sorted(order[: len(plan.change["dropped"])])


@pytest.mark.parametrize(("method", "keep"), [("drop-layers", 0.7), ("slicegpt", 0.9)])
@pytest.mark.parametrize("cost", ["params", "bytes"])
def test_the_result_is_an_ordinary_model_within_the_budget(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, method: str, keep: float, cost: Any
) -> None:
    job: dict[str, Any] = {"data": texts["train"], **JOB}
    small = eckart.compress(
        tiny("untied"), keep, cost=cost, method=method, dtype="float32", out=tmp_path / "out", **job
    )
    plan = small.plan
    after, before = (
        getattr(plan, f"{'parameters' if cost == 'params' else 'bytes'}_{end}") for end in ("after", "before")
    )
    assert after <= keep * before
    assert small.parameters == plan.parameters_after
    assert eckart.Plan.from_json(plan.to_json()) == plan
    assert " ".join(f"{what} {value}" for what, value in plan.change.items()) in plan.summary()
    again = eckart.compress(tiny("untied"), plan=plan, **job)
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert torch.equal(plain(TOKENS)[0], small.run(TOKENS))
    reopened: Any = eckart.open_model(tmp_path / "out")
    assert reopened.parameters == small.parameters


@pytest.mark.parametrize(("method", "change"), [("drop-layers", "dropped"), ("slicegpt", "hidden_size")])
def test_it_is_measured_and_the_result_says_what_changed(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, method: str, change: str
) -> None:
    out, wanted = tmp_path / "out", {"evaluate": texts["test"], "evaluate_tokens": 256}
    small = eckart.compress(tiny("untied"), 0.9, method=method, data=texts["train"], out=out, **JOB, **wanted)
    result = parse(read_result(out / "eckart_measurement.json"))
    assert result.models[1].parameters == small.parameters < result.models[0].parameters
    assert result.plan is not None
    assert result.plan.change is not None
    said = result.plan.change[change]
    assert said == (tuple(small.plan.change[change]) if change == "dropped" else small.plan.change[change])


def test_what_needs_factors_is_refused_where_there_are_none(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    for more in ({"recover": "2 steps"}, {"calibration": tmp_path / "kept"}):
        with pytest.raises(UsageError, match="leaves no factors"):
            eckart.compress(tiny("untied"), 0.9, method="slicegpt", data=texts["train"], **JOB, **more)
    with pytest.raises(UsageError, match="time is not known before"):
        eckart.compress(tiny("untied"), 0.9, cost="ms", method="slicegpt", data=texts["train"], **JOB)


def test_principal_components_serve_better_than_a_random_rotation(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("untied"))
    small = eckart.compress(model, 0.92, method="slicegpt", data=texts["train"], **JOB)
    pieces = contexts(model.tokenizer, read_text(texts["train"]), context=64, count=16, seed=0)
    rotation, _ = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(1)).double())
    random = narrowed(model, rotation[:, : small.plan.change["hidden_size"]])
    dense = model.run(pieces)
    assert float((small.run(pieces) - dense).norm()) < float((random.run(pieces) - dense).norm())


def test_what_cannot_be_is_refused(tiny: Tiny, texts: dict[str, Path]) -> None:
    job: dict[str, Any] = {"data": texts["train"], **JOB}
    with pytest.raises(InputError, match="form of a Llama"):
        eckart.plan(tiny("gpt2"), 0.8, method="slicegpt", **job)
    with pytest.raises(BudgetError, match="fewer than method 'drop-layers' can leave"):
        eckart.plan(tiny("llama"), 0.1, method="drop-layers", **job)
    with pytest.raises(UsageError, match="as a whole"):
        eckart.plan(tiny("llama"), 0.8, method="slicegpt", layers="*mlp*", **job)
    with pytest.raises(UsageError, match="max_loss_increase"):
        eckart.plan(tiny("llama"), max_loss_increase=0.1, method="drop-layers", **job)
    plan = eckart.plan(tiny("untied"), 0.7, method="drop-layers", **job)
    for change, message in (({"dropped": ["nope"]}, "not some of the blocks"), ({"dropped": 3}, "not some of the")):
        wrong = eckart.Plan.from_json({**plan.to_json(), "change": change})
        with pytest.raises(UsageError, match=message):
            eckart.compress(tiny("untied"), plan=wrong, **job)
