"""Log records on one line each, whatever is in them."""

import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.errors import UnavailableError
from flagsplit.runtime.events import Deliver, Fail, Ran, Run, Send, TierChanged
from flagsplit.runtime.report import Report
from flagsplit.runtime.telemetry import configure
from flagsplit.runtime.telemetry.log_events import LogEvents
from flagsplit.runtime.telemetry.logs import JsonFormatter, TextFormatter, event_extra
from flagsplit.runtime.telemetry.peers import PeerTiers
from flagsplit.runtime.telemetry.settings import About
from flagsplit.transport.channel import Down, Received, Violated
from flagsplit.transport.messages import Failed, Hop, Open, Reject

ABOUT = About("worker", "edge", ("phone", "edge"), (), "d" * 64, "1" * 32)
HOSTILE = 'x\n{"level": "info"}\r\x1b[2J\u2028\u202e\x00\udc80 end'
# What pytest captures of the log must be text that it can send from one of its processes to another.
RUDE = HOSTILE.replace("\udc80", "")


def record(message: str, fields: dict[str, Any], exc_info: Any = None) -> logging.LogRecord:
    found = logging.LogRecord("x", logging.WARNING, "", 1, "%s", (message,), exc_info)
    vars(found).update(event_extra("some_event", fields))
    return found


def one_error() -> Any:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        return type(error), error, error.__traceback__


@given(st.text(), st.text(), st.floats(), st.integers())
def test_one_record_is_one_line(message: str, reason: str, number: float, count: int) -> None:
    made = record(message, {"reason": reason, "run_us": number, "rid": count, "none": None, "empty": ""})
    text, line = TextFormatter().format(made), JsonFormatter().format(made)
    assert len(text.splitlines()) == len(line.splitlines()) == 1
    assert text.isprintable()
    assert line.isascii()
    data = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert data["message"] == message
    assert data.get("reason", "") == reason
    assert (data["event"], data["level"], data["rid"]) == ("some_event", "warning", count)
    assert "none" not in data
    assert "empty" not in data


def test_tracebacks() -> None:
    made = record("it broke", {}, one_error())
    assert "ValueError" in json.loads(JsonFormatter().format(made))["traceback"]
    lines = TextFormatter().format(made).split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])


def test_what_a_worker_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log = LogEvents(ABOUT, PeerTiers(ABOUT.tiers))
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    opened = Open("a" * 32, 7, 2, 0, "p", 1, (Hop("phone"), Hop("edge", "m")), (), 1000, traceparent=given)
    log.event(Received("in:1", opened), 0.0)
    log.instruction(Run(1, "m", {}), 0.0)
    log.event(Ran(1, None, RUDE), 0.0)
    log.event(Violated("in:1", RUDE), 0.0)
    log.event(Down("in:1", "left"), 0.0)
    log.instruction(Send("in:1", Failed("a" * 32, 7, 2, "edge", "busy", "full", retryable=True)), 0.0)
    log.instruction(Send("in:1", Reject("bundle", "another one")), 0.0)
    lines = [json.loads(JsonFormatter().format(each)) for each in caplog.records]
    assert [line["event"] for line in lines] == [
        "tensors_received",
        "run_failed",
        "ran",
        "violation",
        "peer_down",
        "attempt_failed",
        "rejected",
    ]
    assert all(line["tier"] == "edge" for line in lines)
    received, failed = lines[0], lines[5]
    assert (received["peer"], received["rid"], received["attempt"], received["plan"]) == ("in:1", 7, 2, "p")
    assert received["trace_id"] == failed["trace_id"] == given[3:35]
    assert lines[3]["reason"] == RUDE


def test_what_a_session_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = LogEvents(ABOUT, PeerTiers(ABOUT.tiers))
    log.instruction(TierChanged("edge", "up"), 0.0)
    log.instruction(TierChanged("edge", "down", "it went silent"), 0.0)
    log.instruction(Deliver(1, {}, Report("p", 1, 2.0, (), ())), 0.0)
    log.instruction(Fail(2, UnavailableError("too late")), 0.0)
    lines = [json.loads(JsonFormatter().format(each)) for each in caplog.records]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("tier_up", "info"),
        ("tier_down", "warning"),
        ("failed", "warning"),
    ]
    assert (lines[2]["rid"], lines[2]["reason"]) == (2, "too late")


@pytest.mark.parametrize("form", ["text", "json"])
def test_configure(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root.handlers.clear()
    try:
        configure(form)
        logging.getLogger("flagsplit.x").info("hello %s", "there")
        logging.getLogger("flagsplit.x").debug("not this")
        logging.getLogger("onnx_ir.passes").info("nor this")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    (line,) = stream.getvalue().splitlines()
    assert "hello there" in line
    assert line.startswith("{") == (form == "json")
