"""Trace contexts, the placement of runs between two moments, and the bytes of OTLP and Chrome traces."""

import itertools
import json
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.telemetry.test_histories_watched import check_tree

from flagsplit.errors import ConfigError, InputError
from flagsplit.runtime.events import Deliver, Send, Submit
from flagsplit.runtime.report import Report
from flagsplit.runtime.telemetry import otlp
from flagsplit.runtime.telemetry.chrome import chrome_trace
from flagsplit.runtime.telemetry.placement import place
from flagsplit.runtime.telemetry.session_spans import SessionSpans
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.trace_file import TraceFile
from flagsplit.runtime.telemetry.tracing import Span, TraceContext, context_of, outgoing_traceparent, parse_traceparent
from flagsplit.runtime.telemetry.worker_spans import WorkerSpans
from flagsplit.transport.channel import Received
from flagsplit.transport.message_fields import UINT53
from flagsplit.transport.messages import Failed, Hop, HopTiming, Open, decode, encode

SID = "a" * 32
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SESSION = About("session", "phone", ("phone", "edge"), (), "d" * 64, SID)
WORKER = About("worker", "edge", ("phone", "edge"), (), "d" * 64, "b" * 32)


def test_traceparents() -> None:
    """The examples of the W3C recommendation, and what it forbids."""
    assert parse_traceparent(GIVEN) == TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)
    assert not parse_traceparent(GIVEN[:-2] + "00").sampled
    assert parse_traceparent("cc" + GIVEN[2:-2] + "09-what-the-future-will-be-like").sampled
    wrong = [
        "",
        "ff" + GIVEN[2:],
        GIVEN + "-more",
        GIVEN.upper(),
        GIVEN[:-1],
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        GIVEN + "\n",
    ]
    for text in wrong:
        with pytest.raises(InputError, match="expected a traceparent"):
            parse_traceparent(text)


@given(st.text(max_size=60), st.integers(0, UINT53))
def test_outgoing_traceparents_can_be_sent_and_read(text: str, rid: int) -> None:
    for given_text in (text, GIVEN):
        out = outgoing_traceparent(given_text, SID, rid)
        again = parse_traceparent(out)
        assert again.trace_id == context_of(given_text, SID, rid).trace_id
        assert outgoing_traceparent(given_text, SID, rid) == out
        opened = Open(SID, rid, 1, 0, "p", 0, (Hop("phone"),), (), 1, traceparent=out)
        assert decode(encode(opened)) == opened
    assert parse_traceparent(outgoing_traceparent(GIVEN, SID, rid)).trace_id == GIVEN[3:35]


timings = st.builds(
    HopTiming,
    st.just("edge"),
    st.just("m"),
    st.integers(0, 10_000_000),
    st.integers(0, 10_000_000),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
)


@given(st.floats(0, 1e6), st.floats(0, 100), st.lists(timings, min_size=1, max_size=15))
def test_placement_fills_the_time_between(start_s: float, lasts_s: float, hops: list[HopTiming]) -> None:
    placed = place(start_s, start_s + lasts_s, hops)
    assert len(placed) == 3 * len(hops) + 1
    assert placed[0].start_s == start_s
    assert placed[-1].end_s == pytest.approx(start_s + lasts_s, abs=1e-6)
    for before, after in itertools.pairwise(placed):
        assert before.start_s <= before.end_s + 1e-12
        assert before.end_s == pytest.approx(after.start_s, abs=1e-9)
    busy_s = sum(hop.wait_us + hop.run_us for hop in hops) / 1e6
    if busy_s < lasts_s:
        runs_s = [part.end_s - part.start_s for part in placed if part.what == "run"]
        assert runs_s == pytest.approx([hop.run_us / 1e6 for hop in hops], abs=1e-6)


def test_links_are_placed_by_their_bytes() -> None:
    hops = [HopTiming("edge", "m", 0, 0, 99 * 1024, 0), HopTiming("cloud", "n", 0, 0, 0, 0)]
    links = [part.end_s - part.start_s for part in place(0.0, 1.02, hops) if part.what == "link"]
    assert links == pytest.approx([1.0, 0.01, 0.01])


def opened(hop: int, *trace: HopTiming, traceparent: str = "") -> Open:
    route = (Hop("phone", "s"), Hop("edge", "m"), Hop("phone", "h"))
    return Open(SID, 1, 1, 0, "p", hop, route, (), 1000, trace, traceparent=traceparent)


class Submitted(Submit):
    """A request whose caller gave a traceparent."""

    traceparent = GIVEN


def one_request(traceparent: str = "") -> tuple[list[Span], list[Span]]:
    """The spans that a session and a worker make of one request."""
    session: list[Span] = []
    worker: list[Span] = []
    here, there = SessionSpans(SESSION, session.extend), WorkerSpans(WORKER, worker.extend)
    asked = Submit(1, {}, 99.0, traceparent=traceparent)
    out = outgoing_traceparent(traceparent, SID, 1)
    stem, middle = HopTiming("phone", "s", 0, 200_000, 0, 10), HopTiming("edge", "m", 50_000, 300_000, 10, 20, 3)
    here.event(asked, 10.0)
    here.instruction(Send("edge", opened(1, stem, traceparent=out)), 10.25)
    there.event(Received("in:1", opened(1, stem, traceparent=out)), 510.0)
    there.instruction(Send("in:1", opened(2, stem, middle, traceparent=out)), 510.4)
    here.event(Received("edge", opened(2, stem, middle, traceparent=out)), 11.0)
    here.instruction(Deliver(1, {}, Report("p", 1, 1100.0, (), ())), 11.1)
    return session, worker


