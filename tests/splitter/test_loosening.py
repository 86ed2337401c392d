"""What a policy allows or wants beyond another."""

import pytest

from flagsplit.splitter.loosening import loosened
from flagsplit.splitter.sla import parse_sla

_LOSSY = {"accuracy": {"every_cut": {"codecs": ["fp16", "u8"]}}}


@pytest.mark.parametrize(
    ("field", "tight", "loose"),
    [
        ("bounds.latency_ms", {"bounds": {"latency_ms": 5}}, {"bounds": {"latency_ms": 6}}),
        ("bounds.energy_mj", {"bounds": {"energy_mj": 5}}, {}),
        ("requests_per_s", {"requests_per_s": 5}, {"requests_per_s": 4}),
        ("requests_per_s", {"requests_per_s": 5}, {}),
        ("memory_mb", {"memory_mb": {"edge": 1, "phone": 1}}, {"memory_mb": {"edge": 2, "phone": 1}}),
        ("memory_mb", {"memory_mb": {"edge": 1}}, {}),
        ("keep_on", {"keep_on": {"inputs": "phone"}}, {}),
        ("pins", {"pins": {"Conv": "phone", "Relu": "edge"}}, {"pins": {"Relu": "edge"}}),
        ("min_blocks_deep", {"min_blocks_deep": 2}, {"min_blocks_deep": 1}),
        ("accuracy", {"accuracy": {"every_cut": {"codecs": ["fp16"]}}}, _LOSSY),
        ("accuracy", {"accuracy": {"every_cut": {"min_snr_db": 50}}}, {"accuracy": {"every_cut": {"min_snr_db": 40}}}),
        ("accuracy", {}, {"accuracy": {"cuts": {"x*": {"codecs": ["u8"]}}}}),
        ("mode", {"mode": "only_on_device"}, {"mode": "prefer_on_device"}),
        ("mode", {"mode": "only_in_cloud"}, {}),
        ("forbid_tiers", {"forbid_tiers": ["edge"]}, {}),
        ("forbid_vendors", {"forbid_vendors": ["a", "b"]}, {"forbid_vendors": ["b"]}),
        ("use_tiers", {"use_tiers": ["edge", "cloud"]}, {"use_tiers": ["cloud"]}),
    ],
)
def test_a_rule_that_is_dropped_is_named_and_one_that_is_added_is_not(
    field: str, tight: dict[str, object], loose: dict[str, object]
) -> None:
    assert loosened(parse_sla(tight), parse_sla(loose)) == (field,)
    assert loosened(parse_sla(loose), parse_sla(tight)) == ()
    assert loosened(parse_sla(tight), parse_sla(tight)) == ()


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("objective", {}, {"objective": {"energy": 1}}),
        ("objective", {}, {"objective": {"goal": "throughput"}}),
        ("prefer_tiers", {}, {"prefer_tiers": ["edge"]}),
        ("prefer_within", {"prefer_tiers": ["edge"], "prefer_within": 0.2}, {"prefer_tiers": ["edge"]}),
        (
            "energy_scope",
            {"objective": {"energy": 1}},
            {"objective": {"energy": 1}, "energy_scope": "all"},
        ),
    ],
)
def test_another_wish_is_named_either_way(field: str, one: dict[str, object], other: dict[str, object]) -> None:
    assert loosened(parse_sla(one), parse_sla(other)) == (field,)
    assert loosened(parse_sla(other), parse_sla(one)) == (field,)


def test_what_does_not_count_and_what_comes_together() -> None:
    assert loosened(parse_sla({}), parse_sla({"energy_scope": "all", "prefer_within": 0.3})) == ()
    old = parse_sla({"forbid_tiers": ["edge"], "bounds": {"latency_ms": 5}})
    new = parse_sla({"forbid_tiers": ["cloud"], "bounds": {"latency_ms": 4}})
    assert loosened(old, new) == ("forbid_tiers",)
