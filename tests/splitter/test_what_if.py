"""Other worlds: what changes, what stays, and what cannot be asked."""

import numpy as np
import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line
from flagsplit.splitter.what_if import what_if


@pytest.fixture
def problem(catalogue: Catalogue) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return make_problem(cnn(), tiers, links, bypasses=[Bypass(0, 2, parse_link("20mbit/40ms@lte"))])


def test_links(problem: Problem, catalogue: Catalogue) -> None:
    other = what_if(problem, [("cloud", "5mbit/80ms"), ("phone-cloud", "/10ms"), ("edge", "lte")], catalogue.links)
    assert other.links[1].up_bytes_per_s == 5e6 / 8
    assert other.links[0] == catalogue.links["lte"]
    bypass = other.bypasses[0].link
    assert bypass.rtt_s == pytest.approx(0.01)
    assert bypass.medium == "lte"
    assert bypass.up_bytes_per_s == pytest.approx(20e6 / 8)
    assert other.nominal.up_s_per_byte[1] == pytest.approx(8 / 5e6)
    partly = what_if(problem, [("cloud", "5mbit")], catalogue.links)
    assert partly.links[1].rtt_s == problem.links[1].rtt_s


def test_slower_is_busy_longer(problem: Problem, catalogue: Catalogue) -> None:
    other = what_if(problem, [("edge", "slower:3")], catalogue.links)
    np.testing.assert_allclose(other.costs.seconds[:, 1], problem.costs.seconds[:, 1] * 3)
    np.testing.assert_array_equal(other.costs.seconds[:, 0], problem.costs.seconds[:, 0])
    assert other.costs.decode_s_per_byte["u8"][1] == pytest.approx(3 * problem.costs.decode_s_per_byte["u8"][1])


def test_dead_runs_nothing_and_price_is_a_price(problem: Problem, catalogue: Catalogue) -> None:
    other = what_if(problem, [("edge", "dead"), ("cloud", "price:2")], catalogue.links)
    assert 1 not in solve(other).placement
    assert not other.constraints.allowed[:, 1].any()
    assert other.costs.usd_per_s[2] == 2 * problem.costs.usd_per_s[2]


@pytest.mark.parametrize(
    ("subject", "change", "said"),
    [
        (
            "fog",
            "5mbit",
            "what-if fog=5mbit: there is no tier or by-pass 'fog': there are phone, edge, cloud, ",
        ),
        ("cloud", "sideways", "what-if cloud=sideways: expected a link such as 5mbit/80ms"),
        ("cloud", "0mbit/5ms", "up_bytes_per_s must be above 0"),
        ("cloud", "slower:0", "what-if cloud=slower:0: expected a factor above 0, came '0'"),
        ("cloud", "slower:nan", "expected a factor above 0, came 'nan'"),
        ("cloud", "price:", "expected a factor above 0, came ''"),
        ("phone", "dead", "what-if phone=dead: requests start and end on phone"),
        ("phone", "5mbit", "phone is the first tier, so no link leads to it"),
    ],
)
def test_what_cannot_be_asked(problem: Problem, catalogue: Catalogue, subject: str, change: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        what_if(problem, [(subject, change)], catalogue.links)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
