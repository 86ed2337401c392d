"""What the commands print when all is well: tables for people, exactly one JSON object for programs."""

from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli

from flagsplit.apps import zoo

PREDICTED = {"latency_ms", "energy_mj", "price_per_1k_usd", "tier_ms", "resident_bytes", "up_bytes", "down_bytes"}


def test_build(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    data = cli("build", small_model, "--tiers", "phone,edge,cloud", "-o", "x.flagsplit", "--json").data
    assert data["bundle"] == "x.flagsplit"
    assert data["size_bytes"] == (tmp_path / "x.flagsplit").stat().st_size
    assert data["weights_bytes"] == 4 * (8 * 27 + 32 * 72 + 64 * 32 + 640)
    assert [plan["name"] for plan in data["plans"]] == ["all-phone", "all-edge", "all-cloud"]
    assert data["plan"] == "all-phone"
    assert data["basis"] == "modelled"
    assert any("Do not split" in reason for reason in data["reasons"])
    assert list(tmp_path.iterdir()) == [tmp_path / "x.flagsplit"]


def test_inspect(cli: Cli, split_bundle: Path) -> None:
    data = cli("inspect", split_bundle, "--json").data
    assert data["size_bytes"] == split_bundle.stat().st_size
    assert data["weights_bytes"] == 4 * (8 * 27 + 32 * 72 + 64 * 32 + 640)
    assert data["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["N", 3, "H", "W"]}]
    assert [(t["name"], t["dtype"], t["shape"]) for t in data["outputs"]] == [
        ("scores", "float32", ["N", 10]),
        ("label", "int64", ["N"]),
    ]
    assert [tier["name"] for tier in data["tiers"]] == ["phone", "edge", "cloud"]
    assert data["nominal_dims"] == {"N": 1, "H": 224, "W": 224}
    assert data["plans"]
    for plan in data["plans"]:
        assert plan["tiers"][0] == "phone"
        assert plan["tiers"][-1] == "cloud"
        assert plan["predicted"].keys() >= PREDICTED
        assert plan["predicted"]["basis"] == "modelled"
        assert plan["predicted"]["latency_ms"] > 0
        assert sum(plan["blocks"].values()) == 5
        assert {cut["from"] for cut in plan["cuts"]} | {cut["to"] for cut in plan["cuts"]} == set(plan["tiers"])
    assert set(data["absent"]) == {"all-phone", "all-edge", "all-cloud"}


def test_catalogues_and_keys(cli: Cli, folders: Path) -> None:
    devices = cli("devices", "--json").data
    assert {"pixel8", "t4"} <= {device["name"] for device in devices["devices"]}
    assert {"wifi", "wan"} <= {link["name"] for link in devices["links"]}
    listed = cli("zoo", "list", "--json").data
    assert [entry["name"] for entry in listed["entries"]] == [entry.name for entry in zoo.entries()]
    keys = cli("keys", "show", "--json").data
    assert Path(keys["folder"]) == folders / "home" / "keys"
    assert len(keys["public_key"]) == 40


def test_keys_come_and_go(cli: Cli, tmp_path: Path) -> None:
    key = cli("keys", "show", "--keys", tmp_path / "other", "--json").data["public_key"]
    mine = ("--keys", tmp_path / "mine")
    assert cli("keys", "allow", "friend", key, *mine).code == 0
    assert cli("keys", "trust", "tcp://Edge.local:5555", key, *mine).code == 0
    shown = cli("keys", "show", *mine, "--json").data
    assert shown["authorized"] == {"friend": key}
    assert shown["known_servers"] == {"tcp://edge.local:5555": key}
    assert key in cli("keys", "show", *mine).out
    assert (shown["admins"], shown["workers"]) == ([], [])
    assert cli("keys", "allow", "friend", key, "--worker", *mine).code == 0
    assert cli("keys", "show", *mine, "--json").data["workers"] == ["friend"]
    assert "worker" in cli("keys", "show", *mine).out
    assert cli("keys", "revoke", "friend", *mine).code == 0
    assert cli("keys", "show", *mine, "--json").data["authorized"] == {}


@pytest.mark.parametrize("start", ["-N", "--", "-h"])
def test_keys_that_look_like_options_are_keys(cli: Cli, tmp_path: Path, start: str) -> None:
    key = start + "a=" + 36 * "b"
    mine = ("--keys", tmp_path / "mine")
    assert cli("keys", "allow", *mine, "friend", key).code == 0
    assert cli("keys", "trust", "tcp://edge.local:5555", key, *mine).code == 0
    shown = cli("keys", "show", *mine, "--json").data
    assert shown["authorized"] == {"friend": key}
    assert shown["known_servers"] == {"tcp://edge.local:5555": key}
    assert "unexpected" in cli("keys", "trust", "tcp://edge.local:5555", key, "--keyz", *mine).error


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("devices",), "generic-phone-cpu"),
        (("zoo", "list"), "light-squeezenet"),
        (("keys", "show"), "public key"),
    ],
)
def test_tables(cli: Cli, arguments: tuple[str, ...], shown: str) -> None:
    done = cli(*arguments)
    assert done.code == 0
    assert shown in done.out
    assert done.err == ""


def test_tables_of_a_bundle(cli: Cli, small_model: Path) -> None:
    built = cli("build", small_model, "--tiers", "phone,edge,cloud", "-o", "x.flagsplit")
    assert "all-cloud" in built.out
    assert "modelled" in built.out
    inspected = cli("inspect", "x.flagsplit")
    assert "planned for" in inspected.out
    ran = cli("run", "x.flagsplit", "--tier", "edge=tcp://127.0.0.1:1", "--check")
    assert ran.code == 0
    assert "measured on this host" in ran.out
    assert "largest difference 0," in ran.out
