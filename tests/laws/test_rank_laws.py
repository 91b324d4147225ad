"""Ranks: right where components can be seen, unchanged by what changes nothing, and honest about the rest."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from svd_cases import Own

import eckart
from benchmarks.cases.rank_rules import draw
from eckart._rank import RULES
from eckart._rank._values import MoreValuesNeeded, Values, evbmf_sigma, evbmf_threshold
from eckart.errors import NumericalError, UsageError

SEEDS = 20  # of a cell here; benchmarks/cases/rank_rules.py draws 100, and larger matrices
NO_ENERGY = [rule for rule in RULES if rule != "energy"]
MODELS = {
    "white": "white",
    "column-unequal": "column-unequal",
    "scaled columns": "column-unequal",
    "row-unequal": "row-unequal",
    "row- and column-unequal": "row- and column-unequal",
    "t4": "heavy-tailed",
}


@pytest.mark.parametrize("strength", [0, 2])
@pytest.mark.parametrize("shape", [(300, 100), (100, 300)])
@pytest.mark.parametrize("noise", MODELS)
def test_auto_finds_the_rank_and_names_the_noise(noise, shape, strength):
    truth = 5 if strength else 0
    found = [eckart.choose_rank(draw(*shape, truth, strength, noise, seed)) for seed in range(SEEDS)]
    exact, named = sum(rank == truth for rank in found), sum(rank.noise == MODELS[noise] for rank in found)
    assert exact >= (0.90 if noise == "t4" and strength else 0.97) * SEEDS, [int(rank) for rank in found]
    assert named >= 0.9 * SEEDS, [rank.noise for rank in found]


def test_rules_for_white_noise_fail_where_auto_does_not():
    A = draw(300, 100, 5, 2, "column-unequal", 0)
    assert [int(eckart.choose_rank(A, rule=rule)) for rule in ("auto", "whitened", "parallel")] == [5, 5, 5]
    assert min(eckart.choose_rank(A).votes[rule] for rule in ("evbmf", "gavish-donoho")) > 10


def test_many_components_in_a_matrix_too_large_for_lapack():
    rank = eckart.choose_rank(draw(700, 600, 40, 2, "column-unequal", 0))
    assert rank == 40
    assert rank.noise == "column-unequal"


@pytest.mark.parametrize("r", [0, 5, 12])
def test_the_level_of_the_noise_allows_for_what_components_take_with_them(r):
    ranks = [eckart.choose_rank(draw(100, 60, r, 4, "white", seed), rule="whitened") for seed in range(4)]
    assert ranks == [r] * 4
    assert np.mean([rank.sigma for rank in ranks]) == pytest.approx(1, abs=0.03)


def test_a_rank_is_an_int_that_carries_its_reason():
    A = 7 * draw(300, 100, 5, 2, "white", 1)
    rank = eckart.choose_rank(A)
    assert isinstance(rank, eckart.Rank)
    assert (rank, hash(rank), str(rank), f"{rank:02d}", rank + 1) == (5, hash(5), "5", "05", 6)
    assert repr(rank) == "Rank(5, rule='evbmf', noise='white')"
    assert eckart.svd(A, rank).s.shape == (5,)
    assert rank.margin.kept > 1 > rank.margin.next
    assert rank.sigma == pytest.approx(7, rel=0.05)
    assert rank.detectable == pytest.approx(1.5 * rank.sigma * (300 * 100) ** 0.25)
    assert rank.threshold > rank.sigma * (300**0.5 + 100**0.5)
    assert rank.undetectable == 0
    assert rank.votes == {"gavish-donoho": 5, "whitened": 5, "parallel": 5}
    for part in ("5 of the 100", "evbmf", "white", f"{rank.threshold:.4g}", f"{rank.margin.next:.3g}", "parallel 5"):
        assert part in rank.reason
    assert json.loads(json.dumps(rank.as_dict(), allow_nan=False))["margin"]["next"] == rank.margin.next
    assert pickle.loads(pickle.dumps(rank)).as_dict() == copy.deepcopy(rank).as_dict() == rank.as_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        rank.rule = "energy"


def test_what_no_rule_can_see_is_called_undetectable():
    rank = eckart.choose_rank(draw(300, 100, 5, 1.2, "white", 1), noise=1.0)
    assert rank.undetectable > 0
    assert "undetectable: their number is a guess" in rank.reason
    everything = eckart.choose_rank(draw(300, 100, 5, 2, "white", 1), energy=0.9)
    assert everything > 50
    assert everything.undetectable == everything - 5


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 3]),
    st.sampled_from(["white", "column-unequal", "t4"]),
    st.sampled_from(["auto", "evbmf", "gavish-donoho", "whitened"]),
)
def test_what_changes_no_rank_changes_no_answer(seed, strength, noise, rule):
    A = draw(60, 90, 3 if strength else 0, strength, noise, seed)
    rng = np.random.default_rng(seed)
    others = [A * rng.choice([-1, 1], 60)[:, None] * rng.choice([-1, 1], 90)]
    others += [A[rng.permutation(60)][:, rng.permutation(90)], A * 2.0**500, A * 2.0**-500]
    others += [A.T] if rule != "whitened" else [A * np.exp(rng.standard_normal(90))]
    rank, *ranks = (eckart.choose_rank(B, rule=rule) for B in (A, *others))
    assert ranks == [rank] * len(others)
    assert ranks[3].margin.next == pytest.approx(rank.margin.next, rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.sampled_from([(50, 50), (30, 70), (90, 12)]))
def test_leading_values_and_the_norm_give_the_noise_of_all_values(seed, r, shape):
    s = np.linalg.svd(draw(*shape, r, 3, "white", seed), compute_uv=False)
    whole = evbmf_sigma(Values(s, shape))
    rank = int(np.count_nonzero(s > evbmf_threshold(min(shape) / max(shape)) * whole * max(shape) ** 0.5))
    for k in (rank + 1, rank + 3, len(s) - 1):
        tail = Values(s[:k], shape, float(np.sum(s[k:] ** 2)))
        assert evbmf_sigma(tail) == pytest.approx(whole, rel=1e-4)
    with pytest.raises(MoreValuesNeeded):
        Values(s[:rank], shape, 1.0).above(0.0)


@pytest.mark.parametrize("k", [6, 20])
def test_an_svd_serves_the_rules_that_need_no_entries(k):
    A = draw(300, 100, 5, 2, "white", 2)
    for rule in ("auto", "evbmf", "gavish-donoho"):
        of_svd, of_values = eckart.choose_rank(eckart.svd(A, k), rule=rule), np.linalg.svd(A, compute_uv=False)
        assert of_svd == eckart.choose_rank(of_values, rule=rule, shape=(300, 100)) == 5
        assert of_svd.sigma == pytest.approx(1, abs=0.02)
        assert "assumed, not tested" in of_svd.reason
    assert eckart.choose_rank(eckart.svd(A, k), energy=0.05) == eckart.choose_rank(A, energy=0.05)
    with pytest.raises(UsageError, match=r"'parallel' needs the entries .* or rule='evbmf'"):
        eckart.choose_rank(eckart.svd(A, k), rule="parallel")
    with pytest.raises(UsageError, match="keeps all 5 singular values that were given"):
        eckart.choose_rank(eckart.svd(A, 5))


@pytest.mark.parametrize("rule", NO_ENERGY)
def test_kinds_of_one_matrix_agree(rule):
    A = draw(90, 60, 3, 3, "column-unequal", 3).astype(np.float32)
    kinds = [torch.from_numpy(A), A.astype(np.float64), A.tolist()]
    # The tails of a sparse matrix are not tested, and random signs are drawn for what is stored.
    kinds += [sp.csr_array(A), sp.csc_matrix(A), sp.coo_array(np.vstack([A, np.zeros((2, 60))]))]
    ranks = [eckart.choose_rank(kind, rule=rule) for kind in (A, *kinds)]
    assert len({int(rank) for rank in ranks}) == 1
    assert len({rank.noise for rank in ranks}) == 1
    assert ranks[0] == 3 or rule in ("evbmf", "gavish-donoho")


def test_products_alone_serve_where_all_values_are_found():
    rank = eckart.choose_rank(Own(draw(90, 60, 3, 3, "white", 4)))
    assert rank == 3
    assert "assumed, not tested" in rank.reason
    with pytest.raises(UsageError, match="'whitened' needs the entries"):
        eckart.choose_rank(Own(np.eye(4)), rule="whitened")
    with pytest.raises(UsageError, match=r"products alone only bound that; pass an array"):
        eckart.choose_rank(Own(draw(1500, 800, 0, 0, "white", 0)))


@pytest.mark.parametrize("rule", NO_ENERGY)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (1, 9), (9, 1), (2, 2), (5, 3), (3, 30)])
def test_small_empty_and_zero_matrices_hold_no_component(shape, rule):
    rng = np.random.default_rng(1)
    for A in (np.zeros(shape), rng.standard_normal(shape)):
        rank = eckart.choose_rank(A, rule=rule)
        assert rank == 0
        assert json.dumps(rank.as_dict(), allow_nan=False)
        assert rank.reason.endswith(".")


@pytest.mark.parametrize("rule", ["auto", "evbmf", "gavish-donoho", "whitened"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_matrix_without_noise_has_its_numerical_rank(rule, dtype):
    rng = np.random.default_rng(2)
    A = (rng.standard_normal((40, 4)) @ rng.standard_normal((4, 30))).astype(dtype)
    rank = eckart.choose_rank(A, rule=rule)
    assert rank == 4
    assert rank.noise == "none"
    assert "numerical rank" in rank.reason


@pytest.mark.parametrize("rule", NO_ENERGY)
def test_weak_noise_constant_columns_and_centred_rows(rule):
    rng = np.random.default_rng(3)
    low = rng.standard_normal((90, 3)) @ rng.standard_normal((3, 60))
    assert eckart.choose_rank(low + 1e-6 * rng.standard_normal((90, 60)), rule=rule) == 3
    constant = rng.standard_normal((90, 60))
    constant[:, :7] = 0
    constant[:, 7] = 5.0
    assert eckart.choose_rank(constant, rule=rule) <= 1  # a column that differs is a component, or has its own noise
    centred = draw(30, 90, 2, 4, "white", 5)
    assert eckart.choose_rank(centred - centred.mean(axis=0), rule=rule) == 2


def test_energy_keeps_as_few_components_as_hold_it():
    A = np.diag([3.0, 2.0, 1.0])
    assert [int(eckart.choose_rank(A, energy=part)) for part in (0, 9 / 14, 0.65, 13 / 14, 0.93, 1)] == [
        0,
        1,
        2,
        2,
        3,
        3,
    ]
    assert eckart.choose_rank(np.outer([1.0, 2, 3], [1.0, 1]), energy=1) == 1
    large = draw(700, 600, 30, 8, "white", 6)
    assert eckart.choose_rank(large, energy=0.6) == eckart.choose_rank(eckart.svd(large), energy=0.6) > 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "elbow"}, r"rule = 'elbow' is not known; pass one of auto, evbmf, .*, energy"),
        ({"rule": "energy"}, "needs to know how much to keep; pass energy="),
        ({"rule": "evbmf", "energy": 0.9}, "energy = 0.9 means nothing to rule = 'evbmf'"),
        ({"energy": 1.5}, r"energy = 1.5 is not a part of ‖A‖_F²"),
        ({"rule": "parallel", "noise": 1.0}, "noise = 1.0 means nothing to rule = 'parallel'"),
        ({"energy": 0.5, "noise": 1.0}, "noise = 1.0 means nothing to rule = 'energy'"),
        ({"noise": 0.0}, "noise = 0.0 is not a standard deviation"),
        ({"seed": -1}, "seed = -1 is not a whole number"),
        ({"shape": (4, 4)}, r"shape = \(4, 4\) goes with all 4 singular values, and an array \(4, 4\) was given"),
        ({"shape": 4}, "shape = 4 is not the shape of a matrix"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(UsageError, match=message):
        eckart.choose_rank(np.eye(4), **arguments)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(UsageError, match=r"pass shape=\(m, n\) if it holds all singular values"):
        eckart.choose_rank(np.ones(3))
    with pytest.raises(UsageError, match="0 or more and descending"):
        eckart.choose_rank([1.0, 2.0], shape=(2, 5))
    with pytest.raises(UsageError, match=r"an SVD of a stack \(2,\) has many ranks"):
        eckart.choose_rank(eckart.svd(np.ones((2, 3, 4))))
    with pytest.raises(NumericalError, match="row 1, column 2"):
        eckart.choose_rank([[1, 2, 3], [4, 5, np.nan]])
    with pytest.raises(NumericalError, match="singular value 1 is not finite"):
        eckart.choose_rank([1.0, np.nan], shape=(2, 5))


def test_the_same_seed_gives_the_same_answer_and_the_matrix_is_left_alone():
    A = draw(60, 40, 2, 3, "t4", 7)
    before = A.copy()
    assert eckart.choose_rank(A, seed=3).as_dict() == eckart.choose_rank(A, seed=3).as_dict()
    np.testing.assert_array_equal(A, before)
