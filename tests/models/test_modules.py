"""Compression of any torch module: what is replaced, what is refused, and that it comes back from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eckart
from eckart.errors import BudgetError, EckartError, InputError, OutputError, UsageError
from eckart.models import _torch_files
from eckart.models._factored_convolutions import FactoredConvolution
from eckart.models._factored_layers import FactorPair
from eckart.models._network_times import DENSE, Form, Times
from eckart.models._torch_network import TorchNetwork


class Small(nn.Module):
    """Convolutions of every kind, a layer that is used twice, two that share a weight and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 32, 3, stride=2, padding="valid", dilation=1)
        self.twice = nn.Conv2d(32, 32, (3, 5), padding="same", padding_mode="reflect")
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.line = nn.Conv1d(16, 16, 5, padding=2)
        self.norm = nn.BatchNorm2d(16)
        self.first, self.second = nn.Linear(16, 24, bias=False), nn.Linear(16, 24)
        self.second.weight = self.first.weight
        self.head = nn.Linear(24, 10)
        self.unused = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.stem(x).relu()).relu()
        x = self.twice(self.twice(x).relu()).relu()
        x = self.norm(self.up(self.depthwise(self.grouped(x).relu())).relu())
        x = self.line(x.mean(dim=2)).relu().mean(dim=2)
        y: torch.Tensor = self.head((self.first(x) + self.second(x)).relu())
        return y


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 3, 17, 19) for _ in range(4)]


def test_a_module_is_compressed_saved_and_loaded(small: Small, batches: list[torch.Tensor], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    made = eckart.compress(small, 0.6, data=batches, out=tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    numbers = sum(p.numel() for p in small.parameters())
    assert made.parameters == made.plan.parameters_after == sum(p.numel() for p in made.module.parameters())
    assert made.parameters <= 0.6 * numbers < 1.05 * made.parameters
    assert made.replaced
    assert made.module is made.module
    exported = torch.export.export(made.module, (batches[0],))
    torch.testing.assert_close(exported.module()(batches[0]), made.module(batches[0]))
    torch.manual_seed(2)
    again = eckart.load(Small(), tmp_path / "out").eval()
    torch.testing.assert_close(again(batches[0]), made.module(batches[0]))
    assert isinstance(again.twice, FactoredConvolution)
    assert isinstance(again.get_submodule("head"), nn.Linear | FactorPair)
    truth = small(batches[0])
    assert float((again(batches[0]) - truth).detach().norm() / truth.detach().norm()) < 0.5
    stored = (tmp_path / "out").glob("*.safetensors")
    assert sum(file.stat().st_size for file in stored) < 4.2 * made.parameters + 10_000


def test_what_stays_dense_says_why(small: Small, batches: list[torch.Tensor]) -> None:
    plan = eckart.plan(small, 0.9, data=batches)
    kept = {layer.name: layer.kept for layer in plan.layers}
    assert "depthwise" in kept["depthwise"]
    assert kept["first"] == "its weight is that of second"
    assert kept["unused"] == "not called on the data"
    assert [name for name, reason in kept.items() if not reason] == [
        "stem", "deep", "twice", "grouped", "up", "line", "head",
    ]  # fmt: skip


def test_more_budget_is_less_change_and_all_of_it_is_none(small: Small, batches: list[torch.Tensor]) -> None:
    def change(keep: float, **more: Any) -> tuple[float, float]:
        made = eckart.compress(small, keep, data=batches, **more)
        apart = [(made.module(x) - small(x)).detach().square().mean() for x in batches]
        return float(sum(apart)) / len(apart), made.plan.predicted_loss_increase

    changes = [change(keep) for keep in (0.4, 0.6, 0.8, 1.0)]
    assert [real for real, _ in changes] == sorted((real for real, _ in changes), reverse=True)
    assert changes[-1] == (0.0, 0.0)
    for real, predicted in changes[1:3]:
        assert 0.3 * predicted < real < 3 * predicted


def test_correction_brings_the_outputs_nearer(batches: list[torch.Tensor]) -> None:
    torch.manual_seed(3)
    deep = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.ReLU()))).eval()
    data = [torch.randn(512, 32) @ torch.randn(32, 32) for _ in range(4)]
    changes = []
    for correct in (False, True):
        made = eckart.compress(deep, 0.7, data=data, correct=correct)
        changes.append(float(sum((made.module(x) - deep(x)).detach().square().mean() for x in data)))
    assert changes[1] < changes[0]


