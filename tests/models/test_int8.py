"""Layers in int8 and other types: the same layer to rounding, bytes as counted, losses as predicted, one knapsack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import eckart
import eckart.hf
from eckart._compress._journal import Journal
from eckart._compress._tables import groups_of
from eckart._factorise import Pair, RowGroups, Truncation, pivoted, truncation
from eckart._rounding import Rounding, int8_rows, rounding
from eckart.errors import InputError, UsageError
from eckart.models import _option
from eckart.models._factored_layers import BLOCK, FactorPair, Int8Linear, PivotingFactorization
from eckart.models._inspect import inspect
from eckart.models._save_huggingface import predicted_bytes, predicted_parameters, save
from eckart.models._table import FactoredTable, Int8Table, TiedHead

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 67)[None] * 5 % 384
TABLES = {"llama": "model.embed_tokens", "untied": "model.embed_tokens", "gpt2": "transformer.wte"}


def small_job(texts: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {"data": texts["train"], "tokens": 512, "context": 64, **more}


# Rounding a matrix, and multiplying by what came of it


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.floats(-20, 20))
def test_no_number_moves_by_more_than_half_a_step(m: int, n: int, seed: int, exponent: float) -> None:
    matrix = torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    values, scales = int8_rows(matrix)
    assert values.dtype == torch.int8
    assert (values.abs().amax(dim=1) == 127).all()
    assert ((values * scales[:, None] - matrix).abs() <= scales[:, None] * 0.5001).all()
    again, same = int8_rows(values * scales[:, None])
    assert torch.equal(again, values)
    assert torch.allclose(same, scales)


def test_a_row_of_zeros_stays_one() -> None:
    values, scales = int8_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert (values * scales[:, None]).tolist() == [[0.0, 0.0], [pytest.approx(1.0, abs=0.01), -2.0]]
    assert int8_rows(torch.empty(0, 3))[0].shape == (0, 3)


def int8_layer(m: int, n: int, *, bias: bool = True) -> Int8Linear:
    layer = Int8Linear(n, m, bias)
    layer.fill_(torch.randn(m, n), torch.randn(m) if bias else None)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 13), (100, 1), (3 * BLOCK // 512, 512), (2, BLOCK + 1)])
def test_a_product_is_that_with_the_weight(m: int, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = int8_layer(m, n).to(dtype)
    assert layer.values.dtype == torch.int8
    for shape in ((n,), (2, 3, n), (0, n)):
        x = torch.randn(shape).to(dtype)
        y = layer(x)
        expected = x.double() @ layer.weight.double().T + layer.bias.double()
        assert y.dtype == dtype
        assert y.shape == expected.shape
        size = x.double().norm(dim=-1, keepdim=True) * layer.weight.double().norm(dim=1) + layer.bias.double().abs()
        assert ((y - expected).abs() <= 4 * torch.finfo(dtype).eps * size).all()


def test_half_precision_does_not_overflow_before_it_is_scaled() -> None:
    layer = Int8Linear(1000, 1, bias=False)
    layer.fill_(torch.full((1, 1000), 1e-3), None)
    assert float(layer.half()(torch.ones(1, 1000).half())) == pytest.approx(1.0, rel=1e-2)


def test_gradients_pass_through_to_inputs_and_scales() -> None:
    torch.manual_seed(0)
    layer, x = int8_layer(5, 4), torch.randn(3, 4, requires_grad=True)
    layer.scales.requires_grad_(True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(dim=0).expand(3, 4))
    assert layer.scales.grad is not None
    assert torch.allclose(layer.scales.grad, (x @ layer.values.float().T).sum(dim=0))


def test_rows_are_those_of_the_weight() -> None:
    layer = int8_layer(9, 4, bias=False)
    places = torch.tensor([[8, 0, 3], [3, 3, 1]])
    assert torch.equal(layer.rows(places), layer.weight[places])


# What options count


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "columns", "k"), [(12, 9, 4), (9, 12, 9), (5, 5, 1)])
def test_numbers_and_bytes_are_those_of_the_tensors(rows: int, columns: int, k: int, bias: bool) -> None:
    made: dict[str, Any] = {
        "dense": (_option.dense(rows, columns, bias, "int8"), Int8Linear(columns, rows, bias)),
        "pair": (_option.pair(rows, columns, bias, "int8", k), FactorPair(rows, columns, k, bias, int8=True)),
        "pifa": (
            _option.pifa(rows, columns, bias, "int8", k),
            PivotingFactorization(rows, columns, k, bias, int8=True),
        ),
    }
    for form, (option, module) in made.items():
        stored = module.state_dict().values()
        assert option.format == form
        assert option.params == sum(t.numel() for t in stored)
        assert option.bytes == sum(t.numel() * t.element_size() for t in stored)
        assert _option.read_option(option.to_json(), rows, columns, bias) == option
        assert option.replaces
    for ranks in ([8] * 6, [48, 48, 8, 16, 24, 32], [48] * 6):
        option, table = _option.grouped(384, 48, False, "int8", ranks), FactoredTable(384, 48, ranks, int8=True)
        assert option.params == sum(t.numel() for t in table.state_dict().values())
        assert option.bytes == sum(t.numel() * t.element_size() for t in table.state_dict().values())
    assert not _option.dense(4, 4, True, "float16").replaces
    with pytest.raises(InputError, match="unknown dtype 'int4'"):
        _option.read_option({"version": 1, "format": "dense", "ranks": [], "dtype": "int4"}, 4, 4, False)


# What rounding is predicted to cost


Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Truncation, Rounding]


def case(m: int, n: int, seed: int = 0) -> Case:
    """A weight whose inputs and gradients have decaying spectra, as those of trained networks have."""
    torch.manual_seed(seed)
    weight = torch.randn(m, n)
    inputs, outputs = (
        torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0] * torch.logspace(0, -2, size).double()
        for size in (n, m)
    )
    inputs, outputs = inputs @ inputs.T, outputs @ outputs.T
    cut = truncation(weight, inputs=inputs, outputs=outputs)
    return weight, inputs, outputs, cut, rounding(weight, cut, inputs=inputs, outputs=outputs)


def norm(change: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    return float(((outputs @ change.double() @ inputs) * change).sum())


def rounded(matrix: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype != "int8":
        return matrix.to(getattr(torch, dtype)).double()
    values, scales = int8_rows(matrix)
    return values.double() * scales[:, None].double()


def stored(pair: Pair, form: str, dtype: str) -> torch.Tensor:
    if form == "pair":
        return rounded(pair.up, dtype) @ rounded(pair.down, dtype)
    found = pivoted(pair)
    rows = rounded(found.rows, dtype)
    return torch.cat([rows, rounded(found.rest, dtype) @ rows])[found.order.long()]


@pytest.mark.parametrize(("m", "n"), [(96, 64), (64, 96)])
@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16"])
def test_the_predicted_error_of_rounding_is_the_mean_of_measured_ones(m: int, n: int, dtype: str) -> None:
    ratios: dict[tuple[str, int], list[float]] = {}
    for seed in range(6):
        weight, inputs, outputs, cut, predicted = case(m, n, seed)
        measured = norm(rounded(weight, dtype) - weight, inputs, outputs)
        ratios.setdefault(("dense", 0), []).append(measured / predicted.error("dense", dtype, 0))
        for form in ("pair", "pifa"):
            for k in (4, 8, 24, 40, 64):
                measured = norm(stored(cut.pair(k), form, dtype) - cut.pair(k).matrix(), inputs, outputs)
                ratios.setdefault((form, k), []).append(measured / predicted.error(form, dtype, k))
    for (form, k), some in ratios.items():
        low, high = (0.5, 2.5) if form == "pifa" else (0.8, 1.25)
        assert low <= sum(some) / len(some) <= high, (form, k)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_with_what_truncation_loses_it_is_the_error_of_the_layer(dtype: str, tmp_path: Path) -> None:
    weight, inputs, outputs, cut, lost = case(96, 64)
    journal = Journal(tmp_path)
    journal.put("layer", cut.stored(), lost)
    found = journal.get("layer")
    for k in (8, 24, 40, 56, 64):
        measured = norm(stored(cut.pair(k), "pair", dtype) - weight, inputs, outputs)
        assert found.error("pair", dtype, k) == pytest.approx(measured, rel=0.3), k
    ((_, form, k),) = found.parts("dense", ())
    assert (form, k) == ("dense", 64)
    assert found.error(form, "float32", k) == 0


def test_a_source_that_has_the_type_loses_nothing_by_it() -> None:
    weight = torch.randn(12, 9).half().float()
    cut = truncation(weight)
    assert rounding(weight, cut).error("dense", "float16", 9) == 0
    assert rounding(weight, cut).error("dense", "float32", 9) == 0
    assert rounding(weight, cut).error("dense", "bfloat16", 9) > 0
    huge = torch.tensor([[1e5, 1.0]])
    assert rounding(huge, truncation(huge)).error("dense", "float16", 1) == pytest.approx((1e5 - 65504) ** 2, rel=1e-3)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_few_or_no_kept_components_and_a_zero_weight(kept: int) -> None:
    for weight in (torch.randn(5, 4), torch.zeros(5, 4), torch.randn(1, 4)):
        cut = truncation(weight, keep_rank=kept)
        found = rounding(weight, cut)
        assert found.error("pair", "int8", 0) == found.error("pifa", "int8", 0) == 0
        for k in range(cut.up.shape[1] + 1):
            assert all(0 <= found.error(form, "int8", k) < 1 for form in ("pair", "pifa"))


def test_a_table_adds_its_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, shares, metric = torch.randn(96, 24), torch.rand(96).double() ** 4, torch.eye(24, dtype=torch.float64)
    rows, journal, cuts = groups_of(shares), Journal(tmp_path), []
    for some in rows:
        cut = truncation(weight[some], inputs=metric, outputs=shares[some])
        cuts.append((cut.stored(), rounding(weight[some], cut, inputs=metric, outputs=shares[some], pivoting=False)))
    journal.put_table("t", rows, cuts)
    table = journal.get_table("t", weight)
    for form, ranks in (("grouped", [3, 2, 3, 24, 9, 12]), ("dense", ())):
        predicted = sum(part.error(own, "int8", k) for part, own, k in table.parts(form, ranks))
        if form == "dense":
            found = rounded(weight, "int8")
        else:
            groups = table.factors("grouped", ranks)
            parts = [stored(p, "pair", "int8") if isinstance(p, Pair) else rounded(p, "int8") for p in groups.parts]
            found = RowGroups(tuple(parts), groups.order).matrix()
        measured = float((shares[:, None] * (found - weight).double().square()).sum())
        assert predicted == pytest.approx(measured, rel=0.1), form


# In a model


def in_int8(model: Any, form: str) -> eckart.Plan:
    """A plan with every layer in int8; form: of those that are no table, in which half of their rank is kept."""
    made = eckart.plan(model, method="int8", dtype="float16")
    layers = []
    for layer in made.layers:
        if not layer.kept and not layer.table and form != "dense":
            k = min(layer.rows, layer.columns) // 2
            layer = replace(layer, option=_option.factored(form, layer.rows, layer.columns, layer.bias, "int8", k))
        layers.append(layer)
    return replace(made, layers=tuple(layers))


@pytest.mark.parametrize(
    ("kind", "form"), [("llama", "pair"), ("untied", "dense"), ("gpt2", "dense"), ("gpt2", "pifa"), ("bert", "pair")]
)
def test_saved_reloaded_and_as_planned(tiny: Tiny, tmp_path: Path, kind: str, form: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    plan = in_int8(model, form)
    assert {option.dtype for option in plan.options.values()} == {"int8"}
    small = eckart.compress(model, plan=plan, out=tmp_path / "small")  # which compares bytes and outputs
    check_reloaded(small, tmp_path, causal=kind != "bert")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_groups_of_a_table_in_int8(tiny: Tiny, texts: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model, name, ranks = eckart.open_model(tiny(kind)), TABLES[kind], [48, 48, 16, 16, 8, 8]
    layers = [
        replace(layer, option=_option.grouped(384, 48, False, "int8", ranks) if layer.name == name else layer.dense)
        for layer in in_int8(model, "dense").layers
    ]
    plan = replace(in_int8(model, "dense"), method="two-sided", unit="nats a token", layers=tuple(layers))
    small = eckart.compress(model, plan=plan, out=tmp_path / "small", **small_job(texts))
    assert [(option.format, option.dtype) for option in small.replaced.values()] == [("grouped", "int8")]
    assert small.plan.predicted_loss_increase is not None
    check_reloaded(small, tmp_path, causal=True)
    table: Any = small.module.get_input_embeddings()
    head = small.module.get_output_embeddings()
    assert torch.allclose(table(TOKENS), table.weight[TOKENS], atol=1e-6)
    x = torch.randn(3, table.embedding_dim)
    assert torch.allclose(head(x), x @ table.weight.T, atol=1e-4)


def check_reloaded(small: Any, folder: Path, *, causal: bool) -> None:
    again: Any = eckart.open_model(folder / "small")
    assert again.replaced == small.replaced
    assert again.stored_dtype == "float16"
    assert again.parameters == small.parameters == small.plan.parameters_after
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    for name in small.replaced:
        tensors = again.module.get_submodule(name).state_dict().values()
        assert {tensor.dtype for tensor in tensors} <= {torch.int8, torch.int32, torch.float32}
    for dtype in (torch.float32, torch.bfloat16):
        auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        whole = auto.from_pretrained(folder / "small", dtype=dtype).eval()
        output, expected = whole(TOKENS)[0].detach(), small.run(TOKENS)
        assert output.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.1
        assert float((output.float() - expected).norm()) <= tolerance * float(expected.norm())
        if causal:
            assert whole.generate(TOKENS[:, :8], max_new_tokens=5, do_sample=False).shape == (1, 13)
        whole.save_pretrained(folder / str(dtype))
        copy = auto.from_pretrained(folder / str(dtype), dtype=dtype).eval()
        assert torch.equal(copy(TOKENS)[0], output)


@pytest.mark.parametrize("kind", ["llama", "untied", "bert"])
def test_int8_dense_is_close_to_the_model_and_needs_neither_target_nor_text(
    tiny: Tiny, tmp_path: Path, kind: str
) -> None:
    model: Any = eckart.open_model(tiny(kind))
    small = eckart.compress(model, method="int8", out=tmp_path / "small")
    layers = {layer.name: layer for layer in small.plan.layers}
    whole = [name for name, layer in layers.items() if not layer.kept]
    assert small.replaced == {name: replace(small.replaced[name], format="dense", dtype="int8") for name in whole}
    again: Any = eckart.open_model(tmp_path / "small")
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    assert small.input_bytes < 0.45 * small.plan.bytes_before
    before, after = model.run(TOKENS), small.run(TOKENS)
    assert float((after - before).norm()) <= 0.05 * float(before.norm())
    table, head = again.module.get_input_embeddings(), again.module.get_output_embeddings()
    assert isinstance(table, Int8Table)
    assert isinstance(head, Int8Linear if kind == "untied" else TiedHead)
    assert torch.equal(table(TOKENS), table.weight[TOKENS])
    x = torch.randn(3, table.embedding_dim)
    assert torch.allclose(head(x), x @ head.weight.T, atol=1e-4)


@pytest.mark.parametrize(("kind", "form"), [("llama", "dense"), ("llama", "pifa"), ("gpt2", "pair")])
def test_as_a_dense_checkpoint_it_has_the_rounded_weights(tiny: Tiny, tmp_path: Path, kind: str, form: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    plan = in_int8(model, form)
    small = eckart.compress(model, plan=plan, dtype="float32")
    dense = eckart.compress(model, plan=plan, dtype="float32", format="dense", out=tmp_path / "dense")
    assert not dense.replaced
    assert dense.module.get_output_embeddings().weight is dense.module.get_input_embeddings().weight
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    expected = small.run(TOKENS)
    assert float((plain(TOKENS)[0].detach() - expected).norm()) <= 1e-4 * float(expected.norm())


def test_a_shared_factor_in_int8(tiny: Tiny, tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny("gpt2"))
    small, group = model.copy(), [f"transformer.h.{i}.mlp.c_fc" for i in (0, 2)]
    weights = [model.weight(name) for name in group]
    stack = truncation(torch.cat(weights)).pair(20)
    for name, up in zip(group, stack.up.split([len(weight) for weight in weights]), strict=True):
        owner = "" if name == group[0] else group[0]
        small.replace_(name, _option.shared(*model.weight(name).shape, True, "int8", 20, owner), replace(stack, up=up))
    small.round_("float16")
    written = save(small, tmp_path, dtype="float16", max_shard_bytes=10**9)
    assert written == predicted_bytes(model, small.replaced, dtype="float16", max_shard_bytes=10**9)
    assert small.parameters == predicted_parameters(model, small.replaced)
    again: Any = eckart.open_model(tmp_path)
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))


# One knapsack


def test_the_best_of_several_types_is_better_than_one(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    whole = eckart.plan(model, method="int8", dtype="float16").bytes_before
    job = small_job(texts, size=int(0.6 * whole))
    half = eckart.compress(model, dtype="float16", **job)
    both = eckart.compress(model, dtype=["float16", "int8"], out=tmp_path / "small", **job)
    assert ("dense", "int8") in {(option.format, option.dtype) for option in both.plan.options.values()}
    assert both.input_bytes == both.plan.bytes_after <= 0.6 * whole
    assert both.plan.predicted_loss_increase < half.plan.predicted_loss_increase / 2
    wanted, *given = (one.run(TOKENS).log_softmax(-1) for one in (model, both, half))
    divergence = [float((wanted.exp() * (wanted - some)).sum()) for some in given]
    assert divergence[0] < divergence[1]
    below = eckart.plan(model, dtype="float16, int8", **{**job, "size": int(0.42 * whole)})
    assert any(option.ranks and option.dtype == "int8" for option in below.options.values())


def test_int8_is_on_offer_by_default_only_where_bytes_are_counted(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    types, few = {}, small_job(texts, layers="*mlp.up_proj", tokens=128)
    for name, more in {
        "params": {"keep": 0.95},
        "bytes": {"keep": 0.9, "cost": "bytes"},
        "input": {"keep": 0.9, "cost": "bytes", "method": "input"},
        "plain": {"keep": 0.95, "cost": "bytes", "method": "plain"},
        "loss": {"max_loss_increase": 0.1, "cost": "bytes"},
        "said": {"keep": 0.95, "cost": "bytes", "dtype": "float32"},
    }.items():
        made = eckart.plan(model, **more, **few)
        assert made.dtype == "float32"
        types[name] = {option.dtype for option in made.options.values()}
    assert types["params"] == types["plain"] == types["said"] == {"float32"}
    assert all("int8" in types[name] for name in ("bytes", "input", "loss"))


def test_a_layer_may_stay_whole_in_a_shorter_type(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    job = small_job(texts, keep=0.93, cost="bytes", dtype="float32,float16", layers="*mlp.up_proj")
    small = eckart.compress(tiny("llama"), out=tmp_path / "small", **job)
    halves = [name for name, option in small.replaced.items() if (option.format, option.dtype) == ("dense", "float16")]
    assert halves
    assert small.plan.predicted_loss_increase < 1e-3
    again: Any = eckart.open_model(tmp_path / "small")
    assert again.replaced == small.replaced
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    weight = again.weight(halves[0])
    assert torch.equal(weight, weight.half().float())
    assert torch.equal(weight, eckart.open_model(tiny("llama")).weight(halves[0]).half().float())


def test_a_plan_shows_and_keeps_types(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    made = eckart.plan(model, 0.5, cost="bytes", **small_job(texts))
    made.save(tmp_path / "plan.json")
    assert eckart.Plan.load(tmp_path / "plan.json") == made
    count = sum(option.dtype == "int8" for option in made.options.values())
    assert f"{count} in int8" in made.summary()
    name = next(layer.name for layer in made.layers if not layer.table and layer.option.dtype == "int8")
    line = next(line for line in str(made).splitlines() if line.startswith(name))
    assert " int8 " in line
    edited = made.with_dtype(name, "float32")
    (layer,) = [layer for layer in edited.layers if layer.name == name]
    assert layer.loss_increase == (None if layer.changes else 0.0)
    value = json.loads((tmp_path / "plan.json").read_text())
    (entry,) = [layer for layer in value["layers"] if layer["name"] == name]
    entry["option"]["dtype"] = "float32"
    assert eckart.Plan.from_json(value) == edited
    assert edited.bytes_after > made.bytes_after
    small = eckart.compress(model, plan=made, dtype="float16", **small_job(texts))  # int8 stays, all else follows
    assert {option.dtype for option in small.replaced.values()} <= {"float16", "int8"}
    assert small.replaced[name].dtype == "int8"
    assert small.plan.dtype == "float16"
    with pytest.raises(InputError, match="unknown dtype"):
        made.with_dtype(name, "int4")
    with pytest.raises(UsageError, match="cannot be factored"):
        eckart.compress(model, plan=made.with_dtype("lm_head", "int8"), **small_job(texts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.8, "dtype": "int8"}, "cannot be int8"),
        ({"keep": 0.8, "dtype": "float16,int8"}, "where bytes are counted"),
        ({"size": "60kB", "dtype": "float16,int8", "method": "plain"}, "where bytes are counted"),
        ({"size": "60kB", "dtype": "float16,int4"}, "cannot be saved as 'int4'"),
        ({"size": "60kB", "dtype": []}, "cannot be int8"),
        ({"keep": 0.8, "method": "int8"}, "has one size"),
        ({"size": "60kB", "method": "int8"}, "has one size"),
        ({"max_loss_increase": 0.1, "method": "int8"}, "has one size"),
        ({"cost": "bytes", "method": "int8"}, "has one size"),
        ({"storage": "pifa", "method": "int8"}, "factors nothing"),
    ],
)
def test_what_cannot_be_meant(tiny: Tiny, texts: dict[str, Path], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        eckart.plan(tiny("llama"), **arguments, **small_job(texts))


def test_a_plan_of_int8_can_be_edited_and_its_card_and_headers_say_int8(tiny: Tiny, tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    made = eckart.plan(model, method="int8")
    name = "model.layers.1.mlp.up_proj"
    edited = made.with_rank(name, 12).with_rank("model.layers.0.mlp.up_proj", None)
    small = eckart.compress(model, plan=edited, out=tmp_path / "small")
    assert small.replaced[name] == _option.pair(96, 48, False, "int8", 12)
    assert "model.layers.0.mlp.up_proj" not in small.replaced
    assert f"and {len(small.replaced)} layers stored in int8" in (tmp_path / "small" / "README.md").read_text()
    found = inspect(tmp_path / "small")
    assert found.parameters == small.parameters
    assert found.bytes == small.input_bytes
    shown = {matrix.name: matrix for matrix in found.matrices}
    for layer in small.plan.layers:
        if layer.name in small.replaced:
            matrix, option = shown[layer.name], layer.option
            assert (matrix.rows, matrix.columns, matrix.dtype) == (layer.rows, layer.columns, "I8")
            assert (matrix.parameters, matrix.bytes) == (option.params, option.bytes)
            assert matrix.rank == (option.ranks[0] if option.ranks else None)
