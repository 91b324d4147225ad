"""Storage by pivoting (PIFA): the same matrix in fewer numbers, with coefficients that no rounding is magnified by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eckart
from eckart._factorise import LARGEST_COEFFICIENT, Pair, pivoted
from eckart.models import _option

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 67)[None] * 5 % 384
EPS64 = torch.finfo(torch.float64).eps


def whole(pair: Pair) -> torch.Tensor:
    found = pivoted(pair)
    return torch.cat([found.rows, found.rest @ found.rows])[found.order.long()]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.floats(-6, 6))
def test_the_product_is_the_same_and_coefficients_are_small(m: int, n: int, seed: int, exponent: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, min(m, n) + 1, (), generator=draw))
    up, down = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((m, k), (k, n)))
    pair = Pair(up * torch.logspace(0, exponent, k, dtype=torch.float64), down)
    found, exact = pivoted(pair), pair.up @ pair.down
    assert found.rows.shape == (k, n)
    assert found.rest.shape == (m - k, k)
    assert sorted(found.order.tolist()) == list(range(m))
    assert float((whole(pair) - exact).norm()) <= 1e3 * EPS64 * float(exact.norm())
    assert m == k or float(found.rest.abs().max()) <= LARGEST_COEFFICIENT * (1 + 1e-9)
    kept = found.order < k
    assert torch.equal(exact[kept][found.order[kept].argsort()], found.rows)  # rows of W_k itself, to the bit


def test_rows_are_exchanged_where_elimination_alone_leaves_large_coefficients() -> None:
    torch.manual_seed(0)
    k = 12  # the worst case of partial pivoting: elimination leaves the order, and coefficients grow as 1.9^k
    up = torch.eye(30, k, dtype=torch.float64) - 0.9 * torch.ones(30, k, dtype=torch.float64).tril(-1)
    down = torch.randn(k, 40, dtype=torch.float64)
    _, lower, _ = torch.linalg.lu(up)
    eliminated = torch.linalg.solve_triangular(lower[:k], lower[k:], upper=False, left=False)
    assert float(eliminated.abs().max()) > 100 * LARGEST_COEFFICIENT
    pair = Pair(up, down)
    assert float(pivoted(pair).rest.abs().max()) <= LARGEST_COEFFICIENT * (1 + 1e-9)
    assert float((whole(pair) - up @ down).norm()) <= 1e4 * EPS64 * float((up @ down).norm())


@pytest.mark.parametrize("name", ["zero", "equal rows", "zero columns of up", "one row is huge"])
def test_matrices_without_k_independent_rows(name: str) -> None:
    torch.manual_seed(0)
    up, down = torch.randn(12, 5, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    if name == "zero":
        up = up * 0
    elif name == "equal rows":
        up = up[:1].repeat(12, 1)
    elif name == "zero columns of up":
        up[:, 2:] = 0
    else:
        up[3] *= 1e12
    pair = Pair(up, down)
    exact = up @ down
    assert float((whole(pair) - exact).norm()) <= 1e3 * EPS64 * float(exact.norm())
    assert float(pivoted(pair).rest.abs().max()) <= LARGEST_COEFFICIENT * (1 + 1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(576, 576), (192, 576), (1536, 576), (576, 1536), (7, 5), (1, 9)])
@pytest.mark.parametrize("bias", [False, True])
def test_numbers_and_bytes_of_an_option(rows: int, columns: int, bias: bool) -> None:
    dense = _option.dense(rows, columns, bias, "float16")
    for form in ("pair", "pifa"):
        last = _option.largest_useful_rank(form, rows, columns)
        for k in range(1, min(rows, columns) + 1):
            option = _option.factored(form, rows, columns, bias, "float16", k)
            assert (option.params < dense.params) == (k <= last)
            assert _option.read_option(option.to_json(), rows, columns, bias) == option
    k = min(rows, columns)
    option = _option.pifa(rows, columns, bias, "float16", k)
    assert option.params == k * (rows + columns - k) + rows * bias + rows
    assert option.bytes == 2 * (option.params - rows) + 4 * rows


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_saved_model_answers_as_pairs_of_the_same_ranks_do(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, kind: str, dtype: str
) -> None:
    model: Any = eckart.open_model(tiny(kind))
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64, "dtype": dtype}
    small = eckart.compress(model, 0.65, storage="pifa", out=tmp_path / "small", **job)
    plan = small.plan
    assert {option.format for option in plan.options.values()} == {"pifa", "folded"}
    again: Any = eckart.open_model(tmp_path / "small")  # `compress` has compared outputs, and sizes with the plan
    assert again.parameters == small.parameters == plan.parameters_after <= 0.65 * model.parameters
    assert {name: option.ranks for name, option in again.replaced.items()} == {
        name: option.ranks for name, option in plan.options.items()
    }
    assert torch.equal(again.run(TOKENS), small.run(TOKENS))
    value = plan.to_json()
    for layer in value["layers"]:
        if layer["option"]["format"] in ("pifa", "folded"):
            layer["option"]["format"] = "pair"
    pairs = eckart.compress(model, plan=eckart.Plan.from_json(value), **job)
    assert {option.format for option in pairs.replaced.values()} == {"pair"}
    expected = pairs.run(TOKENS)
    unit = 100 * torch.finfo(getattr(torch, dtype)).eps
    assert float((small.run(TOKENS) - expected).abs().max()) <= unit * float(expected.abs().max())


def test_full_rank_leaves_no_coefficients(tiny: Tiny, tmp_path: Path) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    made = eckart.plan(model, 0.75, method="plain", storage="pifa", dtype="float32")
    name, layer = next((layer.name, layer) for layer in made.layers if layer.option.format == "pifa")
    full = made.with_rank(name, min(layer.rows, layer.columns))
    small = eckart.compress(model, plan=full, out=tmp_path / "small", dtype="float32")
    exact = model.weight(name)
    again: Any = eckart.open_model(tmp_path / "small")
    found = again.module.get_submodule(name).weight
    assert float((found - exact).norm()) <= 1e-5 * float(exact.norm())
    assert again.parameters == small.plan.parameters_after


def test_more_rank_for_the_same_size(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64}
    plans = {storage: eckart.plan(model, 0.75, storage=storage, **job) for storage in ("auto", "pair", "pifa")}
    losses = {storage: plan.predicted_loss_increase for storage, plan in plans.items()}
    assert losses["auto"] <= min(losses["pair"], losses["pifa"])
    assert losses["pifa"] < losses["pair"]
    assert all(plan.parameters_after <= 0.75 * model.parameters for plan in plans.values())
    uniform = eckart.plan(model, 0.75, method="plain", **job)
    assert {option.format for option in uniform.options.values()} == {"pair"}
    with_more_rank = eckart.plan(model, 0.75, method="plain", storage="pifa", **job)
    assert all(with_more_rank.options[name].ranks > option.ranks for name, option in uniform.options.items())


def test_inspect_shows_shape_and_rank(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    from eckart.models._inspect import inspect

    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64}
    small = eckart.compress(tiny("llama"), 0.75, storage="pifa", out=tmp_path / "small", **job)
    found = inspect(tmp_path / "small")
    ranks = {matrix.name: (matrix.rows, matrix.columns, matrix.rank, matrix.parameters) for matrix in found.matrices}
    for layer in small.plan.layers:
        if layer.option.format in ("pifa", "folded"):
            numbers = layer.option.params - layer.rows * layer.bias
            assert ranks[layer.name] == (layer.rows, layer.columns, layer.option.ranks[0], numbers)
    assert found.parameters == small.parameters
