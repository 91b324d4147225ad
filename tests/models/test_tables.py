"""An embedding and its head in groups of rows: the same matrix at full rank, one set of tensors, loss as predicted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM

import eckart
import eckart.hf
from eckart._compress._calibrate import _predicted, _sweep, truncations
from eckart._compress._journal import Journal
from eckart._compress._methods import METHODS, predicted_loss
from eckart._compress._sharing import Stacks
from eckart._compress._tables import StoredTable, groups_of, metric_of, ranks_of_group, row_weights
from eckart._factorise import Gram, truncation
from eckart._rounding import rounding
from eckart.errors import RankError, UsageError
from eckart.models import _huggingface, _option
from eckart.models._factored_layers import Int8Linear
from eckart.models._latency import _calls
from eckart.models._model import silent
from eckart.models._quality import next_token_loss
from eckart.models._table import FactoredHead, FactoredTable, TiedHead
from eckart.models._taps import TableTaps

Tiny = Callable[..., Path]
BATCHES = torch.randint(3, 384, (6, 40), generator=torch.Generator().manual_seed(1)).split(2)
TOKENS = torch.arange(3, 67)[None] * 5 % 384
EPS = torch.finfo(torch.float32).eps
NAMES = {
    "llama": "model.embed_tokens",
    "untied": "model.embed_tokens",
    "gpt2": "transformer.wte",
    "gemma": "model.embed_tokens",
}


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 384, 49152, 50257])
def test_half_of_the_rows_are_in_the_last_group(rows: int) -> None:
    sizes = _option.group_sizes(rows)
    assert sum(sizes) == rows
    assert min(sizes) > 0
    assert rows == 1 or sizes[-1] == -(-rows // 2)


def test_numbers_and_bytes_are_those_of_the_tensors() -> None:
    for ranks in ([8, 8, 8, 8, 8, 8], [48, 48, 8, 16, 24, 32], [48] * 6):
        option = _option.grouped(384, 48, False, "float16", ranks)
        stored = FactoredTable(384, 48, option.ranks, dtype=torch.float16).state_dict()
        assert option.params == sum(t.numel() for t in stored.values())
        assert option.bytes == sum(t.numel() * t.element_size() for t in stored.values())
        assert _option.read_option(option.to_json(), 384, 48, False) == option
    for ranks in ([8] * 5, [0] + [8] * 5, [49] + [8] * 5):
        with pytest.raises(RankError, match="6 groups of rows"):
            _option.grouped(384, 48, False, "float16", ranks)


def table_of(weight: torch.Tensor, shares: torch.Tensor, metric: torch.Tensor, folder: Path) -> StoredTable:
    rows, journal = groups_of(shares), Journal(folder)
    cuts = [(truncation(weight[r], inputs=metric, outputs=shares[r]).stored(), r) for r in rows]
    journal.put_table("t", rows, [(cut, rounding(weight[r], cut, inputs=metric, outputs=shares[r])) for cut, r in cuts])
    return journal.get_table("t", weight)


def test_factors_lose_what_is_predicted_and_less_than_nearby_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 24)
    shares = torch.rand(96, dtype=torch.float64) ** 4
    shares /= shares.sum()
    half = torch.randn(24, 24, dtype=torch.float64)
    metric = half @ half.T + 0.1 * torch.eye(24, dtype=torch.float64)
    table = table_of(weight, shares, metric, tmp_path)
    ranks = [24, 2, 3, 6, 9, 12]

    def loss(matrix: torch.Tensor) -> float:
        d = (matrix - weight).double()
        return float((shares[:, None] * (d @ metric) * d).sum())

    found = table.factors("grouped", ranks)
    predicted = sum(part.losses[k] for part, _, k in table.parts("grouped", ranks))
    assert loss(found.matrix()) == pytest.approx(predicted, rel=1e-5)
    heaviest = shares.argsort(descending=True)[: _option.group_sizes(96)[0]]
    assert torch.equal(found.matrix()[heaviest], weight[heaviest])
    for part in found.parts[1:]:
        for tensor in (part.up, part.down):  # type: ignore[union-attr]
            tensor += 1e-3 * torch.randn_like(tensor)
            assert loss(found.matrix()) > predicted


@pytest.mark.parametrize("kind", ["llama", "untied", "gpt2"])
def test_what_is_seen_of_a_table_is_what_one_pass_shows(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny(kind))
    name, table = NAMES[kind], model.module.get_input_embeddings()
    looked_up = torch.zeros(384, dtype=torch.float64)
    predicted, inputs, gradients = looked_up.clone(), Gram(table.weight.shape[1]), Gram(table.weight.shape[1])
    for batch in BATCHES:
        leaf = table(batch).detach().requires_grad_()
        out = model.module(inputs_embeds=leaf, output_hidden_states=True)
        next_token_loss(out.logits, batch).backward()
        gradients.add(leaf.grad.flatten(0, 1))
        inputs.add(out.hidden_states[-1].detach().flatten(0, 1))
        looked_up += torch.bincount(batch.flatten(), minlength=384)
        predicted += out.logits.detach().softmax(-1).sum(dim=(0, 1))
    journal, seen = Journal(tmp_path), Gram(table.weight.shape[1])
    with contextlib.closing(model.runner(BATCHES)) as runner:
        reached = _sweep(
            runner, model, [], [name], METHODS["two-sided"], lambda some, taps: None, journal, silent, _predicted
        )
        for rows in runner.before(table, reached):
            seen.add(rows.flatten(0, 1))
    taps = journal.seen(name)
    assert torch.equal(taps.looked_up, looked_up)
    assert float((seen.sum - gradients.sum).norm()) <= 1e3 * EPS * float(gradients.sum.norm())
    assert not any("forward" in vars(module) for module in model.module.modules()), "a stub was left in place"
    if kind == "untied":
        assert taps.inputs is None
        assert float(taps.predicted.sum()) == 0
    else:
        assert taps.inputs is not None
        assert taps.inputs.count == inputs.count == looked_up.sum()
        assert float((taps.inputs.sum - inputs.sum).norm()) <= 1e3 * EPS * float(inputs.sum.norm())
        assert float((taps.predicted - predicted).abs().max()) <= 1e3 * EPS * float(predicted.max())


def test_shares_sum_to_one_and_none_is_zero() -> None:
    none, some = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    some[7] = 12
    for taps in (TableTaps(some, none, None), TableTaps(some, some, None)):
        shares = row_weights(taps)
        assert float(shares.sum()) == pytest.approx(1)
        assert float(shares.min()) > 0
        assert int(shares.argmax()) == 7


def test_the_metric_is_the_sum_of_both_uses() -> None:
    torch.manual_seed(0)
    rows, gradients = Gram(5), Gram(5)
    rows.add(torch.randn(100, 5))
    gradients.add(torch.randn(80, 5))
    none = torch.zeros(9, dtype=torch.float64)
    alone = metric_of(TableTaps(none, none, None), gradients)
    both = metric_of(TableTaps(none, none, rows), gradients)
    assert torch.allclose(alone, gradients.shrunk(0.1))
    assert torch.allclose(both - alone, rows.shrunk(0.02))
    assert torch.allclose(metric_of(TableTaps(none, none, rows), None), rows.shrunk(0.02))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saved_reloaded_and_tied(tiny: Tiny, texts: dict[str, Path], tmp_path: Path, kind: str, dtype: str) -> None:
    small = eckart.compress(
        tiny(kind), 0.92, data=texts["train"], tokens=1024, context=64, layers=NAMES[kind], dtype=dtype,
        out=tmp_path / "small",
    )  # fmt: skip
    assert [option.format for option in small.plan.options.values()] == ["grouped"]
    assert small.parameters == small.plan.parameters_after <= 0.92 * small.plan.parameters_before
    again: Any = eckart.open_model(tmp_path / "small")
    table, head = again.module.get_input_embeddings(), again.module.get_output_embeddings()
    assert isinstance(table, FactoredTable)
    assert isinstance(head, TiedHead) == (kind != "untied")
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    assert again.replaced == small.replaced
    scale = 48**0.5 if kind == "gemma" else 1.0
    assert (scale * functional.embedding(TOKENS, table.weight)).allclose(table(TOKENS), atol=1e-6 * scale)
    if kind != "untied":
        x = torch.randn(3, table.embedding_dim)
        assert torch.allclose(head(x), x @ table.weight.T, atol=1e-5)
    bare = AutoModel.from_pretrained(tmp_path / "small")
    assert isinstance(bare.get_input_embeddings(), FactoredTable)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    whole.tie_weights()
    assert whole.generate(TOKENS[:, :8], max_new_tokens=5, do_sample=False).shape == (1, 13)
    whole.save_pretrained(tmp_path / "copy")
    copy: Any = eckart.open_model(tmp_path / "copy")
    assert torch.equal(copy.run(TOKENS), again.run(TOKENS))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_as_a_dense_checkpoint_it_stays_tied(tiny: Tiny, texts: dict[str, Path], tmp_path: Path, kind: str) -> None:
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64, "layers": NAMES[kind]}
    small = eckart.compress(tiny(kind), 0.92, dtype="float32", **job)
    dense = eckart.compress(tiny(kind), 0.92, dtype="float32", format="dense", out=tmp_path / "dense", **job)
    assert dense.parameters == dense.plan.parameters_before
    assert dense.module.get_output_embeddings().weight is dense.module.get_input_embeddings().weight
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    assert torch.allclose(plain(TOKENS)[0], small.run(TOKENS), atol=1e-4)


def test_a_plan_with_its_ranks_edited_is_carried_out(tiny: Tiny, texts: dict[str, Path]) -> None:
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64}
    plan = eckart.plan(tiny("llama"), 0.8, **job)
    name = NAMES["llama"]
    edited = plan.with_rank(name, 16)
    value = edited.to_json()
    entry = next(layer for layer in value["layers"] if layer["name"] == name)
    assert entry["option"]["ranks"] == [16] * 6
    entry["option"]["ranks"] = [48, 48, 48, 24, 16, 8]
    small = eckart.compress(tiny("llama"), plan=eckart.Plan.from_json(value), **job)
    assert small.plan.options[name].ranks == (48, 48, 48, 24, 16, 8)
    assert small.parameters == small.plan.parameters_after
    wrong = replace(
        next(layer for layer in plan.layers if layer.name == name), option=_option.pair(384, 48, False, "float32", 3)
    )
    layers = tuple(wrong if layer.name == name else layer for layer in plan.layers)
    with pytest.raises(UsageError, match="cannot be stored as 'pair'"):
        eckart.compress(tiny("llama"), plan=replace(plan, layers=layers), **job)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_the_metric_is_of_the_rows_before_they_are_scaled(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny(kind))
    name, journal, pieces = NAMES[kind], Journal(tmp_path), torch.cat(BATCHES)
    found = truncations(
        model, {name: (48,) * 6}, pieces, METHODS["two-sided"], Stacks({}), journal,
        device=None, seed=0, workers=None, progress=silent,
    )  # fmt: skip
    weight = model.module.get_input_embeddings().weight
    changes = torch.zeros(*pieces.shape, 48, requires_grad=True)

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return (
            output * (functional.embedding(args[0], weight.detach()) + changes) / functional.embedding(args[0], weight)
        )

    handle = model.module.get_input_embeddings().register_forward_hook(add)
    next_token_loss(model.module(pieces).logits, pieces).backward()
    handle.remove()
    gradients, taps = Gram(48), journal.seen(name)
    assert changes.grad is not None
    gradients.add(changes.grad.flatten(0, 1))
    metric, rows = metric_of(taps, gradients), weight.detach().double()
    expected = float((row_weights(taps)[:, None] * (rows @ metric) * rows).sum())
    total = sum(float(part.losses[0]) for part, _, _ in found[name].parts("grouped", ()))
    assert total == pytest.approx(expected, rel=1e-4)


def test_the_offered_options_are_the_best_at_every_price(tmp_path: Path) -> None:
    from eckart._compress._ranks import _best_of_groups

    torch.manual_seed(0)
    weight, shares = torch.randn(384, 48), torch.rand(384, dtype=torch.float64) ** 6
    table = table_of(weight, shares / shares.sum(), torch.eye(48, dtype=torch.float64), tmp_path)
    sizes, method = _option.group_sizes(384), METHODS["two-sided"]
    least = _option.grouped(384, 48, False, "float16", [ranks_of_group(size, 48)[0] for size in sizes])
    offers = _best_of_groups(least, table, method)

    assert [option.params for option in offers] == sorted((option.params for option in offers), reverse=True)
    for price in np.geomspace(1e-9, 1e-1, 40):
        found = min(predicted_loss(method, table, option) + price * option.params for option in offers)
        best = 0.0
        for g, size in enumerate(sizes):
            prices = []
            for k in ranks_of_group(size, 48):
                part, form, place = table.parts("grouped", [k] * len(sizes))[g]
                numbers = size * 48 if k == 48 else k * (size + 48)
                prices.append(method.scale(part) * part.error(form, "float16", place) + price * numbers)
            best += min(prices)
        if best + price * 384 < price * 384 * 48:  # otherwise dense, which has no order, is better still
            assert found == pytest.approx(best + price * 384, rel=1e-9)


HEADS = {"untied": "lm_head", "neox": "lm_head", "phi": "lm_head"}


@pytest.fixture
def large_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 384 outputs be too many for an output Gram."""
    monkeypatch.setattr(_huggingface, "LARGEST_OUTPUT", 256)


