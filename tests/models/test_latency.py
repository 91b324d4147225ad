"""Time as a cost. Times are data: the laws hold for any table, so tests write their own; no time is asserted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eckart
from eckart._compress._allocate import Choices, least_loss, least_loss_within_both
from eckart.errors import BudgetError, InputError, UsageError
from eckart.models import _option
from eckart.models._latency import Latency
from eckart.models._model import Layer
from eckart.models._timings import RANK_TILE, Shape, Store, Timings

Tiny = Callable[..., Path]


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=5), st.integers(0, 200))
def test_times_between_measured_ranks_lie_between_theirs(times: list[float], k: int) -> None:
    known = {RANK_TILE * (i + 1): ms for i, ms in enumerate(times)}
    found = Timings({"call": known}).ms("call", k)
    tile = -(-k // RANK_TILE)
    if 1 <= tile <= len(times):
        assert found == pytest.approx(times[tile - 1])
    assert min(times) <= found <= max(times)
    half = Timings({"call": {16: 1.0, 48: 2.0}})
    assert half.ms("call", 20) == half.ms("call", 32) == pytest.approx(1.5)  # a rank takes the time of its tile


def latency(factor: float) -> tuple[Latency, Layer]:
    layer = Layer("a", "Linear", 64, 64, False, "", ("a",))
    shape = Shape("Linear", 64, 64, False)
    points = {}
    for tokens, dense in ((8, 4.0), (1, 1.0)):
        points[shape.called("dense", tokens)] = {0: dense}
        points[shape.called("pair", tokens)] = {16: factor * dense}
    calls = {"prefill": {"a": (8, 8)}, "decode": {"a": (1, 1)}}  # a layer that is used twice
    return Latency({"prefill": 20.0, "decode": 4.0}, 8, calls, Timings(points), "a machine"), layer


@pytest.mark.parametrize(("factor", "counted"), [(0.5, 0.5), (0.94, 0.94), (0.96, 1.0), (1.2, 1.2)])
def test_a_price_is_the_part_of_the_whole_and_a_small_gain_is_none(factor: float, counted: float) -> None:
    times, layer = latency(factor)
    dense, pair = _option.dense(64, 64, False, "float16"), _option.pair(64, 64, False, "float16", 16)
    whole = (8 / 20 + 2 / 4) / 2
    assert times.price(layer, dense) == pytest.approx(whole)
    assert times.price(layer, pair) == pytest.approx(counted * whole)
    assert times.saved(layer, pair) == pytest.approx({"prefill": 8 * (1 - factor), "decode": 2 * (1 - factor)})


@given(st.integers(0, 10**6), st.floats(0.1, 1), st.floats(0.1, 1))
def test_two_limits_are_kept_and_no_choice_beats_the_best(seed: int, first: float, second: float) -> None:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 5, size=4)
    layers = {str(i): Choices(draw.random(n), draw.random(n)) for i, n in enumerate(sizes)}
    others = {str(i): draw.random(n) for i, n in enumerate(sizes)}
    least = sum(c.costs.min() for c in layers.values())
    budget = least + first * sum(float(np.ptp(c.costs)) for c in layers.values())
    low = sum(o.min() for o in others.values())
    limit = low + second * sum(float(np.ptp(o)) for o in others.values())
    total = {
        chosen: (
            sum(c.costs[i] for c, i in zip(layers.values(), chosen, strict=True)),
            sum(o[i] for o, i in zip(others.values(), chosen, strict=True)),
            sum(c.losses[i] for c, i in zip(layers.values(), chosen, strict=True)),
        )
        for chosen in itertools.product(*map(range, sizes))
    }
    possible = [loss for cost, other, loss in total.values() if cost <= budget and other <= limit]
    found = least_loss_within_both(layers, budget, others, limit)
    if found is not None:
        cost, other, loss = total[tuple(found.values())]
        assert cost <= budget + 1e-12
        assert other <= limit + 1e-12
        assert loss >= min(possible) - 1e-12
    alone = least_loss(layers, budget)
    if sum(others[name][i] for name, i in alone.items()) <= limit:
        assert found == alone


def test_a_multiplier_for_each_limit_comes_close_to_the_best_of_all() -> None:
    from scipy.optimize import linprog

    # Layers that can stay, be made small and slow, large and fast, or both at a higher loss.
    count, draw = 40, np.random.default_rng(0)
    weights = draw.uniform(0.5, 2, count)
    costs, times, losses = np.array([4.0, 1, 3, 1]), np.array([4.0, 4, 1, 1]), np.array([0.0, 1, 1, 3])
    layers = {str(i): Choices(costs, weights[i] * losses) for i in range(count)}
    found = least_loss_within_both(layers, 100, dict.fromkeys(layers, times), 100)
    assert found is not None
    bound = linprog(
        np.concatenate([w * losses for w in weights]),
        A_ub=np.stack([np.tile(costs, count), np.tile(times, count)]),
        b_ub=[100, 100],
        A_eq=np.kron(np.eye(count), np.ones(4)),
        b_eq=np.ones(count),
    ).fun
    assert bound <= sum(layers[name].losses[i] for name, i in found.items()) <= 1.1 * bound
    assert least_loss_within_both(layers, 60, dict.fromkeys(layers, times), 30) is None


@pytest.fixture
def job(texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ECKART_CACHE", str(tmp_path / "cache"))
    return {"data": texts["train"], "tokens": 1024, "context": 64, "dtype": "float32"}


def table_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "latency").iterdir()
    return found


def rewrite(path: Path, ms: Callable[[str, int], float], whole: float) -> None:
    """Give a table that was measured other times: ms(call, rank), and the same whole for every phase."""
    value = json.loads(path.read_text())
    value["points"] = {
        call: {k: ms(call, int(k)) for k in times if k == "0" or int(k) > 0} for call, times in value["points"].items()
    }
    value["models"] = {name: dict.fromkeys(phases, whole) for name, phases in value["models"].items()}
    path.write_text(json.dumps(value))


def by_numbers(call: str, k: int) -> float:
    """A machine on which a multiplication takes a microsecond, at one token as at many."""
    rows, columns = map(int, call.split()[1].removesuffix("+bias").split("x"))
    form = call.split()[2]
    numbers = {"dense": rows * columns, "pair": k * (rows + columns)}.get(form, k * (rows + columns - k))
    return max(numbers, 1) / 1000


@pytest.fixture(scope="module")
def measured(tiny: Tiny, texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model, and the file with its times."""
    model: Any = eckart.open_model(tiny("llama"))
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECKART_CACHE", str(folder / "cache"))
        eckart.plan(model, max_loss_increase=1e9, cost="ms", data=texts["train"], tokens=256, context=64)
    return model, table_of(folder)


