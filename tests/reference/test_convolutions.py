"""Chains of convolutions against what they stand for: the layer itself at full rank, least squares below it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from eckart._convolutions import Spatial, Tucker, spatial, tucker
from eckart._factorise import truncation

KERNELS = {1: (5,), 2: (3, 2), 3: (2, 3, 2)}
CONVOLVE: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def problem(axes: int, o: int = 6, c: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a kernel, a Gram of correlated patches and one of gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = KERNELS[axes]
    n = c * math.prod(shape)
    weight = torch.randn(o, c, *shape, generator=generator, dtype=torch.float64)
    grams = []
    for size in (n, o):
        half = torch.randn(size, size, generator=generator, dtype=torch.float64) * torch.arange(1, size + 1) ** -1.0
        grams.append(half @ half.T / size + 1e-3 * torch.eye(size, dtype=torch.float64))
    return weight, grams[0], grams[1]


def lost(weight: torch.Tensor, other: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    d = (weight - other).flatten(1)
    return float(torch.trace(outputs @ d @ inputs @ d.T))


def of_spatial(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the kernel that a chain of two stands for."""
    k, c, along = first.shape[:3]
    return torch.einsum("kca,okr->ocar", first.reshape(k, c, along), second.flatten(2)).reshape(
        len(second), c, along, *second.shape[3:]
    )


def of_tucker(inner: torch.Tensor, core: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    return torch.einsum("rc,qr...,oq->oc...", inner.flatten(1), core, outer.flatten(1))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("weighed", [False, True])
def test_spatial_losses_are_those_of_its_factors_and_least(axes: int, weighed: bool) -> None:
    weight, inputs, outputs = problem(axes)
    grams = {"inputs": inputs, "outputs": outputs} if weighed else {}
    found = spatial(weight, **grams)
    n = weight[0].numel()
    inputs, outputs = (inputs, outputs) if weighed else (torch.eye(n).double(), torch.eye(len(weight)).double())
    assert (np.diff(found.losses) <= 1e-12 * found.losses[0]).all()
    for k in (1, 3, len(found.first)):
        first, second = found.factors(k)
        chained = of_spatial(first, second)
        assert lost(weight, chained, inputs, outputs) == pytest.approx(
            found.losses[k], rel=1e-7, abs=1e-9 * found.losses[0]
        )
        other = of_spatial(first, second + 1e-3 * torch.randn(second.shape, dtype=torch.float64))
        assert lost(weight, other, inputs, outputs) > found.losses[k]
    assert torch.allclose(chained, weight, atol=1e-6)


def test_spatial_without_grams_is_the_svd_of_the_unfolded_kernel() -> None:
    weight, _, _ = problem(2)
    unfolded = weight.permute(1, 2, 0, 3).reshape(4 * 3, 6 * 2)
    s = np.linalg.svd(unfolded.numpy(), compute_uv=False)
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0)
    assert np.allclose(spatial(weight).losses, tails, atol=1e-8 * tails[0])


def test_response_reconstruction_is_better_than_the_kernels_own_svd_on_the_responses() -> None:
    weight, inputs, outputs = problem(2)
    plain, found = spatial(weight), spatial(weight, inputs=inputs, outputs=outputs)
    for k in (2, 4, 6):
        assert found.losses[k] < lost(weight, of_spatial(*plain.factors(k)), inputs, outputs)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("r", [1, 2, 4])
def test_tucker_losses_are_those_of_its_factors(axes: int, r: int) -> None:
    weight, inputs, outputs = problem(axes)
    found = tucker(weight, r, inputs=inputs, outputs=outputs)
    scale = found.losses[0]
    assert scale == pytest.approx(lost(weight, 0 * weight, inputs, outputs), rel=1e-9)
    for q in (1, 3, min(6, r * math.prod(KERNELS[axes]))):
        inner, core, outer = found.factors(q)
        assert inner.shape == (r, 4, *[1] * axes)
        assert core.shape == (q, r, *KERNELS[axes])
        assert outer.shape == (6, q, *[1] * axes)
        chained = of_tucker(inner, core, outer)
        assert lost(weight, chained, inputs, outputs) == pytest.approx(found.losses[q], rel=1e-6, abs=1e-8 * scale)
        if q == 6:
            other = of_tucker(inner, core + 1e-3 * torch.randn(core.shape, dtype=torch.float64), outer)
            assert lost(weight, other, inputs, outputs) > found.losses[q]
    if r == 4:
        assert torch.allclose(chained, weight, atol=1e-6)
        assert np.allclose(
            found.losses, truncation(weight.flatten(1), inputs=inputs, outputs=outputs).losses, atol=1e-7 * scale
        )


