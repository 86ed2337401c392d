"""What loss does to a link, the forms of its text, regions by the hour, and user files that override them."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue, load_catalogue
from flagsplit.splitter.links import Link, parse_link, parse_what_if


def test_more_loss_never_carries_more() -> None:
    rng = random.Random(1)
    for _ in range(300):
        rate, rtt = 10 ** rng.uniform(2, 10), rng.choice([0.0, 10 ** rng.uniform(-6, 1)])
        losses = sorted(rng.choice([0.0, 1e-12, rng.random(), 10 ** rng.uniform(-9, 0) * 0.999]) for _ in range(6))
        links = [Link("l", rate, rate, rtt, up_loss=p, down_loss=p) for p in losses]
        slow = [link.up_s_per_byte for link in links]
        assert slow == sorted(slow)
        assert all(math.isfinite(s) and s >= (1 / rate) * (1 - 1e-12) for s in slow)
        assert [link.down_s_per_byte for link in links] == slow
        waits = [link.up_s_per_message for link in links]
        assert waits == sorted(waits)
        assert all(rtt / 2 <= wait <= 2.5 * rtt for wait in waits)


def test_no_loss_is_no_change() -> None:
    link = Link("l", 1e6, 2e6, 0.03)
    assert (link.up_s_per_byte, link.down_s_per_byte) == (1e-6, 5e-7)
    assert link.up_s_per_message == link.down_s_per_message == 0.015


def test_the_window_limits_long_fat_links() -> None:
    """0.1 % of 1448-byte segments over 100 ms: Reno 1.31 / sqrt(p) = 41.4 segments, CUBIC 1.054 (100)^0.75 = 33.3."""
    link = Link("l", 1e9, 1e3, 0.1, up_loss=0.001, down_loss=0.001)
    assert 1 / link.up_s_per_byte == pytest.approx(1.31 / math.sqrt(0.001) * 1448 / 0.1)
    assert 1 / link.down_s_per_byte == pytest.approx(1e3 * 0.999), "a slow link has less in flight than the window"


@pytest.mark.parametrize(
    ("text", "up_loss", "down_loss", "medium"),
    [
        ("20mbit/30ms/0.5%", 0.005, 0.005, "wifi"),
        ("20mbit:5mbit/30ms/1%:0%", 0.01, 0.0, "wifi"),
        (" 20MBIT/30MS/0% ", 0.0, 0.0, "wifi"),
        ("20mbit/30ms/99.9%@lte", 0.999, 0.999, "lte"),
    ],
)
def test_forms_of_loss(text: str, up_loss: float, down_loss: float, medium: str) -> None:
    link = parse_link(text)
    assert link.up_loss == pytest.approx(up_loss)
    assert link.down_loss == pytest.approx(down_loss)
    assert link.medium == medium


@pytest.mark.parametrize(
    "text",
    "1mbit/1ms/100% 1mbit/1ms/-1% 1mbit/1ms/1 1mbit/1ms/% 1mbit/1ms/1%:2 1mbit/1ms/1%:2%:3% 1mbit/1ms/nan% "
    "1mbit/1ms/1%@ 1mbit/1ms/1e1% 1mbit/infms nanbit/1ms 1mbit/1ms/1%% 1tbit/1ms 1mbit/1m 1mbit//1ms \u0661mbit/1ms "
    "1mbit/1ms@LT\u00e9 0.0000mbit/1ms".split(),
)
def test_nonsense_is_one_line(text: str, catalogue: Catalogue) -> None:
    with pytest.raises(PolicyError, match=r"^link") as caught:
        parse_link(text, catalogue.links)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan, math.inf])
def test_loss_out_of_range_names_the_field(value: float) -> None:
    with pytest.raises(PolicyError, match="down_loss must be 0 or more and below 1"):
        Link("l", 1.0, 1.0, 0.0, down_loss=value)


def test_the_slowest_link_is_still_a_number() -> None:
    with pytest.raises(PolicyError, match="up_bytes_per_s must be above 0"):
        Link("l", 5e-324, 1.0, 0.0)
    assert math.isfinite(Link("l", 1e-200, 1.0, 0.0, up_loss=1 - 1e-16).up_s_per_byte)


def test_what_if(catalogue: Catalogue) -> None:
    link = Link("mine", 1e6, 2e6, 0.03, "lte", up_loss=0.01)
    slower = parse_what_if("5mbit", link, {})
    assert (slower.up_bytes_per_s, slower.down_bytes_per_s, slower.rtt_s) == pytest.approx((625e3, 625e3, 0.03))
    assert (slower.medium, slower.up_loss) == ("lte", 0.01)
    later = parse_what_if("/80ms", link, {})
    assert (later.up_bytes_per_s, later.down_bytes_per_s, later.rtt_s) == pytest.approx((1e6, 2e6, 0.08))
    assert parse_what_if("wifi", link, catalogue.links) == catalogue.links["wifi"]
    assert parse_what_if("5mbit/80ms/1%", link, {}).up_loss == 0.01
    with pytest.raises(PolicyError, match="link"):
        parse_what_if("faster", link, catalogue.links)


def _file(tmp_path: Path, **document: Any) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": 1, **document}))
    return path


def test_regions_by_the_hour(tmp_path: Path, catalogue: Catalogue) -> None:
    solar = [1.5] * 8 + [0.5] * 8 + [1.0] * 8
    grams = {"value": 200, "unit": "gCO2/kWh"}
    path = _file(
        tmp_path,
        regions={"DEU": {"hourly": solar}, "home": {"title": "Home", "intensity": grams}, "alp": {"extends": "FRA"}},
    )
    loaded = load_catalogue([path])
    assert loaded.region("DEU").grams_per_kwh(None) == catalogue.region("DEU").grams_per_kwh(3) == 381.0
    assert loaded.region("DEU").grams_per_kwh(7) == 571.5
    assert loaded.region("DEU").grams_per_kwh(8) == 190.5
    assert loaded.region("home").grams_per_kwh(5) == 200.0
    assert loaded.region("alp").intensity == catalogue.region("FRA").intensity
    assert loaded.region("POL") == catalogue.region("POL")
    for hour in (24, -1):
        with pytest.raises(PolicyError, match="expected an hour from 0 to 23"):
            loaded.region("DEU").grams_per_kwh(hour)
    with pytest.raises(PolicyError, match="region 'Atlantis' is not in the catalogue: choose from CHN"):
        loaded.region("Atlantis")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("regions", {"hourly": [1.0] * 23}, "hourly: expected 24 factors"),
        ("regions", {"hourly": [1.0] * 23 + [-1.0]}, "hourly"),
        ("regions", {"hourly": [1.0] * 23 + [math.nan]}, "hourly"),
        ("regions", {"intensity": {"value": 3, "unit": "g/kWh"}}, "expected the unit 'gCO2/kWh'"),
        ("regions", {"extends": "Atlantis"}, "region 'DEU': extends: 'Atlantis'"),
        ("regions", {"extends": ["FRA"]}, "region 'DEU': extends: "),
        ("links", {"extends": {}}, "link 'DEU': extends: "),
        ("devices", {"extends": None}, "device 'DEU': extends: None"),
    ],
)
def test_bad_region_is_one_line(tmp_path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_catalogue([_file(tmp_path, **{kind: {"DEU": change}})])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_of_the_user_is_found_by_its_name(tmp_path: Path) -> None:
    rate, rtt = {"value": 8e6, "unit": "bit/s"}, {"value": 0.6, "unit": "s"}
    entry = {"title": "Office", "up": rate, "down": rate, "rtt": rtt, "up_loss": 0.01}
    links = load_catalogue([_file(tmp_path, links={"Office": entry})]).links
    assert parse_link("Office", links).up_loss == 0.01
    assert parse_link("WIFI", links) == links["wifi"]
