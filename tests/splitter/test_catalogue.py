"""Devices and links: the shipped figures are complete, user files override them, and wrong ones are named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue, Figure, load_catalogue
from flagsplit.splitter.links import Link, parse_link

NAMES = (
    "generic-phone-cpu iphone15pro pixel8 galaxy-s24 raspberry-pi-5 coral-edgetpu orin-nano generic-edge-cpu "
    "generic-cloud-cpu t4 l4 a100 h100 ascend310p ascend910b"
).split()


def test_shipped_devices_are_there(catalogue: Catalogue) -> None:
    assert set(NAMES) <= set(catalogue.devices)
    assert {"wifi", "lte", "5g", "ethernet", "wan", "loopback"} <= set(catalogue.links)
    assert catalogue.device("generic-phone-cpu").peak_flops["fp32"].value == 40e9


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_figure_has_source_and_date(catalogue: Catalogue, name: str) -> None:
    device = catalogue.device(name)
    figures = list(device._figures())
    assert all(figure.source not in ("", "unstated") and figure.date for _, figure, _, _ in figures)
    for where, figure, _, _ in figures:
        if figure.source == "flagsplit estimate":
            assert figure.confidence == "low", where
    assert (device.kind == "phone") == bool(device.radio)


def _file(tmp_path: Path, **document: Any) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": 1, **document}))
    return path


def test_user_file_overrides_one_figure(tmp_path: Path, catalogue: Catalogue) -> None:
    mine = {"value": 6e10, "unit": "FLOP/s", "source": "measured here", "date": "2025-06", "confidence": "high"}
    loaded = load_catalogue([_file(tmp_path, devices={"pixel8": {"peak_flops": {"fp32": mine}}})])
    assert loaded.device("pixel8").peak_flops["fp32"] == Figure.model_validate(mine)
    assert loaded.device("pixel8").efficiency == catalogue.device("pixel8").efficiency
    assert loaded.device("t4") == catalogue.device("t4")


def test_user_file_extends_a_device_and_adds_a_link(tmp_path: Path) -> None:
    rate, rtt = {"value": 8e6, "unit": "bit/s"}, {"value": 0.6, "unit": "s"}
    link = {"title": "Satellite", "up": rate, "down": rate, "rtt": rtt}
    path = _file(tmp_path, devices={"my-box": {"extends": "t4", "title": "Mine"}}, links={"satellite": link})
    loaded = load_catalogue([path])
    assert loaded.device("my-box").title == "Mine"
    assert parse_link("satellite", loaded.links).up_bytes_per_s == 1e6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory_bandwidth": {"value": math.nan, "unit": "B/s"}}, "memory_bandwidth.value"),
        ({"memory_bandwidth": {"value": 0, "unit": "B/s"}}, "memory_bandwidth: must be above 0"),
        ({"active_power": {"value": -1, "unit": "W"}}, "active_power.value"),
        ({"memory": {"value": 8, "unit": "GB"}}, "memory: expected the unit 'B', got 'GB'"),
        ({"efficiency": {"conv": {"value": 1.5, "unit": "1"}}}, "efficiency.conv"),
        ({"efficiency": {"convolution": {"value": 0.5, "unit": "1"}}}, "unknown: convolution"),
        ({"speed": 3}, "speed"),
        ({"dispatch": 3}, "dispatch"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_bad_figure_names_file_device_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = _file(tmp_path, devices={"pixel8": change})
    with pytest.raises(PolicyError) as caught:
        load_catalogue([path])
    message = str(caught.value)
    assert str(path) in message
    assert "'pixel8'" in message
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"version": 1, "devices": []}', '{"version": 1, "x": {}}']
)
def test_file_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"mine\.json"):
        load_catalogue([path])
    with pytest.raises(PolicyError, match="cannot be read"):
        load_catalogue([tmp_path / "absent.json"])


def test_unknown_device_lists_the_known(catalogue: Catalogue) -> None:
    with pytest.raises(PolicyError, match="pixel8"):
        catalogue.device("pixel9")


@pytest.mark.parametrize(
    ("text", "up_bit_s", "down_bit_s", "rtt_s", "medium"),
    [
        ("100mbit/5ms", 1e8, 1e8, 0.005, "wifi"),
        ("20Mbit:1.5Gbit/300us", 2e7, 1.5e9, 0.0003, "wifi"),
        ("64kbit:128kbit/2s@lte", 6.4e4, 1.28e5, 2.0, "lte"),
        ("800bit/0ms", 800, 800, 0.0, "wifi"),
    ],
)
def test_link_forms(text: str, up_bit_s: float, down_bit_s: float, rtt_s: float, medium: str) -> None:
    link = parse_link(text)
    assert link.up_bytes_per_s == pytest.approx(up_bit_s / 8)
    assert link.down_bytes_per_s == pytest.approx(down_bit_s / 8)
    assert link.rtt_s == pytest.approx(rtt_s)
    assert link.medium == medium


@pytest.mark.parametrize("text", ["", "fast", "100mbit", "100/5ms", "0mbit/5ms", "-1mbit/5ms", "1mbit/5", "1mbit:/5ms"])
def test_bad_link_text(text: str, catalogue: Catalogue) -> None:
    with pytest.raises(PolicyError, match="link"):
        parse_link(text, catalogue.links)


def test_link_figures_are_checked() -> None:
    for up, rtt in ((0.0, 0.0), (math.inf, 0.0), (1.0, -1.0), (1.0, math.nan)):
        with pytest.raises(PolicyError, match="bad"):
            Link("bad", up, 1.0, rtt)
