"""Data that went wrong: whatever is in an SLA, a catalogue, a link or a profile, the answer is one line or a result."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagsplit.errors import FlagsplitError
from flagsplit.splitter import devices as devices_module
from flagsplit.splitter.devices import Catalogue, load_catalogue
from flagsplit.splitter.links import parse_link, parse_what_if
from flagsplit.splitter.problem import make_problem
from flagsplit.splitter.profiles import load_profile
from flagsplit.splitter.sla import SLA, parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line

_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 24, 3.5, -0.0, 1e308, 1e-308, 5e-324, -1e308, 10**30, 10**400, 1e999, -1e999),
    *(float("nan"), "", "x", "phone", "cloud", "fog", "inputs", "NaN", "1e5", "[", "*", "a\nb", "\x00", "\ud800", "é"),
    *([], [[]], ["phone"], [None], {}, {"": 1}, {"phone": "cloud"}, {"a\nb": {"c": []}}, {"value": 1, "unit": "s"}),
]

_FULL: dict[str, Any] = {
    "objective": {"goal": "latency", "latency": 1.0, "price": 0.5, "energy": 0.1, "carbon": 0.01},
    "bounds": {
        "latency_ms": 1e4,
        "energy_mj": 1e5,
        "price_per_1k_usd": 10.0,
        "carbon_per_1k_g": 1e4,
        "cold_start_ms": 5e3,
    },
    "requests_per_s": 0.1,
    "memory_mb": {"phone": 4000.0},
    "power_w": {"phone": 5.0},
    "keep_on": {"inputs": "phone"},
    "min_blocks_deep": 1,
    "accuracy": {"every_cut": {"codecs": ["fp16"], "min_snr_db": 20}, "cuts": {"conv*": {"min_snr_db": 30}}},
    "pins": {"fc": "cloud"},
    "mode": "prefer_on_device",
    "forbid_tiers": [],
    "forbid_vendors": ["Acme"],
    "forbid_targets": [],
    "use_tiers": ["phone"],
    "prefer_tiers": ["cloud"],
    "prefer_vendors": [],
    "prefer_targets": [],
    "prefer_within": 0.2,
    "energy_scope": "first",
}


def _places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in inner for place in _places(value, (*at, key)))]


def _mutated(rng: random.Random, data: Any) -> Any:
    """The data with one to three places replaced, dropped, renamed or copied over one another."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = rng.choice(_places(data))
        if not place:
            if rng.random() < 0.02:
                return rng.choice(_ODD)
            continue
        *way, last = place
        holder = data
        for key in way:
            holder = holder[key]
        action = rng.randrange(6)
        if action == 0:
            del holder[last]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "extends", "version", "value", "a\nb", str(last).upper()])] = holder[last]
        elif action == 2:
            other = rng.choice(_places(data))
            value: Any = data
            for key in other:
                value = value[key]
            holder[last] = copy.deepcopy(value)
        else:
            holder[last] = rng.choice(_ODD)
    return data


def _tried(count: int, attempt: Callable[[int], object]) -> tuple[int, int]:
    """How many attempts passed, and how many were refused in one line that can be printed."""
    passed = refused = 0
    for seed in range(count):
        try:
            attempt(seed)
        except FlagsplitError as error:
            message = str(error)
            assert message, seed
            assert "\n" not in message, (seed, message)
            assert len(message) < 3000, (seed, message[:200])
            message.encode()
            refused += 1
        else:
            passed += 1
    return passed, refused