@pytest.mark.usefixtures("large_heads")
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", ["float32", "float16,int8"])
def test_a_large_head_tied_to_nothing_is_a_table_of_its_own(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, kind: str, dtype: str
) -> None:
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64, "layers": HEADS[kind]}
    small = eckart.compress(tiny(kind), 0.92, cost="bytes", dtype=dtype, out=tmp_path / "small", **job)
    (option,) = small.plan.options.values()
    assert option.format == "grouped" or option.dtype == "int8"
    again: Any = eckart.open_model(tmp_path / "small")
    head = again.module.get_output_embeddings()
    assert isinstance(head, FactoredHead if option.format == "grouped" else Int8Linear)
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    assert (head.bias is not None) == (kind == "phi")
    read = torch.randn(3, 48)
    expected = functional.linear(read, head.weight, head.bias)
    assert torch.allclose(head(read), expected, atol=1e-4 * float(expected.abs().max()))
    assert option.params == sum(t.numel() for t in head.state_dict().values())
    plain = eckart.compress(
        tiny(kind), plan=small.plan, format="dense", out=tmp_path / "plain", **job | {"layers": "*"}
    )
    assert torch.allclose(plain.run(TOKENS), small.run(TOKENS), atol=1e-3 * float(small.run(TOKENS).abs().max()))