@pytest.fixture
def made_up(measured: tuple[Any, Path], job: dict[str, Any], tmp_path: Path) -> Any:
    """The model whose times, in the cache, are `by_numbers`; its layers take two thirds of the whole."""
    model, table = measured
    (tmp_path / "cache" / "latency").mkdir(parents=True)
    path = tmp_path / "cache" / "latency" / table.name
    path.write_bytes(table.read_bytes())
    layers = [layer for layer in model.layers().values() if not layer.kept]
    rewrite(path, by_numbers, 1.5 * sum(layer.rows * layer.columns for layer in layers) / 1000)
    return model


def part_of_time(plan: eckart.Plan) -> float:
    after, timing = plan.after_ms, plan.timing
    assert after is not None
    assert timing is not None
    return sum(after[phase] / ms for phase, ms in timing.before_ms.items()) / len(after)


def test_time_is_kept_to_and_a_smaller_loss_costs_more_of_it(made_up: Any, job: dict[str, Any]) -> None:
    plans = [eckart.plan(made_up, keep, cost="ms", **job) for keep in (0.7, 0.8, 0.9)]
    for plan, keep in zip(plans, (0.7, 0.8, 0.9), strict=True):
        assert keep - 0.03 <= part_of_time(plan) <= keep + 1e-9
        assert (plan.cost, plan.keep, plan.timing.workload) == ("ms", keep, "both")  # type: ignore[union-attr]
        assert set(plan.timing.before_ms) == {"prefill", "decode"}  # type: ignore[union-attr]
        assert "ms a token" in str(plan)
    losses = [plan.predicted_loss_increase for plan in plans]
    assert losses[0] > losses[1] > losses[2]  # type: ignore[operator]
    found = eckart.plan(made_up, max_loss_increase=losses[1], cost="ms", **job)
    assert part_of_time(found) <= part_of_time(plans[1]) + 0.01
    assert found.predicted_loss_increase <= losses[1] * (1 + 1e-9)  # type: ignore[operator]
    with pytest.raises(BudgetError, match=r"keep = 0\.2 leaves 20\.0% of 100\.0% of the time, but 33\.3%"):
        eckart.plan(made_up, 0.2, cost="ms", **job)


