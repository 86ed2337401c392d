"""What the service takes and what it refuses: hostile announcements cost a Failed, and never the machine."""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.generation.stream_oracle import BUNDLE, FACTS, WIDTH, encode

from flagsplit.errors import ConfigError
from flagsplit.runtime.bundle_events import Served
from flagsplit.runtime.events import BeginDrain, Ended, Event, Instruction, Ran, Run, Send, Tick
from flagsplit.runtime.generation.events import Generate, Timings, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.service_machine import StreamMachine
from flagsplit.runtime.generation.stream_events import Begin, Generated, Quit
from flagsplit.runtime.generation.stream_spec import StreamSpec, parse_spec
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerMachine, WorkerOptions
from flagsplit.targets.interface import Array
from flagsplit.transport import messages
from flagsplit.transport.channel import Down, Received, Up, inbound_name
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import Cancel, Done, Failed, Hello, Hop, HopTiming, Message, Open, Ping, TensorHeader

S = "5" * 32
PEER = inbound_name(S)
HIDDEN = {"hidden": np.arange(8, dtype=np.float32)[None]}


class Desk:
    """A machine, and one client that says what it likes."""

    def __init__(self, hooks: WorkerHooks | None = None, **options: object) -> None:
        served, limits = {BUNDLE: Served(("phone", "cloud"), {})}, WorkerOptions(**options)  # type: ignore[arg-type]
        self.machine = StreamMachine("cloud", served, "0" * 32, {BUNDLE: FACTS}, limits, hooks=hooks)
        self.now = 0.0
        self.connect()

    def connect(self, sid: str = S, key: str = "") -> None:
        self.tell(Up(inbound_name(sid), key))
        hello = Hello((1, 0), (1, 2), sid, "session", BUNDLE, 1000, features=("generate", "inline"))
        (welcome,) = sent(self.tell(Received(inbound_name(sid), hello)))
        assert isinstance(welcome, messages.Welcome)
        assert "generate" in welcome.features

    def tell(self, event: Event) -> list[Instruction]:
        return self.machine.handle(event, self.now)

    def say(self, message: Message) -> list[Message]:
        return sent(self.tell(Received(PEER, message)))

    def open(
        self,
        tensors: Mapping[str, Array] = HIDDEN,
        spec: str | StreamSpec = "{}",
        *,
        sid: str = S,
        rid: int = 1,
        attempt: int = 1,
        plan: str = "p1",
        route: tuple[Hop, ...] | None = None,
        deadline_ms: int = 10_000,
    ) -> list[Instruction]:
        """Ask for a stream whose tensors come with the question."""
        payload = b"".join(array.tobytes() for array in tensors.values())
        headers = tuple(
            TensorHeader(name, array.dtype.name, array.shape, array.nbytes) for name, array in tensors.items()
        )
        return self.tell(
            Received(
                inbound_name(sid),
                Open(
                    sid=sid,
                    rid=rid,
                    attempt=attempt,
                    epoch=0,
                    plan=plan,
                    hop=1,
                    route=route or (Hop("phone", "", tuple(tensors)), Hop("cloud")),
                    tensors=headers,
                    deadline_ms=deadline_ms,
                    trace=(HopTiming("phone", "", 0, 0, 0, len(payload)),),
                    inline_crc32=crc32(payload) if payload else None,
                    generation=spec if isinstance(spec, str) else spec.to_text(),
                    payload=payload,
                ),
            )
        )

    def begun(self, **changes: object) -> Generate:
        """A stream that its engine was told of."""
        (run,) = self.open(**changes)  # type: ignore[arg-type]
        assert isinstance(run, Run)
        (begin,) = self.tell(Ran(run.token, encode(run.segment, run.inputs)))
        assert isinstance(begin, Begin)
        return begin.generate


def sent(instructions: list[Instruction]) -> list[Message]:
    return [each.message for each in instructions if isinstance(each, Send)]


def tokens(*values: int) -> Array:
    return np.array(values, np.int64)


