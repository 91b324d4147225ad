"""Rank rules against published constants, other forms of their formulas, and simulated noise."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from benchmarks.cases.rank_rules import draw
from eckart._rank import _noise_law as law
from eckart._rank import shrink
from eckart._rank._values import Values, evbmf_sigma, evbmf_threshold, tail_sigma
from eckart.errors import UsageError

BETAS = [0.001, 0.05, 1 / 3, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("beta", BETAS)
def test_the_median_of_noise_halves_the_law_of_marchenko_and_pastur(beta):
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    median = law.bulk_median(beta) ** 2

    def density(x):
        return math.sqrt((b - x) * (x - a)) / (2 * math.pi * beta * x)

    assert quad(density, median, b)[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_the_hard_threshold_is_the_published_one(beta):
    # Gavish & Donoho 2014: 4/√3 and 2.858 for square matrices, and a cubic in beta that is within 0.02 for the others
    assert law.hard_threshold(1.0) == pytest.approx(4 / math.sqrt(3), rel=1e-15)
    assert law.hard_threshold(1.0) / law.bulk_median(1.0) == pytest.approx(2.858, abs=1e-3)
    cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    assert law.hard_threshold(beta) / law.bulk_median(beta) == pytest.approx(cubic, abs=0.02)


@pytest.mark.parametrize("beta", BETAS)
def test_strength_inverts_what_noise_does_to_a_component(beta):
    ell = np.linspace(1.01, 10, 50) * law.bbp_threshold(beta)
    y = np.sqrt((1 + ell**2) * (1 + beta / ell**2))
    np.testing.assert_allclose(law.strength(y, beta), ell, rtol=1e-9)
    assert law.strength(law.bulk_edge(beta), beta) == 0


@pytest.mark.parametrize("shape", [(60, 40), (40, 40), (200, 10)])
def test_noise_exceeds_its_maximum_in_one_matrix_of_a_hundred(shape):
    rng = np.random.default_rng(5)
    largest = np.linalg.norm(rng.standard_normal((3000, *shape)), 2, axis=(1, 2)) / math.sqrt(max(shape))
    assert 0.005 <= np.mean(largest > law.noise_maximum(shape)) <= 0.02


def test_the_threshold_of_evbmf_is_the_published_one():
    # Nakajima et al. 2013: tau = 2.5129 sqrt(alpha) for square matrices, and nearly so for the others
    for beta, tolerance in ((1.0, 1e-4), (0.5, 0.02), (0.1, 0.08)):
        tau = 2.5129 * math.sqrt(beta)
        assert evbmf_threshold(beta) == pytest.approx(math.sqrt((1 + tau) * (1 + beta / tau)), rel=tolerance)
    assert all(1.0 < evbmf_threshold(beta) / law.bulk_edge(beta) < 1.12 for beta in BETAS)


@pytest.mark.parametrize(("m", "n", "strength"), [(300, 100, 2), (100, 300, 0), (50, 50, 3), (400, 20, 2)])
def test_the_noise_of_evbmf_minimises_the_free_energy_as_it_is_published(m, n, strength):
    s = np.linalg.svd(draw(m, n, 3 if strength else 0, strength, "white", 11), compute_uv=False)
    alpha, cut = min(m, n) / max(m, n), evbmf_threshold(min(m, n) / max(m, n)) ** 2

    def free_energy(variance):
        x = s**2 / (max(m, n) * variance)
        big = x[x > cut]
        tau = (big - (1 + alpha) + np.sqrt((big - (1 + alpha)) ** 2 - 4 * alpha)) / 2
        return np.sum(x - np.log(x)) + np.sum(np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau)

    best = minimize_scalar(free_energy, bounds=(0.5, 2), method="bounded", options={"xatol": 1e-10}).x
    assert evbmf_sigma(Values(s, (m, n))) == pytest.approx(math.sqrt(best), rel=1e-4)
    assert evbmf_sigma(Values(s, (m, n))) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("k", [5, 8, 40])
def test_the_noise_of_a_tail_is_that_of_the_matrix(k):
    s = np.linalg.svd(draw(200, 150, 4, 3, "white", 12), compute_uv=False)
    tail = Values(s[:k], (200, 150), float(np.sum(s[k:] ** 2)))
    assert tail_sigma(tail, law.hard_threshold(0.75)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("beta", [0.05, 0.5, 0.9, 1.0])
def test_shrinkers_are_those_of_the_cosines(beta):
    # Gavish & Donoho 2017, in the form that names the cosines between the vectors of the component and of the sum
    ell = np.linspace(1.05, 6, 40) * law.bbp_threshold(beta)
    y = np.sqrt((1 + ell**2) * (1 + beta / ell**2))
    left, right = ((ell**4 - beta) / (ell**4 + by * ell**2) for by in (beta, 1.0))
    best = {
        "frobenius": ell * np.sqrt(left * right),
        "operator": ell,
        "nuclear": np.maximum(ell * (np.sqrt(left * right) - np.sqrt((1 - left) * (1 - right))), 0),
    }
    shape, sigma = (round(1000 * beta), 1000), 3.0
    scale = sigma * math.sqrt(1000)
    for loss, expected in best.items():
        found = shrink(y * scale, shape, sigma, loss) / scale
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9, err_msg=loss)
        assert not shrink([law.bulk_edge(beta) * scale * 0.99], shape, sigma, loss).any()
    with pytest.raises(UsageError, match="loss = 'l1' is not known; pass one of frobenius, operator, nuclear"):
        shrink([1.0], (2, 2), 1.0, "l1")


def test_the_frobenius_shrinker_denoises_as_well_as_any_could():
    m, n, r = 400, 400, 4
    errors, best, cut = [], [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        U, V = (np.linalg.qr(rng.standard_normal((size, r)))[0] for size in (m, n))
        low = (U * np.array([4.0, 3.0, 2.5, 2.0]) * math.sqrt(n)) @ V.T
        left, s, right = np.linalg.svd(low + rng.standard_normal((m, n)), full_matrices=False)
        errors.append(np.sum(((left * shrink(s, (m, n), 1.0)) @ right - low) ** 2))
        cut.append(np.sum(((left[:, :r] * s[:r]) @ right[:r] - low) ** 2))
        best.append(np.sum(low**2) - np.sum(np.einsum("ij,ik,jk->k", low, left[:, :r], right[:r].T) ** 2))
    assert np.sum(best) <= np.sum(errors) <= 1.05 * np.sum(best)  # best: weights that know the low-rank part
    assert np.sum(errors) < np.sum(cut)
