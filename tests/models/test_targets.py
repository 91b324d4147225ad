"""What a compression can be asked for: a fraction of parameters or bytes, a size of the files, a predicted loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eckart
from eckart.errors import BudgetError, UsageError

Tiny = Callable[..., Path]


@pytest.fixture
def job(texts: dict[str, Path]) -> dict[str, Any]:
    return {"data": texts["train"], "tokens": 1024, "context": 64, "dtype": "float16"}


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if "safetensors" in path.name)


@pytest.mark.parametrize("method", ["two-sided", "plain", "svd-llm-v2"])
def test_the_files_are_as_large_as_was_asked_for(tiny: Tiny, job: dict[str, Any], tmp_path: Path, method: str) -> None:
    whole = eckart.plan(tiny("llama"), 1.0, method="plain", dtype="float16").bytes_before
    for size in (whole * 3 // 4, f"{whole * 0.8 / 1000:.1f}kB"):
        out = tmp_path / str(size)
        small = eckart.compress(tiny("llama"), size=size, method=method, out=out, **job)
        most = size if isinstance(size, int) else int(float(size.removesuffix("kB")) * 1000)
        assert 0.98 * most <= weight_bytes(out) == small.plan.bytes_after <= most
        assert (small.plan.size, small.plan.keep, small.plan.cost) == (most, None, "bytes")


def test_a_fraction_of_the_bytes(tiny: Tiny, job: dict[str, Any]) -> None:
    made = eckart.plan(tiny("llama"), 0.75, cost="bytes", **job)
    assert 0.74 * made.bytes_before <= made.bytes_after <= 0.75 * made.bytes_before
    assert eckart.Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("cost", ["params", "bytes"])
def test_the_least_cost_within_a_predicted_loss(tiny: Tiny, job: dict[str, Any], cost: Any) -> None:
    model = eckart.open_model(tiny("llama"))
    plans = [eckart.plan(model, max_loss_increase=loss, cost=cost, **job) for loss in (0.0, 0.01, 0.1, 1e9)]
    losses = [plan.predicted_loss_increase for plan in plans]
    assert losses[0] == 0
    assert all(loss is not None and loss <= plan.max_loss_increase for loss, plan in zip(losses, plans, strict=True))
    sizes = [plan.parameters_after if cost == "params" else plan.bytes_after for plan in plans]
    assert sizes[0] >= sizes[1] > sizes[2] > sizes[3]
    # The other way round, a budget of that cost allows no smaller loss but for one option's step.
    keep = plans[2].parameters_after / plans[2].parameters_before
    again = eckart.plan(model, keep, **job)
    if cost == "params":
        assert again.predicted_loss_increase == pytest.approx(losses[2], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, UsageError, "give one of keep="),
        ({"keep": 0.5, "size": "1MB"}, UsageError, "give one of keep="),
        ({"keep": 0.5, "max_loss_increase": 0.1}, UsageError, "give one of keep="),
        ({"keep": 1.5}, UsageError, "is not a fraction"),
        ({"keep": 0.5, "cost": "seconds"}, UsageError, "cost 'seconds'"),
        ({"size": "some"}, UsageError, "some"),
        ({"size": 100}, BudgetError, "size = 100 leaves"),
        ({"keep": 0.001, "cost": "bytes"}, BudgetError, "bytes are in|bytes, but"),
        ({"max_loss_increase": -0.1}, UsageError, "max_loss_increase = -0.1"),
        ({"max_loss_increase": float("nan")}, UsageError, "max_loss_increase = nan"),
        ({"max_loss_increase": float("inf")}, UsageError, "max_loss_increase = inf"),
        ({"max_loss_increase": 0.1, "method": "input"}, UsageError, "predicts no loss"),
        ({"max_loss_increase": 0.1, "method": "kfac"}, UsageError, "predicts no loss"),
    ],
)
def test_what_cannot_be_meant_or_reached(
    tiny: Tiny, job: dict[str, Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        eckart.plan(tiny("llama"), **arguments, **job)


def test_a_plan_leaves_nothing_to_ask_for(tiny: Tiny, job: dict[str, Any]) -> None:
    made = eckart.plan(tiny("llama"), 0.8, method="plain", dtype="float16")
    for more in ({"keep": 0.8}, {"size": "1MB"}, {"max_loss_increase": 0.1}, {"cost": "bytes"}):
        with pytest.raises(UsageError, match="plan= says what every layer becomes"):
            eckart.compress(tiny("llama"), plan=made, **more)


def test_the_smallest_size_is_found_and_one_byte_less_is_refused(tiny: Tiny) -> None:
    model = eckart.open_model(tiny("llama"))
    job: dict[str, Any] = {"method": "plain", "dtype": "float16"}
    smallest = eckart.plan(model, 1.0, **job)
    for layer in smallest.layers:
        if not layer.kept:
            smallest = smallest.with_rank(layer.name, 1)
    least = eckart.compress(model, plan=smallest).plan.bytes_after  # headers included, which have more tensors in them
    assert eckart.plan(model, size=least, **job).bytes_after == least
    for less in (1, 200, 2000):  # the numbers alone would fit
        with pytest.raises(BudgetError, match=rf"size = {least - less:,} leaves"):
            eckart.plan(model, size=least - less, **job)