def test_a_stream_from_its_tensors_to_its_last_token() -> None:
    desk = Desk()
    options = GenerationOptions(max_tokens=9, seed=4)
    spec = StreamSpec(options, "mine", delivered=1, input_s=2.5)
    asked = desk.begun(tensors={**HIDDEN, "tokens": tokens(5, 7)}, spec=spec)
    assert asked.context is not None
    assert np.array_equal(asked.context["hidden"], encode("p1", HIDDEN)["hidden"])
    assert (asked.tokens, asked.generated, asked.options, asked.input_s) == ((5, 7), 1, options, 2.5)
    assert (asked.client, asked.deadline, asked.rows) == (f"{S}/mine", 10.0, None)
    timings = Timings(100, 200, 300, 4)
    (said,) = sent(desk.tell(Generated(Tokens(asked.stream_id, 1, (8,), timings=timings))))
    assert said == messages.Tokens(S, 1, 1, 1, (8,), wait_us=100, run_us=300, batch=4)
    (said,) = sent(desk.tell(Generated(Tokens(asked.stream_id, 2, (), done=True, reason="stop"))))
    assert said == messages.Tokens(S, 1, 1, 2, (), last=True, reason="stop")
    assert desk.say(Done(S, 1)) == []
    assert desk.machine.is_idle()
    assert desk.machine.stats().held_bytes == 0


def test_how_likely_tokens_were_is_told_with_them() -> None:
    desk = Desk()
    asked = desk.begun()
    many, logprobs = tuple(range(1025)), tuple(-each / 1000 for each in range(1026))
    event = Tokens(asked.stream_id, 0, many, done=True, reason="stop", logprobs=logprobs, no_speech=0.25)
    first, second = sent(desk.tell(Generated(event)))
    assert isinstance(first, messages.Tokens)
    assert isinstance(second, messages.Tokens)
    assert (len(first.costs), first.costs[2], first.no_speech) == (1024, 2000, 250_000)
    assert (second.costs, second.no_speech) == ((1_024_000, 1_025_000), 0)


def test_more_tokens_than_a_message_holds_take_several() -> None:
    desk = Desk()
    asked = desk.begun()
    many = tuple(range(2500))
    said = sent(desk.tell(Generated(Tokens(asked.stream_id, 0, many, done=True, reason="length"))))
    assert [(m.offset, len(m.tokens), m.last, m.reason) for m in said if isinstance(m, messages.Tokens)] == [
        (0, 1024, False, ""),
        (1024, 1024, False, ""),
        (2048, 452, True, "length"),
    ]


def test_what_was_kept_serves_the_next_attempt_on_another_connection() -> None:
    desk = Desk()
    first = desk.begun()
    assert Quit(first.stream_id) in desk.tell(Down(PEER, "gone"))
    assert not desk.tell(Generated(Tokens(first.stream_id, 0, (1,))))
    desk.now = 5.0
    desk.connect()
    kept = StreamSpec(GenerationOptions(), delivered=1, kept=True)
    (begin,) = desk.open({"tokens": tokens(1, 4)}, kept, attempt=2)
    assert isinstance(begin, Begin)
    again = begin.generate
    assert again.stream_id != first.stream_id
    assert again.context is not None
    assert first.context is not None
    assert np.array_equal(again.context["hidden"], first.context["hidden"])
    assert (again.tokens, again.generated) == ((1, 4), 1)


def test_what_lingers_too_long_is_forgotten_and_then_not_there() -> None:
    desk = Desk(linger_s=10.0)
    desk.begun()
    desk.tell(Down(PEER, "gone"))
    desk.now = 11.0
    desk.tell(Tick())
    assert desk.machine.is_idle()
    desk.connect()
    (said,) = sent(desk.open({"tokens": tokens(1, 4)}, StreamSpec(delivered=1, kept=True), attempt=2))
    assert isinstance(said, Failed)
    assert (said.code, said.retryable) == ("no-state", True)


def test_rows_go_on_where_their_stream_waits() -> None:
    desk = Desk()
    rows = np.ones((3, WIDTH), np.float32)
    (begin,) = desk.open({"rows": rows, "tokens": tokens(5, 6, 7)}, StreamSpec(position=0))
    assert isinstance(begin, Begin)
    assert (begin.generate.position, begin.generate.context) == (0, None)
    name = begin.generate.stream_id
    (said,) = sent(desk.tell(Generated(Tokens(name, 0, (9,), done=True))))
    assert said == messages.Tokens(S, 1, 1, 0, (9,))
    (begin,) = desk.open(
        {"rows": rows[:1], "tokens": tokens(5, 6, 7, 9)}, StreamSpec(delivered=1, position=3), attempt=2
    )
    assert isinstance(begin, Begin)
    assert (begin.generate.stream_id, begin.generate.position, begin.generate.generated) == (name, 3, 1)
    quitted, begin = desk.open({"rows": rows, "tokens": tokens(5, 6, 7)}, StreamSpec(position=0), attempt=3)
    assert quitted == Quit(name)
    assert isinstance(begin, Begin)


