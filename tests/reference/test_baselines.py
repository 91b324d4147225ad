"""The published baselines: each gives the weights of its authors' formula, written here from the statistics alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eckart
from eckart._compress._correct import refit
from eckart._compress._journal import Journal, StoredTruncation
from eckart._compress._methods import METHODS
from eckart._compress._ranks import _shares_by_type
from eckart._compress._sharing import Stacks
from eckart._factorise import Gram, truncation
from eckart._rounding import Rounding
from eckart.errors import UsageError
from eckart.models import _option
from eckart.models._cross import CrossGram
from eckart.models._model import Layer
from eckart.models._taps import Taps, clipped, tapped

M, N, K, PIECES, TOKENS = 24, 16, 6, 5, 40
Array = np.ndarray[Any, Any]
UNROUNDED = Rounding({}, np.zeros((2, 9)), np.zeros((2, 9)))


@pytest.fixture(scope="module")
def seen() -> dict[str, Array]:
    """A layer, the inputs and output gradients of five pieces, and the gradient of its weight from each, float64."""
    torch.manual_seed(0)
    layer, head = nn.Linear(N, M).double(), nn.Linear(M, 1).double()
    x = torch.randn(PIECES, TOKENS, N, dtype=torch.float64) * torch.logspace(0, 1, N, dtype=torch.float64)
    y = layer(x)
    y.retain_grad()
    per_piece = head(torch.tanh(y)).square().sum(dim=(1, 2))
    of_weight = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in per_piece]
    per_piece.sum().backward()
    assert y.grad is not None
    found = {"W": layer.weight, "x": x, "g": y.grad, "dW": torch.stack(of_weight)}
    return {name: value.detach().numpy() for name, value in found.items()}


def truncated(W: Array, left: Array, right: Array) -> Array:
    """Return left⁻¹ [left W right]_K right⁻¹, the truncated SVD between two invertible matrices."""
    U, s, Vt = np.linalg.svd(left @ W @ right)
    return np.linalg.solve(left, (U[:, :K] * s[:K]) @ Vt[:K]) @ np.linalg.inv(right)


def rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def by_plain(W: Array, x: Array, g: Array, dW: Array) -> Array:
    return truncated(W, np.eye(M), np.eye(N))


def by_fwsvd(W: Array, x: Array, g: Array, dW: Array) -> Array:
    """Hsu et al., ICLR 2022: importance of an input is the root of its weights' summed squared gradients."""
    return truncated(W, np.eye(M), np.diag(np.sqrt((dW**2).sum(axis=(0, 1)))))


def by_asvd(W: Array, x: Array, g: Array, dW: Array) -> Array:
    """Yuan et al., arXiv 2312.05821: S = diag(mean |x|^α), α = 0.5."""
    return truncated(W, np.eye(M), np.diag(np.abs(rows(x)).mean(axis=0) ** 0.5))


def by_svd_llm(W: Array, x: Array, g: Array, dW: Array) -> Array:
    """Wang et al., ICLR 2025: S Sᵀ = X Xᵀ by Cholesky."""
    return truncated(W, np.eye(M), np.linalg.cholesky(rows(x).T @ rows(x)))


