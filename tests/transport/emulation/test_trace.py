"""Traces of bandwidth: files of both forms, what they say at a time, and the generator."""

import itertools
import math
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.emulation.live import check_line

from flagsplit.errors import ConfigError
from flagsplit.transport.emulation import (
    LinkShape,
    Trace,
    TracePoint,
    load_trace,
    lte_like,
    parse_trace,
    shapes_at,
    steps_of_trace,
)

CSV = b"seconds,mbit\n0,8\n1,80\n3,0\n"


def test_csv() -> None:
    trace = parse_trace(CSV)
    assert trace.points == (TracePoint(0, 1e6, 1e6), TracePoint(1, 1e7, 1e7), TracePoint(3, 0, 0))
    assert trace.length_s == 5
    assert [trace.at(t).up_bytes_per_s for t in (0, 0.99, 1, 2.9, 3, 4.99, 5, 6, 10.5)] == [
        *(1e6, 1e6, 1e7, 1e7, 0, 0),
        *(1e6, 1e7, 1e6),
    ]


def test_csv_with_directions_and_round_trips_in_any_order() -> None:
    trace = parse_trace(b"rtt_ms, up_mbit ,seconds,down_mbit\r\n40,8,10,16\r\n60,0.8,12.5,1.6\r\n")
    assert trace.points == (TracePoint(0, 1e6, 2e6, 0.04), TracePoint(2.5, 1e5, 2e5, 0.06))
    assert trace.length_s == 5


def test_mahimahi() -> None:
    """Twelve packets in the first tenth of a second, none in the second, six in the last half of one."""
    times = [0, 1, *range(10, 101, 10), *[250] * 6]
    trace = parse_trace("\n".join(map(str, times)).encode())
    assert trace.length_s == 0.25
    assert [(point.at_s, point.up_bytes_per_s) for point in trace.points] == [(0, 180_000), (0.1, 0), (0.2, 180_000)]
    assert trace.mean_bytes_per_s(0, 0.25) * 0.25 == pytest.approx(1500 * len(times))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=12),
    st.floats(0, 50),
    st.floats(0.01, 50),
)
def test_means_against_a_sum(rows: list[tuple[float, float, float]], start_s: float, span_s: float) -> None:
    starts = list(itertools.accumulate((row[0] for row in rows), initial=0.0))
    trace = Trace(tuple(TracePoint(at, up, down) for at, (_, up, down) in zip(starts, rows, strict=False)), starts[-1])
    bounds = {start_s, start_s + span_s}
    for number in range(math.floor((start_s + span_s) / trace.length_s) + 1):
        bounds |= {number * trace.length_s + at for at in starts if start_s < number * trace.length_s + at}
    times = sorted(time_s for time_s in bounds if time_s <= start_s + span_s)
    for is_up in (True, False):
        total = sum(
            (b - a) * (point.up_bytes_per_s if is_up else point.down_bytes_per_s)
            for a, b in itertools.pairwise(times)
            for point in [trace.at((a + b) / 2)]
        )
        mean = trace.mean_bytes_per_s(start_s, start_s + span_s, up=is_up)
        assert mean * span_s == pytest.approx(total, rel=1e-6, abs=1e-6)


def test_steps_repeat_the_trace() -> None:
    trace = parse_trace(b"seconds,mbit,rtt_ms\n0,8,20\n1,0.001,20\n")
    steps = list(itertools.islice(steps_of_trace(trace, LinkShape(1, 0.5, 0.001, 0.01)), 4))
    assert [step.at_s for step in steps] == [0, 1, 2, 3]
    assert steps[0].event == steps[2].event
    assert shapes_at(trace.points[0])[0] == LinkShape(1e6, 0.01)
    assert shapes_at(trace.points[0], LinkShape(1, 0.5, 0.001, 0.01))[0] == LinkShape(1e6, 0.01, 0.001, 0.01)
    assert shapes_at(trace.points[1])[0] == LinkShape(0.0, 0.01)


