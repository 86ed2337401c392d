"""Schedules on made-up time: what happens when, the same for the same seed; and every wrong script a clear line."""

import dataclasses
import itertools
import json
import re
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.emulation.live import check_line

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation import (
    AnyEvent,
    BringUp,
    Corrupt,
    CutAfter,
    Drop,
    HalfClose,
    Heal,
    LinkShape,
    Partition,
    Profile,
    Reset,
    Resume,
    Script,
    SetShapes,
    Shape,
    Stall,
    Step,
    TakeDown,
    load_script,
    merged,
    parse_script,
)

ALL = Script(
    (
        Profile(0, name="lte"),
        Shape(1, link="2mbit/200ms/40ms/2%"),
        Stall(2, way="up", for_s=0.5),
        Stall(3),
        Resume(4),
        Partition(5, for_s=1),
        Partition(7),
        Heal(8),
        TakeDown(9, for_s=1),
        TakeDown(11),
        BringUp(12),
        Drop(13, percent=30, for_s=1),
        Reset(15),
        HalfClose(16, way="down"),
        CutAfter(17, way="up", bytes=1000),
        Corrupt(18, way="down", byte=17),
    )
)


def test_every_kind_is_among_the_examples() -> None:
    assert {type(event) for event in ALL.events} == set(typing.get_args(AnyEvent))


def test_steps() -> None:
    steps = list(ALL.steps())
    assert [step.event for step in steps if step.event in ALL.events] == list(ALL.events)
    ends = [step for step in steps if step.event not in ALL.events]
    assert ends == [
        Step(2.5, Resume(2.5, way="up")),
        Step(6, Heal(6)),
        Step(10, BringUp(10)),
        Step(14, Drop(14, percent=0)),
    ]
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)


def test_json_and_python_are_the_same() -> None:
    plain = {"version": 1, "events": [dataclasses.asdict(event) for event in ALL.events]}
    assert parse_script(json.dumps(plain)) == ALL
    script = parse_script('{"version": 1, "loop_s": 9, "events": [{"at_s": 2, "do": "stall", "for_s": 1}]}')
    assert script == Script((Stall(2.0, for_s=1.0),), 9.0)


def test_events_at_one_time_keep_their_order() -> None:
    events: tuple[AnyEvent, ...] = (Heal(1), Partition(1), Reset(0), Heal(1))
    assert [step.event for step in Script(events).steps()] == [Reset(0), Heal(1), Partition(1), Heal(1)]


def test_rounds() -> None:
    script = Script((Reset(1, spread_s=1), Stall(3, for_s=0.5)), loop_s=4)
    steps = list(itertools.islice(script.steps(5), 300))
    assert [step.at_s for step in steps[1::3]] == [4 * number + 3 for number in range(100)]
    late = [step.at_s - 4 * number - 1 for number, step in enumerate(steps[::3])]
    assert 0 <= min(late) < 0.1 < 0.9 < max(late) <= 1
    assert list(Script((), loop_s=4).steps()) == []


times = st.floats(0, 1000)
spans = st.none() | st.floats(0.001, 100)
ways = st.sampled_from(["up", "down", "both"])
events = st.one_of(
    st.builds(Reset, times, spread_s=times),
    st.builds(Stall, times, spread_s=times, for_s=spans, way=ways),
    st.builds(Partition, times, spread_s=times, for_s=spans),
    st.builds(Drop, times, spread_s=times, for_s=spans, percent=st.floats(0, 100)),
    st.builds(Corrupt, times, way=ways, byte=st.integers(0, 1 << 50)),
    st.builds(Shape, times, link=st.sampled_from(["lte", "1mbit/1ms"])),
)
scripts = st.builds(Script, st.lists(events, max_size=8).map(tuple))


@settings(deadline=None)
@given(scripts, st.integers(0, 3))
def test_schedules(script: Script, seed: int) -> None:
    """In the order of time, within their spreads, each with its end, and the same for the same seed."""
    steps = list(script.steps(seed))
    assert steps == list(script.steps(seed))
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    for event in script.events:
        (first, *_) = [step for step in steps if step.event is event]
        assert event.at_s <= first.at_s <= event.at_s + event.spread_s
    assert len(steps) == len(script.events) + sum(getattr(each, "for_s", None) is not None for each in script.events)


def test_seeds_differ() -> None:
    script = Script((Reset(1, spread_s=1),))
    assert [list(script.steps(seed)) for seed in (1, 2)] != [list(script.steps(1))] * 2