@pytest.mark.usefixtures("large_heads")
@pytest.mark.parametrize("kind", HEADS)
def test_a_heads_metric_and_shares_are_those_of_what_it_reads_and_predicts(
    tiny: Tiny, texts: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    model: Any = eckart.open_model(tiny(kind))
    assert [name for name, layer in model.layers().items() if layer.table] == [
        name for name in model.layers() if model.module.get_submodule(name).weight.shape[0] == 384
    ]
    logits = torch.cat([model.run(batch) for batch in BATCHES]).flatten(0, 1)
    journal = Journal(tmp_path)
    with contextlib.closing(model.runner(BATCHES)) as runner:
        _sweep(
            runner, model, [], [HEADS[kind]], METHODS["two-sided"], lambda some, taps: None, journal, silent, _predicted
        )
    taps = journal.seen(HEADS[kind])
    assert float(taps.looked_up.sum()) == 0
    assert float((taps.predicted - logits.softmax(-1).sum(0)).abs().max()) <= 1e3 * EPS * float(taps.predicted.max())
    assert taps.inputs is not None
    head = model.module.get_output_embeddings()
    weight = head.weight.detach().double()
    bias = torch.zeros(384) if head.bias is None else head.bias.detach()
    read = torch.linalg.lstsq(weight, (logits - bias).double().T).solution
    gram = read @ read.T
    assert float((taps.inputs.sum - gram).norm()) <= 1e4 * EPS * float(gram.norm())


@pytest.mark.usefixtures("large_heads")
@pytest.mark.parametrize("method", ["svd-llm", "plain"])
def test_methods_without_tables_say_that_a_large_head_stays(tiny: Tiny, texts: dict[str, Path], method: str) -> None:
    plan = eckart.plan(tiny("neox"), 0.9, method=method, data=texts["train"], tokens=1024, context=64)
    kept = {layer.name: layer.kept for layer in plan.layers}
    assert kept["lm_head"] == "a large head, which this method leaves as it is"


@pytest.mark.usefixtures("large_heads")
@pytest.mark.parametrize("kind", HEADS)
def test_a_large_head_is_timed_where_it_multiplies(tiny: Tiny, kind: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    assert _calls(model, list(model.layers()), 16)[HEADS[kind]] == [1]  # of the last token alone
    assert not any(layer.looked_up for name, layer in model.layers().items() if name in _calls(model, [name], 16))