def by_kfac(W: Array, x: Array, g: Array, dW: Array) -> Array:
    """LEMS, ICML 2026: the middle three quarters of a piece, norms within 0.1 and 10 means; shrinkage 0.3 and 0.1."""
    middle = g[:, TOKENS // 8 : TOKENS - TOKENS // 8]
    norms = np.linalg.norm(middle, axis=2, keepdims=True)
    mean = norms.mean(axis=1, keepdims=True)
    bounded = middle * np.clip(norms, 0.1 * mean, 10 * mean) / norms
    R, C = rows(bounded).T @ rows(bounded), rows(x).T @ rows(x)
    R = 0.7 * R + 0.3 * np.trace(R) / M * np.eye(M)
    C = 0.9 * C + 0.1 * np.trace(C) / N * np.eye(N)
    return truncated(W, np.linalg.cholesky(R).T, np.linalg.cholesky(C))


def by_svd_llm_update(W: Array, x: Array, g: Array, dW: Array) -> Array:
    """Wang et al., ICLR 2025: U ← argmin ‖U (V x') - W x'‖, x' behind the compressed layers, by least squares."""
    V, seen = right_factor(W, x), rows(changed(x))
    U = np.linalg.lstsq(seen @ V.T, seen @ W.T)[0].T
    return U @ V


def by_mpifa(W: Array, x: Array, g: Array, dW: Array) -> Array:
    """PIFA, ICML 2025, two steps: a quarter of the target is the dense output; λ = 1e-3 towards W, on sums."""
    V, before, seen = right_factor(W, x), rows(x), rows(changed(x))
    wanted = 0.75 * seen @ W.T + 0.25 * before @ W.T
    XTX, YTX = seen.T @ seen, wanted.T @ seen
    U = np.linalg.solve((V @ XTX @ V.T).T, (YTX @ V.T).T).T
    new = np.linalg.solve((XTX + 1e-3 * np.eye(N)).T, (YTX + 1e-3 * W).T).T
    return U @ np.linalg.lstsq(U, new)[0]


def right_factor(W: Array, x: Array) -> Array:
    S = np.linalg.cholesky(rows(x).T @ rows(x))
    _, s, Vt = np.linalg.svd(W @ S)
    return np.sqrt(s[:K])[:, None] * Vt[:K] @ np.linalg.inv(S)


def changed(x: Array) -> Array:
    """What the layer reads once those before it are compressed."""
    return x + 0.3 * np.roll(x, 1, axis=-1)


OF_SEVERAL_LAYERS = {"basis-sharing"}  # held to their formulas further down
OF_THE_MODEL = {"drop-layers", "slicegpt", "lems"}  # tests/models; slicegpt is not its authors' algorithm
FORMULAS = {
    "plain": by_plain,
    "fwsvd": by_fwsvd,
    "asvd": by_asvd,
    "svd-llm": by_svd_llm,
    "svd-llm-update": by_svd_llm_update,
    "svd-llm-v2": by_svd_llm,
    "mpifa": by_mpifa,
    "kfac": by_kfac,
}


def test_every_method_but_our_own_is_held_to_a_formula() -> None:
    assert {*FORMULAS, *OF_SEVERAL_LAYERS, *OF_THE_MODEL, "two-sided", "input", "int8"} == METHODS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_a_layer_is_truncated_by_its_authors_formula(seen: dict[str, Array], name: str) -> None:
    method = METHODS[name]
    layer = nn.Linear(N, M, bias=False).double()
    layer.weight.data = torch.tensor(seen["W"])
    x, g = torch.tensor(seen["x"]), torch.tensor(seen["g"])
    with tapped({"layer": layer}, [["layer"]], gradients=method.gradients) as taps:
        for some, gradient in zip(x.split(2), g.split(2), strict=True):  # pieces come in batches
            layer(some.requires_grad_()).backward(gradient)
    inputs, outputs = method.metric(taps, "layer")
    pair = truncation(layer.weight.detach(), inputs=inputs, outputs=outputs).pair(K)
    if method.correction:
        sums = CrossGram(N)
        for before, instead in zip(x, torch.tensor(changed(seen["x"])), strict=True):
            sums.add(before, instead)
        pair = refit(layer.weight.detach(), pair, sums, method.correction)
    expected = FORMULAS[name](*(seen[part] for part in ("W", "x", "g", "dW")))
    assert np.linalg.norm((pair.up @ pair.down).numpy() - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_shared_basis_is_that_of_its_authors(seen: dict[str, Array], tmp_path: Path) -> None:
    """Wang et al., ICLR 2025: S from the sum of both Grams, one truncated SVD of S [W_1ᵀ W_2ᵀ]."""
    x = {"0": rows(seen["x"]), "1": rows(changed(seen["x"]))}
    W = {"0": seen["W"], "1": seen["W"][::-1] + 0.1}
    layers = {name: Layer(name, "Linear", M, N, False, "", (name,)) for name in W}
    stacks, journal, stack = Stacks({"0": list(layers.values())}), Journal(tmp_path), np.vstack(list(W.values()))
    metric = METHODS["basis-sharing"].metric
    total = 0
    for name, inputs in x.items():
        gram = Gram(N)
        gram.add(torch.tensor(inputs))
        total = total + metric(Taps({name: gram}), name)[0]
    journal.put("0", truncation(torch.tensor(stack), inputs=total).stored(), UNROUNDED)
    cuts = stacks.cuts({"0": journal.get("0")})
    found = {name: cuts[name].factors("pair", [K]) for name in W}
    S = np.linalg.cholesky(sum(inputs.T @ inputs for inputs in x.values())).T
    U, s, Vt = np.linalg.svd(S @ stack.T)
    basis = np.linalg.inv(S) @ U[:, :K] * s[:K]
    for i, name in enumerate(W):
        expected = (basis @ Vt[:K, i * M : (i + 1) * M]).T
        assert np.linalg.norm(found[name].matrix().numpy() - expected) <= 1e-5 * np.linalg.norm(expected)
    assert torch.equal(found["0"].down, found["1"].down)


def test_adjacent_blocks_share_what_reads_the_stream(tiny: Callable[..., Path], texts: dict[str, Path]) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64, "method": "basis-sharing"}
    plan = eckart.plan(model, 0.75, **job)
    options = plan.options
    for leaf in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        first, second, alone = (options[f"model.layers.{i}.{leaf}"] for i in range(3))
        assert (first.format, second.format, alone.format) == ("shared", "shared", "pair")
        assert second.down_of == f"model.layers.0.{leaf}"
    assert {options[f"model.layers.{i}.mlp.down_proj"].format for i in range(3)} == {"pair"}
    small = eckart.compress(model, 0.75, **job)
    again = eckart.compress(model, plan=plan, **{**job, "method": "auto"})
    tokens = torch.arange(3, 67)[None]
    assert small.plan == plan
    assert torch.equal(small.run(tokens), again.run(tokens))
    broken = plan.to_json()
    entry = next(layer for layer in broken["layers"] if layer["name"] == second.down_of)
    entry["option"]["ranks"] = [3]
    with pytest.raises(UsageError, match="cannot share: their ranks or columns differ"):
        eckart.compress(model, plan=eckart.Plan.from_json(broken), **{**job, "method": "auto"})


def test_clipping_bounds_norms_and_leaves_vanished_gradients_alone() -> None:
    g = torch.ones(1, 96, 3)
    g[0, 20], g[0, 21], g[0, 22] = 100.0, 1e-4, 0.0
    middle = clipped(g)
    assert middle.shape == (1, 72, 3)
    norms, there = middle.norm(dim=2)[0], g[0, 12:84].norm(dim=1)
    mean = there.sum() / (len(there) - 1)  # one of them is zero
    assert torch.allclose(norms[8:11], torch.stack([10 * mean, 0.1 * mean, 0 * mean]))
    assert torch.equal(norms[11:], there[11:])


def test_fractions_by_type_follow_the_rule_of_svd_llm_v2() -> None:
    losses = {"0.q": 50.0, "1.q": 900.0, "0.o": 7.0, "1.o": 7.0}
    offers, cuts = {}, {}
    for name, loss in losses.items():
        ranks = [_option.pair(8, 8, False, "float32", k) for k in (1, 2, 3)]
        offers[name] = [_option.dense(8, 8, False, "float32"), *ranks]
        s = np.array([9.0, 8.0, loss, 0, 0, 0, 0, 0])  # at half the numbers the rank is 2, and `loss` is the norm lost
        cuts[name] = StoredTruncation(s, UNROUNDED, Path())

    def price(name: str, option: _option.Option) -> float:
        return option.params

    shares = _shares_by_type(offers, cuts, 4 * 32, price)
    scores = {name: 1 / np.log(loss) for name, loss in losses.items()}
    for name in losses:
        same = [score for other, score in scores.items() if other[-1] == name[-1]]
        assert np.isclose(shares[name], 2 * scores[name] / sum(same))
    assert shares["0.q"] > 1 > shares["1.q"]
    assert shares["0.o"] == shares["1.o"] == 1
    cuts["0.q"] = StoredTruncation(np.zeros(8), UNROUNDED, Path())
    assert _shares_by_type(offers, cuts, 4 * 32, price)["1.q"] == 1  # 1 / log 0 is no score


@pytest.mark.parametrize("storage", ["auto", "pifa"])
@pytest.mark.parametrize("name", [name for name in (*FORMULAS, *OF_SEVERAL_LAYERS) if name != "plain"])
def test_every_baseline_compresses_a_model_within_the_budget(
    tiny: Callable[..., Path], texts: dict[str, Path], name: str, storage: Any
) -> None:
    model: Any = eckart.open_model(tiny("llama"))
    job: dict[str, Any] = {"data": texts["train"], "tokens": 1024, "context": 64}
    small = eckart.compress(model, 0.75, method=name, storage=storage, **job)
    assert 0.74 * model.parameters <= small.parameters <= 0.75 * model.parameters
    formats = {option.format for option in small.replaced.values()}
    stacked = {"shared"} if METHODS[name].shares else set()  # which have one form of storage
    stored = METHODS[name].storage if storage == "auto" else storage
    assert formats == stacked | ({"pifa", "folded"} if stored == "pifa" else {"pair"})
    assert torch.isfinite(small.run(torch.arange(3, 67)[None])).all()