@pytest.mark.parametrize("kind", [tuple, dict])
def test_batches_are_arguments_in_order_or_by_name(kind: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.layer(a) + b}

    a, b = torch.randn(64, 16), torch.randn(64, 16)
    batch = (a, b) if kind is tuple else {"a": a, "b": b}
    made = eckart.compress(Two(), 0.5, data=[batch])
    assert made.replaced == {"layer": ("pair", (7,))} or made.replaced["layer"][0] == "pair"


def test_wrong_calls_say_what_to_do(small: Small, batches: list[torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokens= has no meaning for a torch module"):
        eckart.compress(small, 0.5, data=batches, tokens=5)
    with pytest.raises(UsageError, match="must be batches"):
        eckart.compress(small, 0.5, data="text.txt")
    with pytest.raises(UsageError, match="no batch"):
        eckart.compress(small, 0.5, data=[])
    with pytest.raises(InputError, match="leave labels out"):
        eckart.compress(small, 0.5, data=[(batches[0], torch.zeros(16))])
    with pytest.raises(BudgetError, match="keep >="):
        eckart.compress(small, 0.01, data=batches)
    with pytest.raises(UsageError, match="saved as a folder"):
        eckart.compress(small, 0.5, data=batches, out=tmp_path / "small.onnx")
    with pytest.raises(UsageError, match=r"saved as a \.onnx file"):
        eckart.compress("model.onnx", 0.5, data=batches, out=tmp_path / "small")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    with pytest.raises(OutputError):
        eckart.compress(small, 0.5, data=batches, out=tmp_path / "there")


def test_a_folder_of_another_module_is_refused(small: Small, batches: list[torch.Tensor], tmp_path: Path) -> None:
    eckart.compress(small, 0.6, data=batches, out=tmp_path / "out")
    with pytest.raises(InputError, match="no layer"):
        eckart.load(nn.Sequential(nn.Linear(3, 3)), tmp_path / "out")
    sidecar = tmp_path / "out" / "eckart.json"
    value = json.loads(sidecar.read_text())
    name = next(iter(value["layers"]))
    for wrong, message in (
        ({"format": "pair", "ranks": [10**6]}, "does not fit"),
        ({"format": "no such", "ranks": [1]}, "does not fit"),
        ({"format": "pair", "ranks": "3"}, "no list of integers"),
    ):
        sidecar.write_text(json.dumps({**value, "layers": {**value["layers"], name: wrong}}))
        with pytest.raises(InputError, match=message):
            eckart.load(Small(), tmp_path / "out")
    sidecar.write_text(json.dumps({**value, "schema": "eckart.module/2"}))
    with pytest.raises(InputError, match="schema"):
        eckart.load(Small(), tmp_path / "out")


def test_time_is_measured_and_what_saves_none_is_left(small: Small, batches: list[torch.Tensor]) -> None:
    torch.manual_seed(4)
    wide = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.Tanh(), nn.Linear(512, 8)).eval()
    data = [torch.randn(256, 512) for _ in range(2)]
    made = eckart.compress(wide, 0.7, data=data, cost="ms")
    plan = made.plan
    assert plan.timing.workload == "run"
    assert ", run " in str(plan)
    assert plan.after_ms["run"] <= 0.7 * plan.timing.before_ms["run"] * (1 + 1e-9)
    assert {"before_ms", "after_ms", "speedup"} == set(made.measurement)
    for layer in plan.layers:
        assert (layer.saved_ms is None) == (not layer.changes)
        assert layer.saved_ms is None or layer.saved_ms["run"] > 0
    assert eckart.Plan.from_json(plan.to_json()).after_ms == plan.after_ms
    with pytest.raises(BudgetError, match="of the time"):
        eckart.compress(small, 0.001, data=batches, cost="ms")


def test_a_plan_is_saved_edited_and_carried_out(small: Small, batches: list[torch.Tensor], tmp_path: Path) -> None:
    plan = eckart.plan(small, 0.6, data=batches)
    plan.save(tmp_path / "plan.json")
    assert eckart.Plan.load(tmp_path / "plan.json") == plan
    same = eckart.compress(small, plan=tmp_path / "plan.json", data=batches)
    made = eckart.compress(small, 0.6, data=batches)
    assert same.replaced == made.replaced
    torch.testing.assert_close(same.module(batches[0]), made.module(batches[0]))
    forms = {layer.option.format for layer in plan.layers}
    assert forms >= {"dense", "pair"}
    edited = plan.with_rank("twice", 3).with_rank("stem", None)
    edited.save(tmp_path / "edited.json")
    changed = eckart.compress(small, plan=edited, data=batches, out=tmp_path / "out")
    assert changed.replaced["twice"][1] == ((3, 3) if changed.replaced["twice"][0] == "tucker" else (3,))
    assert "stem" not in changed.replaced
    assert changed.parameters == changed.plan.parameters_after == edited.parameters_after
    with pytest.raises(UsageError, match="another network"):
        eckart.compress(nn.Sequential(nn.Conv2d(3, 16, 3)), plan=plan, data=batches)
    with pytest.raises(UsageError, match="plan= says"):
        eckart.compress(small, 0.5, plan=plan, data=batches)
    value = json.loads((tmp_path / "plan.json").read_text())
    for kernel in (
        {"out": 1},
        {**value["layers"][0]["kernel"], "groups": 5},
        {**value["layers"][0]["kernel"], "size": 3},
    ):
        value["layers"][0]["kernel"] = kernel
        with pytest.raises(InputError, match="kernel"):
            eckart.Plan.from_json(value)


def test_the_given_module_is_not_touched(batches: list[torch.Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Small().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = eckart.compress(module, 0.6, data=batches, dtype="float16", out=tmp_path / "out")
    eckart.load(module, tmp_path / "out")
    with torch.no_grad():
        for tensor in made.module.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_layers_whose_outputs_are_changed_in_place_are_listened_to_before_that() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 16)]
    data = [torch.randn(256, 16)]
    made = [eckart.compress(nn.Sequential(*layers).eval(), 0.7, data=data)]
    for place in (1, 3):
        layers[place] = nn.ReLU()
    made.append(eckart.compress(nn.Sequential(*layers).eval().requires_grad_(False), 0.7, data=data))
    assert made[0].replaced == made[1].replaced
    torch.testing.assert_close(made[0].module(data[0]), made[1].module(data[0]))


def test_a_corrected_layer_keeps_the_mean_of_its_outputs() -> None:
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Conv1d(8, 24, 3), nn.ReLU(), nn.Conv1d(24, 24, 3)).eval()
    data = [torch.randn(64, 8, 32)]
    plan = eckart.plan(module, 0.7, data=data).with_rank("0", 4).with_rank("2", 6).with_rank("4", 6)
    truth, drifts = module(data[0]).detach(), []
    for correct in (False, True):
        made = eckart.compress(module, plan=plan, data=data, correct=correct)
        apart = (made.module(data[0]).detach() - truth).mean(dim=(0, 2))
        drifts.append(float(apart.norm() / truth.mean(dim=(0, 2)).norm()))
    assert drifts[1] < 0.1 * drifts[0]