def test_a_later_attempt_takes_the_place_of_the_earlier_one() -> None:
    desk = Desk()
    first = desk.begun()
    spec = StreamSpec(delivered=2)
    quitted, begin = desk.open({**HIDDEN, "tokens": tokens(1, 4, 4)}, spec, attempt=2)
    assert quitted == Quit(first.stream_id)
    assert isinstance(begin, Begin)
    assert begin.generate.generated == 2
    assert desk.open(attempt=1) == []


def test_a_worker_that_drains_hands_over_what_is_not_over_in_time() -> None:
    desk = Desk(drain_s=3.0)
    asked = desk.begun()
    assert any(isinstance(message, messages.Drain) for message in sent(desk.tell(BeginDrain("bye"))))
    (refused,) = sent(desk.open(rid=2))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.retryable) == ("draining", True)
    desk.now = 2.0
    desk.say(Ping(0, 0))
    desk.now = 3.5
    said = desk.tell(Tick())
    (failed,) = (message for message in sent(said) if isinstance(message, Failed))
    assert (failed.rid, failed.code, failed.retryable) == (1, "draining", True)
    assert Quit(asked.stream_id) in said
    assert isinstance(said[-1], Ended)


def test_a_deadline_frees_a_stream_that_the_engine_forgot() -> None:
    desk = Desk()
    asked = desk.begun(deadline_ms=1000)
    desk.now = 1.1
    said = desk.tell(Tick())
    assert [message.code for message in sent(said) if isinstance(message, Failed)] == ["deadline"]
    assert Quit(asked.stream_id) in said
    assert desk.machine.is_idle()


def test_an_encoder_that_fails_is_told_and_can_be_tried_again() -> None:
    desk = Desk()
    (run,) = desk.open()
    assert isinstance(run, Run)
    (said,) = sent(desk.tell(Ran(run.token, None, "segment p1 broke")))
    assert isinstance(said, Failed)
    assert said.code == "compute"
    (run,) = desk.open(attempt=2)
    assert isinstance(run, Run)


