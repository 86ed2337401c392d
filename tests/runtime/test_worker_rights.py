"""Who may speak for whom at a worker: only known workers pass on requests, and a session's are its key's."""

import pytest
from tests.runtime.hired import CLOUD, SESSION, Hired, S, T, failures, messages

from flagsplit.runtime.events import Tick
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.transport.channel import Down, inbound_name
from flagsplit.transport.messages import Cancel, Done, Message, Reject, Welcome

_EDGE = "e" * 32
_OF_WORKERS = WorkerHooks(is_worker=lambda key: key in ("edge's key", "ours"))


def _rejected(said: list[Message]) -> Reject:
    (message,) = said
    assert isinstance(message, Reject)
    return message


def test_a_worker_is_who_has_a_worker_s_key() -> None:
    hired = Hired(hooks=_OF_WORKERS)
    for instance, key in ((_EDGE, "edge's key"), ("f" * 32, "ours")):
        assert isinstance(messages(hired.hello(instance, role="worker", key=key))[0], Welcome)
        assert not failures(hired.ask(hired.opened(1, sid=key[:1] * 32), instance))
    assert hired.machine.stats().workers == 2


def test_a_client_that_calls_itself_a_worker_is_refused_and_nothing_of_it_is_taken() -> None:
    hired = Hired(hooks=_OF_WORKERS)
    reject = _rejected(messages(hired.hello(T, role="worker", key="PHONE-KEY")))
    assert reject.code == "rights"
    assert "flagsplit keys allow NAME 'PHONE-KEY' --worker" in reject.reason
    assert not messages(hired.ask(hired.opened(1, sid=S), T))
    assert not hired.machine.flights
    assert hired.machine.stats().workers == 0


def test_a_session_does_not_become_a_worker_by_another_hello() -> None:
    hired = Hired(hooks=_OF_WORKERS)
    hired.hello(key="phone")
    assert _rejected(messages(hired.hello(key="phone", role="worker"))).code == "rights"
    assert failures(hired.say(hired.opened(1, sid=T))) == [(SESSION, "edge", "protocol")]


def test_a_change_of_the_list_counts_from_the_next_hello_on() -> None:
    known: set[str] = set()
    hired = Hired(hooks=WorkerHooks(is_worker=lambda key: key in known))
    assert _rejected(messages(hired.hello(T, role="worker", key="k"))).code == "rights"
    known.add("k")
    assert isinstance(messages(hired.hello(T, role="worker", key="k"))[0], Welcome)


def test_without_keys_all_are_taken_at_their_word_and_with_keys_nobody_by_default() -> None:
    hired = Hired()
    assert isinstance(messages(hired.hello(T, role="worker"))[0], Welcome)
    assert _rejected(messages(hired.hello(_EDGE, role="worker", key="k"))).code == "rights"


def _left_behind(key: str) -> Hired:
    """A worker at which a request waits for its session, which had a key, to come back."""
    hired = Hired(WorkerOptions(linger_s=10.0), hooks=_OF_WORKERS)
    hired.hello(key=key)
    hired.ask(hired.opened(1))
    hired.tell(Down(SESSION, "reset"))
    assert (S, 1) in hired.machine.flights
    return hired


def test_a_request_that_waits_for_its_session_is_its_key_s() -> None:
    hired = _left_behind("a")
    reject = _rejected(messages(hired.hello(key="b")))
    assert (reject.code, "key" in reject.reason) == ("rights", True)
    for message in (Cancel(S, 1, 1), Done(S, 1), hired.opened(1, attempt=2)):
        assert not messages(hired.say(message))
    assert hired.machine.flights[S, 1].attempt == 1
    hired.tell(Down(SESSION, "gone"))
    assert isinstance(messages(hired.hello(key="a"))[0], Welcome)
    hired.say(hired.opened(1, attempt=2))
    assert hired.machine.flights[S, 1].attempt == 2
    hired.say(Done(S, 1))
    assert not hired.machine.flights


def test_when_nothing_of_it_is_left_a_name_is_free() -> None:
    hired = _left_behind("a")
    hired.tell(Down(SESSION, "gone"))
    hired.tell(Tick(), after_s=11.0)
    assert not hired.machine.flights
    assert isinstance(messages(hired.hello(key="b"))[0], Welcome)


@pytest.mark.parametrize("word", [Cancel(S, 1, 1), Done(S, 1)])
def test_a_request_that_came_by_a_worker_is_still_its_session_s(word: Message) -> None:
    """Attempts of one request may come by the session itself and by any worker, in any order."""
    hired = Hired(hooks=_OF_WORKERS)
    hired.hello(key="a")
    hired.hello(_EDGE, role="worker", key="edge's key")
    hired.ask(hired.opened(1), _EDGE)
    hired.tell(Down(SESSION, "reset"))
    assert _rejected(messages(hired.hello(key="b"))).code == "rights"
    hired.hello(key="a")
    hired.say(hired.opened(1, attempt=2))
    hired.ask(hired.opened(1, attempt=3), _EDGE)
    assert hired.machine.flights[S, 1].attempt == 3
    assert not messages(hired.say(word, inbound_name(T)))
    assert (S, 1) in hired.machine.flights
    hired.say(word if isinstance(word, Done) else Cancel(S, 1, 3))
    assert not hired.machine.flights


def test_what_a_tier_beyond_says_has_nothing_to_do_with_keys() -> None:
    hired = Hired(hooks=_OF_WORKERS)
    hired.hello(key="a")
    hired.reach_cloud(CLOUD)
    hired.ask(hired.opened(1))
    assert [type(one).__name__ for one in messages(hired.finish(), CLOUD)] == ["Open", "Chunk"]
