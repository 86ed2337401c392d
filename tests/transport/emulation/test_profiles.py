"""Links by name and by text: the splitter's own grammar, with a jitter added."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.emulation.live import check_line

from flagsplit.errors import ConfigError, PolicyError
from flagsplit.splitter.links import parse_link
from flagsplit.transport.emulation import PROFILES, LinkShape, parse_profile


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wifi", LinkShape(12.5e6, 0.003, 0.002, 0.001)),
        ("lte", LinkShape(2.5e6, 0.025, 0.008, 0.005)),
        ("5g", LinkShape(25e6, 0.008, 0.003, 0.001)),
        ("bad", LinkShape(0.25e6, 0.1, 0.04, 0.02)),
    ],
)
def test_names(name: str, shape: LinkShape) -> None:
    profile = parse_profile(f" {name.upper()} ")
    assert profile is PROFILES[name]
    assert (profile.name, profile.up, profile.down) == (name, shape, shape)


def test_the_documented_figures() -> None:
    page = (Path(__file__).parents[3] / "docs" / "emulation.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) \|$", page, re.MULTILINE
    )
    assert [name for name, *_ in rows] == list(PROFILES)
    for name, *figures in rows:
        mbit, delay_ms, jitter_ms, loss_percent, goodput_mbit = map(float, figures)
        shape = PROFILES[name].up
        assert shape == LinkShape(mbit * 1e6 / 8, delay_ms / 1e3, jitter_ms / 1e3, loss_percent / 100)
        assert shape.goodput_bytes_per_s * 8e-6 == pytest.approx(goodput_mbit, rel=0.01)


def test_text() -> None:
    profile = parse_profile("20mbit/50ms/8ms/0.5%")
    assert profile.up == profile.down == PROFILES["lte"].up
    both = parse_profile("1mbit:8gbit/30ms/1%:0%@lte")
    assert both.up == LinkShape(125e3, 0.015, 0.0, 0.01)
    assert both.down == LinkShape(1e9, 0.015)


numbers = st.integers(0, 9999).map(str) | st.floats(0.001, 999).map(lambda value: f"{value:.3f}")
rates = st.tuples(numbers, st.sampled_from(["bit", "kbit", "mbit", "gbit"])).map("".join)
rtts = st.tuples(numbers, st.sampled_from(["us", "ms", "s"])).map("".join)
losses = st.floats(0, 120).map(lambda value: f"/{value:.2f}%")


@settings(deadline=None)
@given(
    up=rates,
    down=st.just("") | rates.map(":{}".format),
    rtt=rtts,
    loss=st.just("") | losses,
    medium=st.sampled_from(["", "@lte", "@wifi"]),
)
def test_what_a_plan_is_made_for_can_be_emulated(up: str, down: str, rtt: str, loss: str, medium: str) -> None:
    """The same text is the same link to the splitter, or an error to both."""
    text = f"{up}{down}/{rtt}{loss}{medium}"
    try:
        link = parse_link(text)
    except PolicyError:
        with pytest.raises(ConfigError):
            parse_profile(text)
        return
    profile = parse_profile(text)
    assert math.isclose(profile.up.bytes_per_s, link.up_bytes_per_s)
    assert math.isclose(profile.down.bytes_per_s, link.down_bytes_per_s)
    assert math.isclose(profile.up.delay_s + profile.down.delay_s, link.rtt_s)
    assert (profile.up.loss, profile.down.loss) == (link.up_loss, link.down_loss)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text("0123456789.:/%@kmgbitus", max_size=40))
def test_any_text_is_a_link_or_one_line(text: str) -> None:
    try:
        parse_profile(text)
    except ConfigError as error:
        check_line(str(error))


@pytest.mark.parametrize("text", ["", "fast", "0mbit/5ms", "1mbit", "1mbit/5ms/1", "1mbit/5ms/100%", "-1mbit/5ms"])
def test_wrong_texts_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^link {text!r}: "):
        parse_profile(text)