@pytest.mark.slow
def test_slas(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", "t4", links=["wifi"], catalogue=catalogue)
    graph = cnn(1, 2)

    def attempt(seed: int) -> None:
        sla = parse_sla(json.dumps(_mutated(random.Random(seed), _FULL)), "fuzz.json")
        assert isinstance(sla, SLA)
        make_problem(graph, tiers, links, sla)

    passed, refused = _tried(1200, attempt)
    assert min(passed, refused) >= 100


@pytest.mark.slow
def test_what_is_accepted_is_solved(catalogue: Catalogue) -> None:
    """Extreme figures that pass as an SLA end in a plan or in one line."""
    tiers, links = line("pixel8", "t4", links=["wifi"], catalogue=catalogue)
    graph = cnn(1, 2)
    extremes = [1e-300, 1e-12, 1e-9, 1.0, 1e9, 1e15, 1e300]

    def attempt(seed: int) -> None:
        rng = random.Random(seed)
        data = {key: value for key, value in copy.deepcopy(_FULL).items() if rng.random() < 0.5 or key == "objective"}
        if "requests_per_s" not in data:
            data.pop("power_w", None)
        data["objective"]["goal"] = rng.choice(["latency", "throughput"])
        for place in rng.sample(_places(data), 4):
            holder: Any = data
            for key in place[:-1]:
                holder = holder[key]
            if place and isinstance(holder[place[-1]], float):
                holder[place[-1]] = rng.choice(extremes)
        problem = make_problem(graph, tiers, links, parse_sla(data))
        solution = solve(problem, milp_seconds=1.0)
        assert solution.bound <= solution.objective

    passed, refused = _tried(70, attempt)
    assert min(passed, refused) >= 10


@pytest.mark.slow
def test_catalogues(tmp_path: Path) -> None:
    data = devices_module._DATA
    devices = json.loads((data / "devices.json").read_text())["devices"]
    links = json.loads((data / "links.json").read_text())["links"]
    regions = json.loads((data / "regions.json").read_text())["regions"]
    small = {
        "version": 1,
        "devices": {"pixel8": devices["pixel8"], "mine": {"extends": "t4", "title": "Mine"}},
        "links": {"lte": links["lte"]},
        "regions": {"DEU": {**regions["DEU"], "hourly": [1.0] * 24}},
    }
    path = tmp_path / "mine.json"

    def attempt(seed: int) -> None:
        path.write_text(json.dumps(_mutated(random.Random(seed), small)))
        loaded = load_catalogue([path])
        for region in loaded.regions.values():
            assert region.grams_per_kwh(23) >= 0

    passed, refused = _tried(500, attempt)
    assert min(passed, refused) >= 50


def test_links(catalogue: Catalogue) -> None:
    seeds = ["20mbit:100mbit/30ms/0.5%:1%@lte", "wifi", "100mbit/5ms", "1gbit/100us/2%"]
    alphabet = "0123456789.:/%@kmgbitus-_ \n\te\u0661é\x00"

    def attempt(seed: int) -> None:
        rng = random.Random(seed)
        text = list(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.choice([0, 1, 1, 5])] = rng.choice([*alphabet, "", "9" * 400, "0." + "0" * 330 + "1"])
        link = parse_link("".join(text), catalogue.links)
        assert link.up_s_per_byte > 0
        assert link.down_s_per_byte > 0
        parse_what_if("".join(text), link, catalogue.links)

    passed, refused = _tried(1500, attempt)
    assert min(passed, refused) >= 50


@pytest.mark.slow
def test_profiles(tmp_path: Path) -> None:
    block = {"name": "conv", "seconds": 0.1, "added_s": 0.09, "spread": 0.1, "runs": 5, "features": {"flops": 1.0}}
    profile = {
        "version": 1,
        "basis": "measured",
        "device": "pixel8",
        "host": "here",
        "target": "ort",
        "target_version": "1",
        "threads": 1,
        "numerics": "exact",
        "date": "2026-01-01",
        "run_s": 1e-4,
        "boundary_s_per_byte": 1e-10,
        "blocks": {"0" * 32: block},
    }
    path = tmp_path / "profile.json"

    def attempt(seed: int) -> None:
        path.write_text(json.dumps(_mutated(random.Random(seed), profile)))
        load_profile(path)

    passed, refused = _tried(500, attempt)
    assert min(passed, refused) >= 20