def test_a_run_ends_where_everything_asked_for_was_seen(small: Small, batches: list[torch.Tensor]) -> None:
    network, called, seen = TorchNetwork(small, batches[0]), list[str](), list[str]()
    for name in ("twice", "grouped"):
        network._inner.get_submodule(name).register_forward_hook(lambda m, args, y, name=name: called.append(name))
    network.read(batches[0], ["deep"], lambda name, x: seen.append(name))
    assert (seen, called) == (["deep"], [])
    network.read(batches[0], ["twice"], lambda name, x: seen.append(name))
    assert (seen[1:], called) == (["twice", "twice"], ["twice"])  # it is seen a second time before it runs again


def test_a_gain_that_is_too_small_is_none_and_a_loss_counts() -> None:
    form: Form = ("pair", (4,))
    for ms, priced in ((9.0, 9.0), (9.4, 9.4), (9.6, 10.0), (12.0, 12.0)):
        times = Times(20.0, {"layer": {DENSE: 10.0, form: ms}})
        assert times.price("layer", form) == priced / 20
        assert times.saved("layer", form) == pytest.approx(10 - ms)
    assert Times(20.0, {"layer": {DENSE: 10.0}}).price("layer", DENSE) == 0.5


def test_what_does_not_come_back_as_it_was_is_not_kept(
    small: Small, batches: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _torch_files.bytes_in
    monkeypatch.setattr(_torch_files, "bytes_in", lambda tensor, dtype: whole(tensor * 1.01, dtype))
    with pytest.raises(EckartError, match="outputs differ"):
        eckart.compress(small, 0.6, data=batches, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