def test_lte_like() -> None:
    trace = lte_like(3, 600)
    assert trace.points == lte_like(3, 600).points
    assert trace.points != lte_like(4, 600).points
    assert (len(trace.points), trace.length_s) == (6000, 600)
    rates = [point.up_bytes_per_s * 8e-6 for point in trace.points]
    assert 1 <= min(rates) < 2
    assert 40 < max(rates) <= 60
    assert 8 < statistics.median(rates) < 22
    faded = [point.rtt_s == 0.12 for point in trace.points]
    assert 0.02 < statistics.mean(faded) < 0.09
    assert 10 < sum(now and not before for before, now in itertools.pairwise(faded)) < 60
    changes = [abs(math.log(b / a)) for a, b in itertools.pairwise(rates)]
    assert statistics.median(changes) < 0.2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected CSV with the header seconds,mbit"),
        (b"\xff\xfe", "came bytes that are no ASCII text"),
        (b"time,mbit\n0,1\n", "came 'time,mbit'"),
        (b"seconds,mbit,mbit\n0,1,1\n", "came 'seconds,mbit,mbit'"),
        (b"seconds,mbit\n", "expected 1 to 1000000 rows below the header, came 0"),
        (b"seconds,mbit\n0,1\n0,1\n", "line 3: expected seconds above 0, came 0"),
        (b"seconds,mbit\n0\n", "line 2: expected 2 figures, came '0'"),
        (b"seconds,mbit\n0,1,2\n", "line 2: expected 2 figures, came '0,1,2'"),
        (b"seconds,mbit\n0,nan\n", "line 2: expected mbit as a number such as 12.5, came 'nan'"),
        (b"seconds,mbit\n0,-1\n", "line 2: expected mbit as a number such as 12.5, came '-1'"),
        (b"seconds,mbit\n0,9999999\n", "line 2: expected mbit up to 1e+06, came 9999999"),
        (b"1\n0\n", "line 2: expected milliseconds from 1 on, came 0"),
        (b"1\n\n2\n", "line 2: expected whole milliseconds up to 100000000, came ''"),
        (b"1\n2.5\n", "line 2: expected whole milliseconds up to 100000000, came '2.5'"),
        (b"100000001\n", "line 1: expected whole milliseconds up to 100000000"),
        (b"0\n0\n", "expected a last line above 0"),
    ],
)
def test_wrong_files(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^some\.csv: ") as raised:
        parse_trace(data, "some.csv")
    assert said in str(raised.value)


@pytest.mark.slow
def test_limits_come_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 4000000 lines, came 4000001"):
        parse_trace(b"\n" * 4_000_001)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="at most 33554432 bytes"):
        load_trace(tmp_path / "large")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes(CSV)
    assert load_trace(tmp_path / "trace.csv").points == parse_trace(CSV).points
    with pytest.raises(ConfigError, match=r"^cannot read the trace .*none: No such file"):
        load_trace(tmp_path / "none")


@settings(deadline=None)
@given(
    st.binary(max_size=100)
    | st.text("0123456789,.\n\r -e", max_size=100).map(str.encode)
    | st.text("0123456789,.\n", max_size=100).map(lambda text: b"seconds,mbit\n" + text.encode())
    | st.lists(st.integers(0, 10**9), max_size=20).map(lambda times: "\n".join(map(str, sorted(times))).encode())
)
def test_any_bytes_are_a_trace_or_one_line(data: bytes) -> None:
    try:
        trace = parse_trace(data)
    except ConfigError as error:
        check_line(str(error))
        return
    assert trace.length_s > 0
    assert trace.at(random.Random(0).uniform(0, 1e6)) in trace.points
    assert list(itertools.islice(steps_of_trace(trace), 5))


@pytest.mark.parametrize(
    ("points", "length_s"),
    [
        ((), 1.0),
        ((TracePoint(1, 1, 1),), 2.0),
        ((TracePoint(0, 1, 1),), 0.0),
        ((TracePoint(0, 1, 1),), math.inf),
        ((TracePoint(0, 1, 1),), math.nan),
        ((TracePoint(0, -1, 1),), 1.0),
        ((TracePoint(0, 1, math.inf),), 1.0),
        ((TracePoint(0, 1, 1, math.nan),), 1.0),
    ],
)
def test_wrong_traces(points: tuple[TracePoint, ...], length_s: float) -> None:
    with pytest.raises(ConfigError, match=r"^expected"):
        Trace(points, length_s)


@pytest.mark.parametrize(("seconds", "step_s"), [(0, 0.1), (math.nan, 0.1), (1e9, 0.1), (1, 0), (1, math.inf)])
def test_wrong_generated_traces(seconds: float, step_s: float) -> None:
    with pytest.raises(ConfigError, match=r"^expected a trace of 1 to"):
        lte_like(0, seconds, step_s=step_s)
