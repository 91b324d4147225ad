"""Laws of compression: full rank changes nothing, plans predict exactly, allocation is best, the source is kept."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eckart
from eckart._compress._allocate import Choices, least_loss
from eckart._factorise import Gram, truncation
from eckart.errors import BudgetError, InputError, NumericalError, RankError, UsageError

Tiny = Callable[..., Path]
KINDS = ("llama", "untied", "gpt2", "bert")
TOKENS = torch.arange(3, 67)[None] * 5 % 384
EPS = torch.finfo(torch.float32).eps
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def small_job(texts: dict[str, Path], **more: Any) -> dict[str, Any]:
    return {"data": texts["train"], "tokens": 1024, "context": 64, **more}


def at_full_rank(plan: eckart.Plan) -> eckart.Plan:
    for layer in plan.layers:
        if not layer.kept:
            plan = plan.with_rank(layer.name, min(layer.rows, layer.columns))
    return plan


@pytest.mark.parametrize(("home", "device"), list(itertools.product(DEVICES, DEVICES)))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "input", "plain"])
def test_every_layer_at_full_rank_changes_no_output(
    tiny: Tiny, texts: dict[str, Path], kind: str, method: str, home: str, device: str
) -> None:
    model: Any = eckart.open_model(tiny(kind), device=home)
    full = at_full_rank(eckart.plan(model, 1.0, method=method, device=device, **small_job(texts)))
    assert len(full.options) == len([layer for layer in full.layers if not layer.kept]) > 0
    same = eckart.compress(model, plan=full, device=device, **small_job(texts))
    assert same.parameters == full.parameters_after > full.parameters_before
    before, after = model.run(TOKENS), same.run(TOKENS)
    assert float((after - before).abs().max()) <= 300 * EPS * float(before.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_given_model_is_not_changed(tiny: Tiny, texts: dict[str, Path], kind: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    eckart.compress(model, 0.7, dtype="float16", **small_job(texts))
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny: Tiny, texts: dict[str, Path]) -> None:
    outputs = [eckart.compress(tiny("llama"), 0.7, **small_job(texts, seed=seed)).run(TOKENS) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_two_sided_beats_plain_at_the_same_size(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    errors = {}
    for method in ("two-sided", "plain"):
        small = eckart.compress(model, 0.75, method=method, **small_job(texts))
        errors[method] = float(torch.nn.functional.kl_div(
            small.run(TOKENS).log_softmax(-1), model.run(TOKENS).log_softmax(-1), log_target=True, reduction="sum"
        ))  # fmt: skip
    assert errors["two-sided"] < errors["plain"]


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    seed=st.integers(0, 10),
    k=st.integers(0, 12),
    tokens=st.integers(0, 20),
)
def test_truncation_is_optimal_in_its_metric_and_predicts_its_error(
    rows: int, columns: int, seed: int, k: int, tokens: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    grams = []
    for n in (columns, rows):
        gram = Gram(n)
        gram.add(torch.randn(tokens, n, generator=generator))  # fewer rows than n: singular without shrinkage
        grams.append(gram.shrunk(0.05))
    k = min(k, rows, columns)
    cut = truncation(weight, inputs=grams[0], outputs=grams[1])
    pair = cut.pair(k)
    x, y = (torch.linalg.cholesky(gram) for gram in grams)
    left = torch.linalg.matrix_norm(y.T @ (weight - pair.up @ pair.down) @ x) ** 2
    expected = torch.linalg.svdvals(y.T @ weight @ x)[k:].square().sum()
    scale = float(torch.linalg.matrix_norm(y.T @ weight @ x) ** 2)
    assert float(left) == pytest.approx(float(expected), abs=1e-12 * scale)
    assert cut.losses[k] == pytest.approx(float(expected), abs=1e-12 * scale)
    assert torch.allclose(pair.up.norm(dim=0), pair.down.norm(dim=1), rtol=1e-9)


def test_a_singular_gram_and_a_zero_weight_do_no_harm() -> None:
    gram = torch.zeros(5, 5, dtype=torch.float64)
    gram[0, 0] = 1.0
    cut = truncation(torch.randn(4, 5), inputs=gram, outputs=None)
    assert torch.isfinite(cut.pair(4).up @ cut.pair(4).down).all()
    zero = truncation(torch.zeros(4, 5), inputs=gram)
    assert float((zero.pair(4).up @ zero.pair(4).down).abs().max()) == 0.0
    with pytest.raises(RankError, match="up to rank 2"):
        truncation(torch.randn(4, 5), keep_rank=2).pair(3)


@given(data=st.data())
def test_allocation_is_within_one_step_of_the_best(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    layers = {}
    for i in range(count):
        size = data.draw(st.integers(1, 4))
        costs = np.array(data.draw(st.lists(st.integers(1, 30), min_size=size, max_size=size, unique=True)), float)
        losses = np.array(data.draw(st.lists(st.integers(0, 30), min_size=size, max_size=size)), float)
        layers[f"layer{i}"] = Choices(costs, losses)
    least = sum(c.costs.min() for c in layers.values())
    most = sum(c.costs.max() for c in layers.values())
    budget = data.draw(st.integers(int(least), int(most)))
    chosen = least_loss(layers, budget)
    cost = sum(layers[name].costs[i] for name, i in chosen.items())
    loss = sum(layers[name].losses[i] for name, i in chosen.items())
    assert cost <= budget
    best = min(
        sum(c.losses[i] for c, i in zip(layers.values(), combination, strict=True))
        for combination in itertools.product(*(range(len(c.costs)) for c in layers.values()))
        if sum(c.costs[i] for c, i in zip(layers.values(), combination, strict=True)) <= budget
    )
    # A single multiplier reaches the lower convex hull; what lies inside it differs by less than one layer's span.
    assert best <= loss <= best + max(np.ptp(c.losses) for c in layers.values())
    if budget == most:
        assert loss == best


def test_a_plan_is_data(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    made = eckart.plan(tiny("llama"), 0.7, **small_job(texts))
    name = next(iter(made.options))
    assert name in str(made)
    made.save(tmp_path / "plan.json")
    assert eckart.Plan.load(tmp_path / "plan.json") == made
    value = json.loads((tmp_path / "plan.json").read_text())
    (entry,) = [layer for layer in value["layers"] if layer["name"] == name]
    old = entry["option"]["ranks"][0]
    entry["option"]["ranks"] = [old + 1]
    (tmp_path / "edited.json").write_text(json.dumps(value))
    edited = eckart.Plan.load(tmp_path / "edited.json")
    assert edited.options[name].ranks == (old + 1,)
    assert edited.predicted_loss_increase is None
    more = entry["rows"] + entry["columns"] - (2 * old + 1) * (entry["option"]["format"] in ("pifa", "folded"))
    assert edited.parameters_after == made.parameters_after + more
    assert edited == made.with_rank(name, old + 1)
    small = eckart.compress(tiny("llama"), plan=tmp_path / "edited.json", out=tmp_path / "out", **small_job(texts))
    assert small.replaced[name].ranks == (old + 1,)
    assert small.parameters == edited.parameters_after


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"schema": "eckart.plan/2"}, InputError, "eckart.plan/2"),
        ({"layers": 3}, InputError, "malformed"),
        ({"layers": [{"name": "x"}]}, InputError, "malformed"),
    ],
)
def test_a_bad_plan_is_refused(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    value = {**eckart.plan(tiny("llama"), 0.7, method="plain").to_json(), **change}
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(error, match=match):
        eckart.Plan.load(tmp_path / "plan.json")


def test_a_plan_of_another_model_or_with_an_impossible_rank_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    made = eckart.plan(tiny("llama"), 0.7, method="plain")
    with pytest.raises(UsageError, match="another model"):
        eckart.compress(tiny("gpt2"), plan=made)
    with pytest.raises(RankError, match="rank 49 asked of a 48 x 48 layer"):
        made.with_rank("model.layers.0.self_attn.q_proj", 49)
    with pytest.raises(UsageError, match="no layer 'nope'"):
        made.with_rank("nope", 3)
    value = made.to_json()
    value["layers"][1]["option"] = {"version": 1, "format": "pair", "ranks": [0], "dtype": "float32"}
    with pytest.raises(RankError, match="rank 0"):
        eckart.Plan.from_json(value)
    kept = [layer.name for layer in made.layers if layer.kept]
    assert set(kept) == {"model.embed_tokens", "lm_head"}
    for name in kept:
        with pytest.raises(UsageError, match="cannot be factored"):
            eckart.compress(tiny("llama"), plan=made.with_rank(name, 3))


def test_layers_choose_and_exclude(tiny: Tiny, texts: dict[str, Path]) -> None:
    made = eckart.plan(tiny("llama"), 0.9, layers=["*mlp*", "!re:layers\\.1\\."], **small_job(texts))
    assert made.options
    assert all("mlp" in name and ".1." not in name for name in made.options)
    with pytest.raises(UsageError, match="no layer is named like"):
        eckart.plan(tiny("llama"), 0.9, method="plain", layers="*nope*")
    with pytest.raises(BudgetError, match="keep >= 0"):
        eckart.plan(tiny("llama"), 0.5, method="plain", layers="*q_proj*")


def test_a_weight_too_large_for_half_precision_is_an_error(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    model.module.model.norm.weight.data[3] = 1e5
    with pytest.raises(NumericalError, match="more than float16 can hold"):
        eckart.compress(model, 0.8, method="plain", dtype="float16")


def test_wrong_calls_say_what_to_do(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    with pytest.raises(UsageError, match="give one of keep="):
        eckart.compress(model)
    with pytest.raises(UsageError, match="needs a calibration text"):
        eckart.compress(model, 0.8)
    with pytest.raises(UsageError, match="no method 'svd'"):
        eckart.compress(model, 0.8, method="svd")
    with pytest.raises(UsageError, match="has no next-token loss"):
        eckart.compress(tiny("bert"), 0.8, loss="next-token", data=texts["train"])
    with pytest.raises(UsageError, match="has no next-token loss"):
        eckart.compress(tiny("bert"), 0.8, method="fwsvd", data=texts["train"])
    with pytest.raises(UsageError, match="loss= has no meaning"):
        eckart.compress(model, 0.8, method="input", loss="outputs", data=texts["train"])
    with pytest.raises(UsageError, match="needs out="):
        eckart.compress(model, 0.8, method="plain", evaluate=texts["test"])
    small = eckart.compress(model, 0.8, method="plain")
    with pytest.raises(UsageError, match="compressed layers already"):
        eckart.compress(small, 0.8, method="plain")


def test_measurement_of_a_model_against_itself_is_neutral(tiny: Tiny, texts: dict[str, Path]) -> None:
    found = eckart.measure(
        tiny("llama"), baseline=tiny("llama"), data=texts["test"], tokens=512, context=64, speed=False
    )
    first, second = found.models
    (one, two) = (next(iter(model.quality.values())) for model in (first, second))
    assert one["perplexity"] == two["perplexity"]
    assert two["kl"] == 0.0
    assert two["top1_agreement"] == 1.0
    json.dumps(found.to_json(), allow_nan=False)


def test_perplexity_is_that_of_transformers_own_loss(tiny: Tiny, texts: dict[str, Path]) -> None:
    from eckart.models._quality import quality
    from eckart.models._texts import contexts, read_text

    model: Any = eckart.open_model(tiny("llama"))
    pieces = contexts(model.tokenizer, read_text(texts["test"]), context=64, count=5)
    with torch.no_grad():
        losses = [float(model.module(piece[None], labels=piece[None]).loss) for piece in pieces]
    assert quality([model], pieces)[0].perplexity == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-6)


def test_a_perplexity_that_is_not_finite_is_reported_as_such(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    model.module.model.norm.weight.data.fill_(float("inf"))
    found = eckart.measure(model, data=texts["test"], tokens=128, context=64, speed=False).to_json()
    assert found["models"][0]["quality"]["test.txt"]["perplexity"] is None
    assert any("perplexity = nan" in warning for warning in found["warnings"])


def test_gram_is_accumulated_in_float64() -> None:
    rows = torch.full((5000, 1), 1.0 + 2**-12)
    gram = Gram(1)
    gram.add(rows)
    assert float(gram.sum) == pytest.approx(5000 * (1.0 + 2**-12) ** 2, rel=1e-7)
    assert gram.count == 5000


def test_bare_weights_are_read_without_torch_and_not_run(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes((tiny("llama") / "model.safetensors").read_bytes())
    code = (
        "import sys, eckart\n"
        "model = eckart.open_model(sys.argv[1])\n"
        "print(model.parameters, sum(w.read().size for w in model.weights()), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    parameters, numbers, torch_loaded = done.stdout.split()
    assert int(parameters) == int(numbers) == eckart.open_model(tiny("llama")).parameters
    assert torch_loaded == "False"
    with pytest.raises(UsageError, match="without an architecture"):
        eckart.compress(file, 0.8, method="plain")


def test_what_is_impossible_is_said_before_the_long_work(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(BudgetError):
        eckart.compress(tiny("llama"), 0.1, progress=lambda stage, *_: stages.append(stage), **small_job(texts))
    assert "calibrating" not in stages
    assert "opening the model" in stages


def test_a_plan_can_be_carried_out_in_another_dtype(tiny: Tiny, tmp_path: Path) -> None:
    made = eckart.plan(tiny("llama"), 0.8, method="plain")
    small = eckart.compress(tiny("llama"), plan=made, dtype="bfloat16", out=tmp_path / "out")
    assert made.dtype == "float32"
    assert {option.dtype for option in small.replaced.values()} == {"bfloat16"}
    assert small.plan.bytes_after < 0.6 * made.bytes_after


def test_arguments_that_would_have_no_effect_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    made = eckart.plan(tiny("llama"), 0.8, method="plain")
    for more in ({"method": "plain"}, {"storage": "pair"}, {"layers": "*mlp*"}):
        with pytest.raises(UsageError, match="plan= decides method, loss, correct, storage and layers"):
            eckart.compress(tiny("llama"), plan=made, **more)
    with pytest.raises(UsageError, match="needs evaluate="):
        eckart.compress(tiny("llama"), 0.8, method="plain", out=tmp_path / "out", beside=[tiny("llama")])


def test_a_layer_that_is_never_called_is_named(tiny: Tiny, texts: dict[str, Path]) -> None:
    job: dict[str, Any] = {"data": texts["train"], "tokens": 512, "context": 64}
    with pytest.raises(InputError, match=r"dt_proj is not called .*; layers='!\*\.dt_proj'"):
        eckart.plan(tiny("mamba"), 0.9, **job)
    assert eckart.plan(tiny("mamba"), 0.9, layers="!*.dt_proj", **job).options


def test_a_linear_layer_that_returns_more_than_its_product_is_none(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama4"))
    assert not [name for name in model.layers() if name.endswith("router")]
    small = eckart.compress(model, 0.9, data=texts["train"], tokens=512, context=64)
    assert small.parameters <= 0.9 * model.parameters