def test_a_size_and_a_time_are_kept_to_at_once(made_up: Any, job: dict[str, Any]) -> None:
    alone = eckart.plan(made_up, 0.8, cost="ms", **job)
    size = int(0.9 * alone.bytes_after)
    both = eckart.plan(made_up, 0.8, size=size, cost="ms", **job)
    assert both.bytes_after <= size
    assert part_of_time(both) <= 0.8 + 1e-9
    assert both.predicted_loss_increase > alone.predicted_loss_increase  # type: ignore[operator]
    assert eckart.Plan.from_json(both.to_json()) == both


def test_a_size_that_takes_too_long_is_refused(made_up: Any, job: dict[str, Any], tmp_path: Path) -> None:
    slow_down(table_of(tmp_path), "pair")  # which are the smallest, having no order
    job["layers"] = ["*", "!*embed_tokens"]
    with pytest.raises(BudgetError, match="keep >=") as error:
        eckart.plan(made_up, size=1000, **job)
    part = float(str(error.value).partition("keep >= ")[2].split(",")[0])
    size = int((part + 0.002) * eckart.plan(made_up, 1.0, method="plain", dtype="float32").bytes_before)
    assert eckart.plan(made_up, 0.8, cost="ms", **job).bytes_after > size
    with pytest.raises(BudgetError, match=r"of the time, more than keep = 0\.8|not both at once"):
        eckart.plan(made_up, 0.8, size=size, cost="ms", **job)


def slow_down(path: Path, slow: str) -> None:
    """Let one format take a hundred times as long as its numbers do."""
    whole = next(iter(json.loads(path.read_text())["models"].values()))["prefill"]
    rewrite(path, lambda call, k: by_numbers(call, k) * (100 if call.split()[2] == slow else 1), whole)


def test_what_is_slow_is_not_used(made_up: Any, job: dict[str, Any], tmp_path: Path) -> None:
    for slow, fast in (("pair", "pifa"), ("pifa", "pair")):
        slow_down(table_of(tmp_path), slow)
        plan = eckart.plan(made_up, 0.97, cost="ms", layers="*self_attn*", **job)
        assert {option.format for option in plan.options.values()} == {fast}


