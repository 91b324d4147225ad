"""The claims of the certificate benchmark, on a few seeds, from entries and from probes."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks import records

CASES = Path(__file__).resolve().parents[2] / "benchmarks" / "cases"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("route", ["entries", "probes"])
def test_every_bar_of_the_certificate_is_passed(route, dtype):
    case = records.load_case(CASES, "certificate")
    found = case.summary(map(partial(case.tallies, dtype=dtype, route=route), range(3)), dtype)
    barred = [claim for claim in found.claims if claim.wanted is not None]
    assert barred
    for claim in barred:
        assert claim.reached is not None, claim
        assert claim.at_most, claim
        assert claim.reached <= claim.wanted, claim