def test_a_worker_fits_under_its_session() -> None:
    session, worker = one_request()
    check_tree(session)
    check_tree(worker)
    by_name = {span.name: span for span in session}
    assert list(by_name)[:2] == ["request", "attempt 1"]
    assert by_name["request"].parent_id == ""
    assert worker[0].parent_id == by_name["edge m"].span_id
    assert worker[0].trace_id == by_name["request"].trace_id
    assert [span.name for span in worker] == ["serve m", "wait", "run"]
    assert worker[2].end_ns - worker[2].start_ns == pytest.approx(300e6, abs=1e3)
    run = by_name["run"]
    assert run.end_ns - run.start_ns == pytest.approx(300e6, abs=1e3)
    assert by_name["edge m"].attributes["flagsplit.batch"] == 3


def test_a_callers_trace_goes_on() -> None:
    session, worker = one_request(GIVEN)
    assert {span.trace_id for span in (*session, *worker)} == {GIVEN[3:35]}
    assert session[0].parent_id == GIVEN[36:52]
    assert worker[0].parent_id in {span.span_id for span in session}


def test_what_is_not_sampled_is_not_recorded() -> None:
    found: list[Span] = []
    there = WorkerSpans(WORKER, found.extend)
    out = outgoing_traceparent(GIVEN[:-2] + "00", SID, 1)
    there.event(Received("in:1", opened(1, traceparent=out)), 1.0)
    there.instruction(Send("in:1", opened(2, HopTiming("edge", "m", 1, 1, 1, 1), traceparent=out)), 2.0)
    assert not found


def test_a_failed_hop() -> None:
    found: list[Span] = []
    there = WorkerSpans(WORKER, found.extend)
    there.event(Received("in:1", opened(1)), 1.0)
    there.instruction(Send("in:1", Failed(SID, 1, 1, "edge", "compute", "no zero please")), 2.0)
    (span,) = found
    assert span.error == "compute: no zero please"


def check_otlp(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The structure that the OTLP specification asks of TracesData in JSON; gives the spans."""
    assert list(data) == ["resourceSpans"]
    spans = []
    for each in data["resourceSpans"]:
        assert set(each) == {"resource", "scopeSpans"}
        check_attributes(each["resource"]["attributes"])
        for scope in each["scopeSpans"]:
            assert set(scope["scope"]) == {"name", "version"}
            spans += scope["spans"]
    for span in spans:
        assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert re.fullmatch("[0-9a-f]{16}", span.get("parentSpanId", "0" * 16))
        assert span["kind"] in range(6)
        assert all(re.fullmatch("[0-9]{19}", span[key]) for key in ("startTimeUnixNano", "endTimeUnixNano"))
        assert set(span["status"]) <= {"code", "message"}
        check_attributes(span["attributes"])
    return spans


def check_attributes(attributes: list[dict[str, Any]]) -> None:
    kinds: dict[str, type] = {"stringValue": str, "intValue": str, "doubleValue": float, "boolValue": bool}
    for each in attributes:
        assert set(each) == {"key", "value"}
        ((kind, value),) = each["value"].items()
        assert isinstance(value, kinds[kind])


def test_files(tmp_path: Path) -> None:
    session, worker = one_request()
    made = (Span("x\n", "1" * 32, "2" * 16, "", 10**18, 10**18 + 5, 1, {"a": 1.5, "b": True, "c": "d\n"}, "no\n"),)
    for name, about, groups in (("s", SESSION, [session, made]), ("w", WORKER, [worker])):
        file = TraceFile(tmp_path / name, about)
        for group in groups:
            file.write(group)
        file.close()
        file.close()
    lines = (tmp_path / "s").read_text().splitlines()
    assert [len(check_otlp(json.loads(line))) for line in lines] == [len(session), 1]
    again = [each for name in "sw" for each in otlp.read(tmp_path / name)]
    assert [span for _, span in again] == [*session, *made, *worker]
    assert again[0][0]["service.name"] == "flagsplit-session"
    events = json.loads(chrome_trace(again))["traceEvents"]
    drawn = [event for event in events if event["ph"] == "X"]
    assert len(drawn) == len(again)
    assert min(event["ts"] for event in drawn) == 0
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {"phone", "edge", "links"} <= names
    for event in drawn:
        assert event["dur"] >= 0


def test_a_disk_that_is_full_for_a_while_costs_the_lines_of_that_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session, worker = one_request()
    path = tmp_path / "spans"
    first = TraceFile(path, SESSION)
    first.write(session)
    first.close()
    whole_bytes = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = TraceFile(path, WORKER)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole_bytes + 100, limits[1]))
        file.write(worker)
        give_up = time.monotonic() + 10
        while not file.dropped:
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write(worker)
    file.close()
    assert [span for _, span in otlp.read(path)] == [*session, *worker]
    assert "traces are lost: the disk took a part of a line" in caplog.text
    assert f"{path}: 1 of 3 lines are left out: " in caplog.text
    path.write_bytes(path.read_bytes()[:-50])  # and one of a process that was killed, after which others go on
    last = TraceFile(path, SESSION)
    last.write(session)
    last.close()
    assert [span for _, span in otlp.read(path)] == [*session, *session]


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write traces"):
        TraceFile(tmp_path / "no" / "folder", SESSION)
    with pytest.raises(InputError, match="cannot read"):
        list(otlp.read(tmp_path / "absent"))
    for text in ("x", "{}", "[]", '{"resourceSpans": [{}]}', '{"resourceSpans": 3}', "[" * 100_000, "\udcff"):
        (tmp_path / "wrong").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match="line 1 has none"):
            list(otlp.read(tmp_path / "wrong"))