def test_an_edited_plan_has_no_prediction_until_it_is_carried_out(
    made_up: Any, job: dict[str, Any], tmp_path: Path
) -> None:
    value = eckart.plan(made_up, 0.8, cost="ms", **job).to_json()
    layer = next(x for x in value["layers"] if x["option"]["format"] != "dense" and not x["table"])
    layer["option"]["ranks"] = [1]
    edited = eckart.Plan.from_json(value)
    assert edited.after_ms is None
    assert "?" in edited.summary()
    (tmp_path / "plan.json").write_text(json.dumps(value))
    small = eckart.compress(made_up, plan=tmp_path / "plan.json", out=tmp_path / "small", **job)
    assert small.plan.after_ms is not None
    assert small.plan.options == edited.options
    # Where time counts, what was saved is timed beside the dense model, and the card says how that went.
    prefill = small.measurement["models"][1]["prefill"]
    assert len(prefill["ratio"]) == 3
    assert small.measurement["texts"] == []
    card = (tmp_path / "small" / "README.md").read_text()
    assert "80.0% of the time" in card
    assert "no speed-up" in card or "faster" in card
    from eckart._result import parse

    assert parse(small.measurement).plan.timing.after_ms == small.plan.after_ms  # type: ignore[union-attr]


def test_times_are_kept_and_a_damaged_or_foreign_file_is_measured_again(
    tiny: Tiny, job: dict[str, Any], tmp_path: Path
) -> None:
    model: Any = eckart.open_model(tiny("gpt2"))
    arguments: dict[str, Any] = {"cost": "ms", "max_loss_increase": 0.1, "layers": "*c_fc", "workload": "prefill"}
    first = eckart.plan(model, **arguments, **job)
    path = table_of(tmp_path)
    good = path.read_bytes()
    assert eckart.plan(model, **arguments, **job) == first
    assert path.read_bytes() == good
    value = json.loads(good)
    name, call = next(iter(value["models"])), next(iter(value["points"]))
    assert "Conv1D 192x48+bias" in call
    for spoilt in (
        good[:-20],
        b"\xff",
        b"[]",
        b"[" * 10**5,
        json.dumps({**value, "schema": "eckart.latency/2"}).encode(),
        json.dumps({**value, "machine": {**value["machine"], "threads": "99 threads"}}).encode(),
        json.dumps({**value, "models": {name: {"prefill": -1.0}}}).encode(),
        json.dumps({**value, "points": {call: {"0": float("nan")}}}).encode(),
        json.dumps({**value, "points": {call: {}}}).encode(),
        json.dumps({**value, "points": {call: {"x": 1.0}}}).encode(),
        json.dumps({**value, "points": {call: {"0": "1"}}}).encode(),
    ):
        path.write_bytes(spoilt)
        assert Store(next(model.module.parameters())).timings == Timings()  # nothing of it is believed
    plan = eckart.plan(model, **arguments, **job)
    again = json.loads(path.read_text())
    assert again["points"].keys() == value["points"].keys()
    assert plan.timing.before_ms == again["models"][name]  # type: ignore[union-attr]
    assert Store(next(model.module.parameters())).timings.models == again["models"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("llama", {"keep": 0.8, "workload": "decode"}, "workload= says which time counts"),
        ("llama", {"keep": 0.8, "cost": "ms", "workload": "all"}, "workload 'all' is not known"),
        ("llama", {"size": "1MB", "cost": "ms"}, "size= alone leaves no time"),
        ("llama", {"size": "1MB", "keep": 0.8, "max_loss_increase": 0.1, "cost": "ms"}, "give one of keep="),
        ("llama", {"size": "1MB", "keep": 0.8, "cost": "ms", "method": "plain"}, "weighs no loss against two costs"),
        ("bert", {"keep": 0.8, "cost": "ms", "workload": "decode"}, "generates no text"),
    ],
)
def test_what_cannot_be_meant(
    tiny: Tiny, job: dict[str, Any], kind: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        eckart.plan(tiny(kind), **arguments, **job)


def test_a_plan_with_times_that_are_none_is_refused(made_up: Any, job: dict[str, Any]) -> None:
    value = eckart.plan(made_up, 0.8, cost="ms", **job).to_json()
    value["timing"] = {"workload": "both"}
    with pytest.raises(InputError, match="malformed"):
        eckart.Plan.from_json(value)
