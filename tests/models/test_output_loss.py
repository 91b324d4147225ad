"""The loss without labels: the mean squared change of a model's outputs, predicted for any model and added up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart._compress._calibrate import _probed, _sweep
from eckart._compress._journal import Journal
from eckart._compress._methods import METHODS, choose_method
from eckart.models._model import silent
from eckart.models._quality import output_probe
from eckart.models._texts import contexts, read_text

Tiny = Callable[..., Path]
JOB: dict[str, Any] = {"tokens": 2048, "context": 64}


def test_probes_give_the_gauss_newton_matrix_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(7, 4, generator=generator)
    total = torch.zeros(4, 4)
    for _ in range(4000):
        y = torch.zeros(1, 4, requires_grad=True)
        output_probe(y @ jacobian.T, generator).backward()
        assert y.grad is not None
        total += y.grad.T @ y.grad
    expected = jacobian.T @ jacobian / 7
    assert float((total / 4000 - expected).norm()) <= 0.1 * float(expected.norm())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_small_change_of_a_weight_changes_outputs_as_predicted(
    tiny: Tiny, texts: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    model: Any = eckart.open_model(tiny(kind))
    pieces = contexts(model.tokenizer, read_text(texts["train"]), context=64, count=32, seed=0)
    names = [name for name, layer in model.layers().items() if not layer.kept and not layer.table]
    grams: dict[str, tuple[Any, Any]] = {}

    def take(some: Any, taps: Any) -> None:
        grams.update({name: (taps.inputs[name].shrunk(0.0), taps.outputs[name].shrunk(0.0)) for name in some})

    with contextlib.closing(model.runner(pieces.split(8))) as runner:
        _sweep(runner, model, names, [], METHODS["two-sided"], take, Journal(tmp_path), silent, _probed(0))
    dense, generator = model.run(pieces).double(), torch.Generator().manual_seed(1)
    ratios = {}
    for name in names:
        inputs, outputs = grams[name]
        change = 1e-3 * torch.randn(model.weight(name).shape, generator=generator) * model.weight(name).std()
        predicted = float((outputs @ change.double() @ inputs @ change.double().T).trace())
        twin = model.copy()
        module, kind_of = twin._layer(name)
        kind_of.assign_(module, model.weight(name) + change)
        ratios[name] = float((twin.run(pieces).double() - dense).square().mean()) / predicted
    assert 0.8 < sorted(ratios.values())[len(ratios) // 2] < 1.25, ratios
    for name, ratio in ratios.items():
        # Attention adds up the changes in keys and values of all tokens; the prediction takes them one by one.
        assert 0.4 < ratio < (40 if name.endswith((".key", ".value", ".c_attn")) else 2.5), ratios


def test_for_an_encoder_auto_is_two_sided_and_keeps_more_than_inputs_alone(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("bert"))
    method = choose_method("auto", "auto", model)
    assert (method.name, method.unit) == ("two-sided", "mean squared change of an output")
    assert choose_method("auto", "auto", eckart.open_model(tiny("llama"))).unit == "nats a token"
    test = contexts(model.tokenizer, read_text(texts["test"]), context=64, count=16)
    dense, errors = model.run(test), {}
    for name in ("auto", "input"):
        small = eckart.compress(model, 0.7, method=name, data=texts["train"], **JOB)
        errors[name] = float((small.run(test) - dense).norm() / dense.norm())
    assert errors["auto"] < 0.5 * errors["input"]


def test_a_bound_on_the_squared_change_is_kept_by_the_prediction(tiny: Tiny, texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("bert"))
    pieces = contexts(model.tokenizer, read_text(texts["train"]), context=64, count=32, seed=0)
    dense = model.run(pieces)
    most = 1e-3 * float(dense.square().mean())
    small = eckart.compress(model, max_loss_increase=most, data=texts["train"], **JOB)
    assert 0.5 * most < small.plan.predicted_loss_increase <= most
    assert 0.1 * most < float((small.run(pieces) - dense).square().mean()) < 2 * most
    again = eckart.compress(model, plan=eckart.Plan.from_json(small.plan.to_json()), data=texts["train"], **JOB)
    assert torch.equal(again.run(pieces), small.run(pieces))
    other = eckart.compress(tiny("llama"), 0.8, loss="outputs", data=texts["train"], **JOB)
    assert other.plan.unit == small.plan.unit
