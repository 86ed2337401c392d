"""The roofline and the radio, against figures worked out by hand."""

import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.costs import Handicaps, Tier, model_costs
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.testing import GraphBuilder, line


def test_roofline_takes_the_slower_of_compute_and_memory(catalogue: Catalogue) -> None:
    graph = GraphBuilder("g", x=3000)
    heavy = graph.add("heavy", ["x"], 1000, mflop=400)
    graph.add("wide", [heavy], 6_000_000, mflop=0.001, weights=8_999_000)
    tier = Tier("phone", catalogue.device("generic-phone-cpu"))
    seconds = model_costs(graph.build("wide_out"), [tier], []).seconds[:, 0]
    assert seconds[0] == pytest.approx(400e6 / 40e9 + 5e-6)
    assert seconds[1] == pytest.approx((1000 + 6_000_000 + 8_999_000) / 15e9 + 5e-6)


def test_what_a_target_is_slow_at(catalogue: Catalogue) -> None:
    """Bytes moved beside count where memory is what takes longest; on the CPU they are not moved."""
    graph = GraphBuilder("g", x=3000)
    heavy = graph.add("heavy", ["x"], 1000, mflop=400)
    wide = graph.add("wide", [heavy], 6_000_000, mflop=0.001, weights=8_999_000)
    graph.add("small", [wide], 1000, mflop=0.001)
    tier = Tier("phone", catalogue.device("generic-phone-cpu"))
    handicaps = Handicaps(beside=(2,), extra_bytes={0: 146e6, 1: 15e6, 2: 1e9})
    seconds = model_costs(graph.build("small_out"), [tier], [], {"phone": handicaps}).seconds[:, 0]
    assert seconds[0] == pytest.approx(400e6 / 40e9 + 5e-6), "146.004 MB take 9.7 ms, the products 10 ms"
    assert seconds[1] == pytest.approx((1000 + 6_000_000 + 8_999_000 + 15_000_000) / 15e9 + 5e-6)
    assert seconds[2] == pytest.approx((6_000_000 + 1000) / 15e9 + 3 * 5e-6)


def test_radio_charges_the_phone_only(catalogue: Catalogue) -> None:
    tiers, _ = line("pixel8", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    graph = GraphBuilder("g", x=8)
    graph.add("a", ["x"], 8)
    costs = model_costs(graph.build("a_out"), tiers, [parse_link("1mbit/1ms@lte"), parse_link("1gbit/1ms")])
    assert costs.radio_up_j_per_byte.tolist() == [[pytest.approx(76.68 * 8e-9), 0, 0], [0, 0, 0]]
    assert costs.radio_down_j_per_byte.tolist() == [[pytest.approx(11.54 * 8e-9), 0, 0], [0, 0, 0]]


def test_bad_tier_and_unknown_work(catalogue: Catalogue) -> None:
    device = catalogue.device("t4")
    with pytest.raises(PolicyError, match="expected a name"):
        Tier("The Cloud", device)
    with pytest.raises(PolicyError, match="no peak for 'fp8'"):
        Tier("cloud", device, "fp8")
    graph = GraphBuilder("g", x=8)
    graph.add("a", ["x"], 8, op_class="quantum")
    with pytest.raises(PolicyError, match="'quantum'"):
        model_costs(graph.build("a_out"), [Tier("cloud", device, "fp16")], [])