@settings(deadline=None)
@given(st.lists(scripts, max_size=3))
def test_merging(parts: list[Script]) -> None:
    steps = list(merged([script.steps(0) for script in parts]))
    assert sorted(steps, key=lambda step: step.at_s) == steps
    assert len(steps) == sum(len(list(script.steps(0))) for script in parts)


def test_merging_takes_schedules_without_end() -> None:
    trace = (Step(float(index), SetShapes(LinkShape(1), LinkShape(1))) for index in itertools.count())
    steps = merged([trace, Script((Reset(1.5),)).steps()])
    assert [step.at_s for step in itertools.islice(steps, 4)] == [0, 1, 1.5, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 1', "expected JSON"),
        ("[]", "Input should be an object"),
        ('{"version": 2, "events": []}', "version: Input should be less than or equal to 1, came 2"),
        ('{"version": 1, "events": [], "evnts": []}', "evnts: Unexpected keyword argument"),
        ('{"version": 1, "events": [{"at_s": 1}]}', "events.0: Unable to extract tag using discriminator 'do'"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "rest"}]}', "events.0: Input tag 'rest' found"),
        ('{"version": 1, "events": [{"at_s": "1", "do": "reset"}]}', "should be a valid number, came '1'"),
        ('{"version": 1, "events": [{"at_s": NaN, "do": "reset"}]}', "should be a finite number, came nan"),
        ('{"version": 1, "events": [{"at_s": -1, "do": "reset"}]}', "greater than or equal to 0, came -1"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "reset", "way": "up"}]}', "events.0.reset.way: Unexpected"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "half_close", "way": "in"}]}', "'up', 'down' or 'both', came"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "corrupt", "way": "up"}]}', "events.0.corrupt.byte: Field"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "shape", "link": "x"}]}', "link 'x': expected BW/RTT"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "profile", "name": "3g"}]}', "one of wifi, lte, 5g, bad"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "drop", "percent": 101}]}', "less than or equal to 100"),
        ('{"version": 1, "loop_s": 1, "events": [{"at_s": 2, "do": "reset"}]}', "over within loop_s, 1 s, came 2 s"),
        ('{"version": 1, "loop_s": 0, "events": []}', "loop_s: Input should be greater than or equal to 0.01"),
        ('{"version": 1, "events": [{"at_s": 1, "do": "' + 100_000 * "x" + '"}]}', "events.0: Input tag 'xxx"),
        ("[" * 100_000, "expected JSON"),
        (" " * (5 << 20), "at most 4194304 bytes"),
    ],
)
def test_wrong_scripts(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^some\.json: ") as raised:
        parse_script(text, "some.json")
    assert said in str(raised.value)
    check_line(str(raised.value))
    assert len(str(raised.value)) < 500


def test_too_many_events() -> None:
    with pytest.raises(ConfigError, match="at most 10000 items"):
        parse_script(json.dumps({"version": 1, "events": [{"at_s": 1, "do": "reset"}] * 10_001}))


def test_wrong_events_in_python() -> None:
    wrong: list[typing.Any] = [Reset(-1), Drop(1, percent=float("nan")), Shape(1, link="no"), "reset"]
    for event in wrong:
        with pytest.raises(ConfigError, match=r"events\.0"):
            Script((event,))


plain = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
kinds = st.sampled_from([event.do for event in ALL.events])
names = st.sampled_from(["at_s", "spread_s", "for_s", "way", "link", "name", "percent", "bytes", "byte"])
nearly = st.dictionaries(names, plain, max_size=4).flatmap(
    lambda fields: kinds.map(lambda kind: {"at_s": 1, **fields, "do": kind})
)


@settings(deadline=None)
@given(
    st.binary(max_size=50)
    | st.text(max_size=50)
    | plain.map(json.dumps)
    | st.lists(nearly, max_size=3).map(lambda events: json.dumps({"version": 1, "events": events}))
)
def test_any_text_is_a_script_or_one_line(data: str | bytes) -> None:
    try:
        script = parse_script(data)
    except ConfigError as error:
        check_line(str(error))
        return
    assert list(script.steps(1)) == list(script.steps(1))


def test_the_documented_script() -> None:
    page = (Path(__file__).parents[3] / "docs" / "emulation.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert len(parse_script(block).events) == 5


def test_files(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text('{"version": 1, "events": [{"at_s": 2, "do": "reset"}]}')
    assert load_script(tmp_path / "script.json") == Script((Reset(2),))
    with pytest.raises(ConfigError, match=r"^cannot read the script .*none: No such file"):
        load_script(tmp_path / "none")
