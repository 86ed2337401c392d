"""Profile files: what was written is read back, and every misuse is one line that names file and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagsplit.errors import ConfigError, PolicyError
from flagsplit.splitter.profiles import Profile, load_profile, merge_profiles, save_profile

SIGNATURE = "0123456789abcdef" * 2


def data() -> dict[str, Any]:
    block = {
        "name": "conv1",
        "seconds": 2e-3,
        "added_s": 1.9e-3,
        "spread": 0.02,
        "runs": 30,
        "features": {"conv.Conv": 1e6, "nodes": 2},
    }
    return {
        "version": 1,
        "basis": "measured",
        "device": "generic-edge-cpu",
        "host": "x86_64, Linux",
        "target": "ort",
        "target_version": "1.32.0",
        "threads": 1,
        "numerics": "exact",
        "date": "2026-01-31",
        "run_s": 2e-5,
        "boundary_s_per_byte": 0.0,
        "blocks": {SIGNATURE: block},
    }


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_round_trip(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path / "a.json", data()))
    save_profile(profile, tmp_path / "b.json")
    assert load_profile(tmp_path / "b.json") == profile
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def _block(change: dict[str, object]) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["blocks"][SIGNATURE].update(change)


MISUSES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("version", lambda d: d.update(version=2), 'expected a profile with "version": 1, came 2'),
    ("unknown field", lambda d: d.update(speed=9), "speed: Extra inputs are not permitted"),
    ("missing field", lambda d: d.pop("target"), "target: Field required"),
    ("negative overhead", lambda d: d.update(run_s=-1e-6), "run_s: .*greater than or equal to 0"),
    ("infinite overhead", lambda d: d.update(boundary_s_per_byte=float("inf")), "boundary_s_per_byte: .*finite"),
    ("no blocks", lambda d: d.update(blocks={}), "blocks: .*at least 1"),
    ("threads of text", lambda d: d.update(threads="1"), "threads: .*integer"),
    ("other numerics", lambda d: d.update(numerics="sloppy"), "numerics: .*'exact' or 'fast'"),
    ("date", lambda d: d.update(date="yesterday"), "date: "),
    ("signature", lambda d: d.update(blocks={"conv1": d["blocks"][SIGNATURE]}), "blocks.conv1"),
    ("zero seconds", _block({"seconds": 0}), f"blocks.{SIGNATURE}.seconds: .*greater than 0"),
    ("negative seconds", _block({"added_s": -1.0}), f"blocks.{SIGNATURE}.added_s: .*greater than 0"),
    ("NaN seconds", _block({"seconds": float("nan")}), f"blocks.{SIGNATURE}.seconds: .*finite"),
    ("NaN feature", _block({"features": {"rows": float("nan")}}), f"blocks.{SIGNATURE}.features.rows: .*finite"),
    ("no runs", _block({"runs": 0}), f"blocks.{SIGNATURE}.runs: .*greater than or equal to 1"),
]


@pytest.mark.parametrize(("change", "says"), [each[1:] for each in MISUSES], ids=[each[0] for each in MISUSES])
def test_misuse_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    document = data()
    change(document)
    path = write(tmp_path / "p.json", document)
    with pytest.raises(PolicyError, match=says) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(PolicyError, match="cannot be read"):
        load_profile(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(PolicyError, match="expected a profile in JSON"):
        load_profile(path)
    path.write_text("[" * 100_000)
    with pytest.raises(PolicyError, match="expected a profile in JSON"):
        load_profile(path)
    with pytest.raises(PolicyError, match="came 'list'"):
        load_profile(write(path, []))
    with pytest.raises(ConfigError, match="cannot write"):
        save_profile(Profile.model_validate(data()), tmp_path / "none" / "p.json")


def test_merge_takes_the_faster_time() -> None:
    slow, fast = data(), data()
    fast["blocks"][SIGNATURE]["added_s"] = 1e-3
    fast["run_s"] = 4e-5
    profiles = [Profile.model_validate(each) for each in (slow, fast, slow)]
    merged = merge_profiles(profiles)
    assert merged.blocks[SIGNATURE].added_s == 1e-3
    assert merged.run_s == 2e-5


def test_merge_refuses_other_conditions() -> None:
    other = Profile.model_validate({**data(), "threads": 4})
    with pytest.raises(PolicyError, match="threads: expected the same in all, came 1 and 4"):
        merge_profiles([Profile.model_validate(data()), other])
    with pytest.raises(PolicyError, match="at least one"):
        merge_profiles([])