WRONG: dict[str, dict[str, object]] = {
    "no JSON": {"spec": "{"},
    "no object": {"spec": "[1]"},
    "unknown option": {"spec": '{"mood":1}'},
    "a key twice": {"spec": '{"seed":1,"seed":2}'},
    "NaN": {"spec": '{"temperature":NaN}'},
    "out of limits": {"spec": '{"max_tokens":0}'},
    "beyond all floats": {"spec": f'{{"seed":1{"0" * 400}}}'},
    "seconds beyond": {"spec": f'{{"input_s":1{"0" * 400}}}'},
    "deep": {"spec": '{"stop":' + "[" * 4000 + "}"},
    "another loop": {"spec": '{"loop":"x"}'},
    "flag": {"spec": '{"kept":1}'},
    "negative": {"spec": '{"delivered":-1}'},
    "more than came": {"spec": '{"delivered":3}', "tensors": {**HIDDEN, "tokens": tokens(1, 2)}},
    "delivered nothing": {"spec": '{"delivered":1}'},
    "another plan": {"plan": "p9"},
    "another cut": {"plan": "p2"},
    "no tensor": {"tensors": {}},
    "one more": {"tensors": {**HIDDEN, "mask": HIDDEN["hidden"]}},
    "kept and sent": {"spec": '{"kept":true}'},
    "context": {"tensors": {"context/hidden": HIDDEN["hidden"]}},
    "float tokens": {"tensors": {**HIDDEN, "tokens": np.zeros(3, np.float32)}},
    "table of tokens": {"tensors": {**HIDDEN, "tokens": tokens(1, 2)[None]}},
    "rows unasked": {"tensors": {"rows": np.ones((1, WIDTH), np.float32)}},
    "rows and more": {"spec": '{"from":0}', "tensors": {**HIDDEN, "rows": np.ones((1, WIDTH), np.float32)}},
    "no rows": {"spec": '{"from":0}'},
    "wide rows": {"spec": '{"from":0}', "tensors": {"rows": np.ones((1, WIDTH + 1), np.float32)}},
    "empty rows": {"spec": '{"from":0}', "tensors": {"rows": np.ones((0, WIDTH), np.float32)}},
    "half rows": {"spec": '{"from":0}', "tensors": {"rows": np.ones((1, WIDTH), np.float16)}},
    "a way beyond": {"route": (Hop("phone", "", ("hidden",)), Hop("cloud", "", ("hidden",)), Hop("phone"))},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_stream_can_be_is_refused_before_it_costs_anything(what: str) -> None:
    desk = Desk()
    (said,) = sent(desk.open(**WRONG[what]))  # type: ignore[arg-type]
    assert isinstance(said, Failed)
    assert (said.code, said.retryable) == ("protocol", False)
    assert said.reason
    assert desk.machine.is_idle()
    assert not desk.machine.streams
    desk.begun(rid=2)


def test_tokens_of_another_vocabulary_are_an_input_error() -> None:
    desk = Desk()
    (run,) = desk.open({**HIDDEN, "tokens": tokens(5, 97)})
    assert isinstance(run, Run)
    (said,) = sent(desk.tell(Ran(run.token, encode("p1", HIDDEN))))
    assert isinstance(said, Failed)
    assert (said.code, said.retryable) == ("input", False)
    assert "97" in said.reason


def test_a_request_is_a_stream_in_all_attempts_or_in_none() -> None:
    desk = Desk()
    desk.begun()
    (said,) = sent(desk.open(spec="", attempt=2))
    assert isinstance(said, Failed)
    assert said.code == "protocol"


def test_nobody_else_hears_or_ends_a_stream() -> None:
    desk = Desk()
    asked = desk.begun()
    other = "6" * 32
    stranger = inbound_name(other)
    desk.tell(Up(stranger))
    desk.tell(Received(stranger, Hello((1, 0), (1, 2), other, "session", BUNDLE, 1000)))
    assert not desk.tell(Received(stranger, Cancel(S, 1, 1)))
    assert not desk.tell(Received(stranger, Done(S, 1)))
    (send,) = desk.tell(Generated(Tokens(asked.stream_id, 0, (1,))))
    assert isinstance(send, Send)
    assert send.peer == PEER


specs = st.builds(
    StreamSpec,
    st.builds(
        GenerationOptions,
        max_tokens=st.integers(1, 9000),
        temperature=st.floats(0, 2),
        seed=st.integers(0, 2**40),
        stop=st.lists(st.integers(0, 99999), max_size=5).map(tuple),
    ),
    st.text(max_size=16),
    st.text(max_size=16),
    st.integers(0, 1 << 20),
    st.none() | st.integers(0, 1 << 20),
    st.booleans(),
    st.floats(0, 86400),
)


@given(specs)
def test_what_is_asked_for_comes_out_of_its_text(spec: StreamSpec) -> None:
    assert parse_spec(spec.to_text()) == spec


@given(
    st.dictionaries(
        st.sampled_from(["stream", "loop", "delivered", "from", "kept", "input_s", "max_tokens", "stop", "x"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=99) | st.lists(st.integers()),
    )
)
@settings(max_examples=200)
def test_any_text_is_a_stream_or_a_config_error(data: dict[str, object]) -> None:
    for text in (json.dumps(data), json.dumps(data)[:-1], "x" + json.dumps(data)):
        outcome: object
        try:
            outcome = parse_spec(text)
        except ConfigError as error:
            outcome = str(error)
        assert isinstance(outcome, StreamSpec) or (isinstance(outcome, str) and len(outcome) < 300)


def test_more_tokens_than_the_model_has_positions_are_not_looked_at() -> None:
    desk = Desk()
    desk.machine.facts[BUNDLE] = replace(FACTS, max_positions=3)
    (refused,) = sent(desk.open({**HIDDEN, "tokens": tokens(1, 2, 3, 4)}))
    assert isinstance(refused, Failed)
    assert (refused.code, refused.reason) == ("protocol", "tokens: expected at most 3, came 4")
    assert desk.begun(tensors={**HIDDEN, "tokens": tokens(1, 2, 3)}, rid=2).tokens == (1, 2, 3)


def test_a_worker_without_a_loop_refuses_streams() -> None:
    served = {BUNDLE: Served(("phone", "cloud"), {})}
    worker = WorkerMachine("cloud", served, "0" * 32)
    desk = Desk()
    desk.machine = worker  # type: ignore[assignment]
    worker.handle(Up(PEER), 0.0)
    hello = Hello((1, 0), (1, 2), S, "session", BUNDLE, 1000, features=("generate",))
    (welcome,) = sent(worker.handle(Received(PEER, hello), 0.0))
    assert isinstance(welcome, messages.Welcome)
    assert "generate" not in welcome.features
    (said,) = sent(desk.open())
    assert isinstance(said, Failed)
    assert said.code == "protocol"
    assert not desk.say(messages.Tokens(S, 1, 1, 0, (1,)))
