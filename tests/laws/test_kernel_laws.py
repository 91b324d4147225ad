"""Laws of layers seen as kernels: what they are, what they read, and the chains that take their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eckart._compress._kernels import Grams, factored
from eckart.errors import RankError
from eckart.models._factored_convolutions import FactoredConvolution, fill_, kernel_of, weight_of
from eckart.models._kernel import Kernel, largest_ranks, patches, stages, useful_forms

# torch says so once of a convolution that it must pad by hand, which is what is asked of it here
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

PLAIN: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """Draw a convolution, or a linear layer, in float64, and an input that is long enough for it."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    axes = draw(st.integers(0, 3))
    if axes == 0:
        linear = nn.Linear(draw(st.integers(1, 6)), draw(st.integers(1, 6)), bias=draw(st.booleans())).double()
        return linear, torch.randn(2, 3, linear.in_features).double()
    per_axis = st.tuples(*(st.integers(1, 3) for _ in range(axes)))
    size, stride, dilation = draw(per_axis), draw(per_axis), draw(per_axis)
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    common: dict[str, Any] = {"dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    padding: Any = tuple(draw(st.integers(0, 2)) for _ in size)
    if draw(st.booleans()):
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        made = TRANSPOSED[axes](*channels, size, stride=stride, padding=padding, output_padding=extra, **common)
        lengths = [max(3, 2 * p + 1) for p in padding]
    else:
        if draw(st.booleans()):
            padding, stride = draw(st.sampled_from([("same", (1,) * axes), ("valid", stride)]))
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        made = PLAIN[axes](*channels, size, stride=stride, padding=padding, padding_mode=mode, **common)
        lengths = [d * (k - 1) + 1 + draw(st.integers(1, 3)) for d, k in zip(dilation, size, strict=True)]
        lengths = [max(n, 5) for n in lengths]
    made = made.double()
    return made, torch.randn(2, channels[0], *lengths).double()


def responses(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what the layer gives at each place, (places, out)."""
    y = layer(x).detach()
    return y.reshape(-1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.movedim(1, -1).reshape(-1, y.shape[1])


@given(layers())
def test_a_kernel_knows_the_layers_shape_and_what_it_reads(drawn: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = drawn
    kernel, expected = kernel_of(layer), responses(layer, x)
    assert kernel.numbers == sum(p.numel() for p in layer.parameters())
    if kernel.size:
        assert kernel.lengths(x.shape[2:]) == tuple(layer(x).shape[2:])
    read = patches(x, kernel, 10**9, np.random.default_rng(0))
    weight = weight_of(layer).detach().reshape(kernel.groups, -1, kernel.columns)
    found = torch.einsum("tgn,gmn->tgm", read, weight).reshape(len(read), kernel.out)
    if layer.bias is not None:
        found = found + layer.bias.detach()
    torch.testing.assert_close(found, expected)
    there = patches(x.numpy(), kernel, 10**9, np.random.default_rng(0))
    assert isinstance(there, np.ndarray)
    np.testing.assert_array_equal(there, read.numpy())
    few = patches(x, kernel, 2, np.random.default_rng(0))
    assert few.shape == (min(2, len(read)), *read.shape[1:])
    assert all(any(torch.equal(one, other) for other in read) for one in few)


def full(kernel: Kernel, form: str) -> tuple[int, ...]:
    """Return the ranks at which a form is the layer."""
    most = largest_ranks(kernel, form)
    return most if form != "tucker" else (most[0], min(most[1], kernel.columns))


@given(layers())
def test_a_chain_of_full_rank_is_the_layer(drawn: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = drawn
    kernel = kernel_of(layer)
    if not kernel.size:
        return
    for form in useful_forms(kernel):
        ranks = full(kernel, form)
        weights = factored(kernel, weight_of(layer).detach(), Grams([None] * kernel.groups, None), (form, ranks))
        chain = stages(kernel, form, ranks)
        new = FactoredConvolution(kernel, chain, dtype=torch.float64)
        bias = layer.bias.detach() if layer.bias is not None else None
        for stage, weight in zip(new.stages, weights, strict=True):
            fill_(stage, weight, bias if stage is new.stages[-1] else None)
        assert sum(stage.numbers for stage in chain) == sum(p.numel() for p in new.parameters())
        scale = float(weight_of(layer).detach().abs().sum())
        torch.testing.assert_close(new(x), layer(x), rtol=1e-7, atol=1e-7 * scale)
        torch.testing.assert_close(new.weight, layer.weight, rtol=1e-7, atol=1e-7 * scale)


def test_what_cannot_shrink_has_no_form_and_ranks_have_bounds() -> None:
    assert useful_forms(kernel_of(nn.Conv2d(8, 8, 3, groups=8))) == ()
    assert useful_forms(kernel_of(nn.Conv2d(8, 4, 1))) == ("pair",)
    assert useful_forms(kernel_of(nn.Conv2d(8, 4, (1, 3)))) == ("pair", "tucker")
    kernel = kernel_of(nn.Conv2d(8, 4, 3))
    with pytest.raises(RankError, match="from 1 to 8 and 4"):
        stages(kernel, "tucker", (9, 4))
    with pytest.raises(RankError, match="no form 'spatial'"):
        stages(kernel_of(nn.Conv1d(8, 4, 3)), "spatial", (1,))


def test_multiplications_are_counted_where_they_are_made() -> None:
    conv = kernel_of(nn.Conv2d(3, 4, 3, stride=2, padding=1))
    assert conv.multiplications((8, 6)) == 4 * 3 * 9 * 4 * 3
    back = kernel_of(nn.ConvTranspose2d(4, 3, 3, stride=2))
    assert back.multiplications((4, 3)) == 4 * 3 * 9 * 4 * 3