def test_a_kernel_of_low_multilinear_rank_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    _, inputs, outputs = problem(2)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 4), (3, 2, 3, 2), (6, 3))]
    weight = of_tucker(*parts)
    for grams in ({}, {"inputs": inputs, "outputs": outputs}):
        found = tucker(weight, 2, **grams)
        assert found.losses[3] <= 1e-9 * found.losses[0]
        assert found.losses[2] > 1e-4 * found.losses[0]


def test_hooi_is_at_least_as_good_as_the_first_step_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = 0
    for seed in range(6):
        weight, inputs, outputs = problem(2, o=12, c=8, seed=seed)
        many = tucker(weight, 4, inputs=inputs, outputs=outputs).losses[6]
        with monkeypatch.context() as changed:
            changed.setattr("eckart._convolutions.ITERATIONS", 1)
            worse += tucker(weight, 4, inputs=inputs, outputs=outputs).losses[6] < many
    assert worse <= 1


STRIDES = [
    {"stride": 1, "padding": 0, "dilation": 1},
    {"stride": 2, "padding": 1, "dilation": 1},
    {"stride": 1, "padding": 2, "dilation": 2},
]


@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_chains_at_full_rank_are_the_convolution(axes: int, how: dict[str, int]) -> None:
    weight, _, _ = problem(axes)
    x = torch.randn(2, 4, *[11] * axes, dtype=torch.float64)
    whole = CONVOLVE[axes](x, weight, **how)
    inner, core, outer = tucker(weight, 4).factors(6)
    y = CONVOLVE[axes](CONVOLVE[axes](CONVOLVE[axes](x, inner), core, **how), outer)
    assert torch.allclose(y, whole, atol=1e-8 * float(whole.abs().max()))
    if axes > 1:
        found = spatial(weight)
        first, second = found.factors(len(found.first))

        def along(name: str, front: bool) -> tuple[int, ...]:
            none = 0 if name == "padding" else 1
            return (how[name], *[none] * (axes - 1)) if front else (none, *[how[name]] * (axes - 1))

        y = CONVOLVE[axes](x, first, **{name: along(name, True) for name in how})
        y = CONVOLVE[axes](y, second, **{name: along(name, False) for name in how})
        assert torch.allclose(y, whole, atol=1e-8 * float(whole.abs().max()))


def test_dead_channels_do_no_harm() -> None:
    weight, inputs, outputs = problem(2)
    alive = torch.ones(4, 3, 2, dtype=torch.float64)
    alive[1] = 0
    inputs = inputs * alive.flatten() * alive.flatten()[:, None]
    for found in (spatial(weight, inputs=inputs, outputs=outputs), tucker(weight, 3, inputs=inputs, outputs=outputs)):
        assert isinstance(found, Spatial | Tucker)
        assert np.isfinite(found.losses).all()
        assert found.losses[-1] <= 1e-5 * found.losses[0]


def test_the_order_of_the_other_axes_offsets_changes_nothing() -> None:
    weight, inputs, outputs = problem(2)
    mirrored = inputs.reshape(12, 2, 12, 2).flip(1, 3).reshape(24, 24)
    found = spatial(weight, inputs=inputs, outputs=outputs).losses
    other = spatial(weight.flip(-1), inputs=mirrored, outputs=outputs).losses
    assert np.allclose(found, other, atol=1e-8 * found[0])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_numpy_and_torch_find_the_same_chains(axes: int) -> None:
    weight, inputs, outputs = problem(axes)
    o, c = weight.shape[:2]
    arrays = weight.numpy(), inputs.numpy(), outputs.numpy()
    chains = [
        (spatial(w, inputs=x, outputs=y), tucker(w, c - 1, inputs=x, outputs=y))
        for w, x, y in ((weight, inputs, outputs), arrays)
    ]
    for here, there in zip(*chains, strict=True):
        np.testing.assert_allclose(there.losses, here.losses, atol=1e-10 * here.losses[0])
    products = [
        [of_spatial(*map(torch.as_tensor, one.factors(2))), of_tucker(*map(torch.as_tensor, other.factors(o - 1)))]
        for one, other in chains
    ]
    for here, there in zip(*products, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-9 * float(weight.norm()))
