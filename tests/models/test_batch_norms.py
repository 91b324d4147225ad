"""Batch norms: folded where that changes nothing, left where it would, and estimated anew after compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eckart
from eckart.models._batch_norms import settle_, statistics
from eckart.models._torch_network import TorchNetwork

CONVOLUTIONS: dict[str, Any] = {
    "plain": nn.Conv2d(8, 12, 3),
    "without bias": nn.Conv2d(8, 12, 3, bias=False),
    "grouped": nn.Conv2d(8, 12, 3, groups=2),
    "transposed": nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2),
}


def norm(channels: int = 12, **more: Any) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels, **more)
    assert made.running_mean is not None
    assert made.running_var is not None
    nn.init.normal_(made.running_mean)
    nn.init.uniform_(made.running_var, 0.5, 2.0)
    if made.affine:
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
    return made


class Reads(nn.Module):
    """A layer whose output is read twice, so that its norm cannot be folded, and one whose norm can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 12, 3, padding=1), norm()
        self.second, self.other = nn.Conv2d(12, 12, 3, padding=1), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z: torch.Tensor = self.other(self.second((self.norm(y) + y).relu()))
        return z


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_folded_into_the_convolution_before_it(kind: str, affine: bool) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(CONVOLUTIONS[kind], norm(affine=affine), nn.ReLU()).eval(), torch.randn(4, 8, 9, 9)
    network = TorchNetwork(module, x)
    assert network.folded == {"1": "0"}
    assert isinstance(network.module[1], nn.Identity)
    assert isinstance(module[1], nn.BatchNorm2d)
    torch.testing.assert_close(network.module(x), module(x), rtol=1e-4, atol=1e-4)


def test_what_folding_would_change_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Reads().eval(), torch.randn(16, 4, 9, 9)
    network = TorchNetwork(module, x)
    assert network.folded == {"other": "second"}
    torch.testing.assert_close(network.module(x), module(x), rtol=1e-4, atol=1e-4)
    made = eckart.compress(module, 0.8, data=[x], out=tmp_path / "out")
    again = eckart.load(Reads().eval(), tmp_path / "out")
    torch.testing.assert_close(again(x), made.module(x))
    assert made.plan.parameters_before == sum(p.numel() for p in module.parameters())
    assert made.plan.parameters_after == sum(p.numel() for p in again.parameters()) == made.parameters


def test_a_norm_in_training_is_none_of_ours() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8)).train()
    network = TorchNetwork(module, torch.randn(4, 3, 8, 8))
    assert network.folded == {"1": "0"}  # compression is of the network as it is used
    assert module.training
    assert int(module[1].num_batches_tracked) == 0


def test_statistics_follow_what_a_norm_reads() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.ReLU(), norm(5)).eval(), torch.randn(64, 5, 4, 4)
    bn = module[1]
    mean, variance = bn.running_mean.clone(), bn.running_var.clone()
    before = statistics(module, [lambda: module(x[:32]), lambda: module(x[32:])])
    torch.testing.assert_close(before["1"][0].float(), x.relu().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(before["1"][1].float(), x.relu().var(dim=(0, 2, 3), correction=0))
    settle_(module, before, {"1": (before["1"][0] + 2, 3 * before["1"][1])})
    torch.testing.assert_close(bn.running_mean, mean + 2)
    torch.testing.assert_close(bn.running_var, 3 * variance)
