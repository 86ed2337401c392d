"""Bundles that are asked for, sent to a worker and retired there, event by event."""

import zlib
from dataclasses import replace

import pytest
from tests.runtime.hired import CLOUD, GRAPH, OTHER, SESSION, Hired, S, T, failures, messages

from flagsplit.runtime.bundle_events import (
    BundleLoaded,
    BundleUnloaded,
    CloseUpload,
    LoadBundle,
    OpenUpload,
    PartStored,
    StorePart,
    UnloadBundle,
    UploadFailed,
    UploadOpened,
)
from flagsplit.runtime.events import BeginDrain, Instruction, Ran, Run, Tick
from flagsplit.runtime.testing import served_of
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.transport.channel import Down, Up
from flagsplit.transport.messages import (
    VERSION,
    BundleOffer,
    BundlePart,
    BundleRetire,
    BundleStatus,
    Chunk,
    Done,
    Drain,
    Failed,
    Hello,
    Open,
    Ping,
    Reject,
    Welcome,
)

D, E, F = "d" * 64, "e" * 64, "f" * 64
SHA = "1" * 64
PART = bytes(1000)


def hired(*bundles: str, **options: int) -> Hired:
    """An edge whose manager holds the key "boss"."""
    found = Hired(
        WorkerOptions(**options),  # type: ignore[arg-type]
        bundles=bundles or (D,),
        hooks=WorkerHooks(is_admin=lambda key: key == "boss"),
    )
    found.hello()
    found.hello(T, key="boss", bundle="", features=("bundles",))
    return found


def statuses(said: list[Instruction], peer: str = OTHER) -> list[tuple[str, str, int]]:
    return [(one.bundle, one.state, one.offset) for one in messages(said, peer) if isinstance(one, BundleStatus)]


def part(offset: int, size: int = len(PART)) -> BundlePart:
    return BundlePart(E, offset, zlib.crc32(PART[:size]), PART[:size])


# --- several bundles at once


def test_each_request_names_its_bundle_and_without_a_name_the_last_hello_counts() -> None:
    edge = hired(D, E)
    runs = []
    for rid, bundle in enumerate(("", D, E)):
        runs += [one for one in edge.ask(replace(edge.opened(rid), bundle=bundle)) if isinstance(one, Run)]
    edge.hello(bundle=E)
    runs += [one for one in edge.ask(edge.opened(3)) if isinstance(one, Run)]
    assert [run.bundle for run in runs] == [D, D, E, E]
    assert {run.client for run in runs} == {S}


def test_a_bundle_that_is_not_here_is_told_from_one_that_is() -> None:
    edge = hired(D, E)
    assert failures(edge.ask(replace(edge.opened(), bundle=F))) == [(SESSION, "edge", "bundle")]
    (said,) = messages(edge.hello(bundle=F))
    assert isinstance(said, Reject)
    assert said.reason.startswith("this worker serves dddddddddddd, eeeeeeeeeeee as tier edge; you have ffffffffffff")
    assert isinstance(edge.ask(edge.opened())[-1], Run), "the connection is good for the bundle of before"


def test_a_later_attempt_with_another_bundle_takes_nothing_from_the_one_before() -> None:
    edge = hired(D, E)
    edge.reach_cloud()
    edge.ask(edge.opened())
    said = edge.ask(replace(edge.opened(attempt=2), bundle=E))
    assert [one.bundle for one in said if isinstance(one, Run)] == [E]
    old, new = (one for one in edge.said if isinstance(one, Run))
    assert not messages(edge.tell(_ran(old)), CLOUD)
    edge.tell(_ran(new))
    assert edge.machine.flights[(S, 1)].bundle == E


def _ran(run: Run) -> Ran:
    return Ran(run.token, GRAPH.run(run.segment, run.inputs))


def test_a_tier_beyond_is_greeted_for_each_bundle_and_may_refuse_one() -> None:
    edge = hired(D, E)
    edge.hello(bundle=E)
    greeted = [one.bundle for one in messages(edge.tell(Up(CLOUD)), CLOUD) if isinstance(one, Hello)]
    assert sorted(greeted) == [D, E]
    for rid, bundle in ((1, D), (2, E)):
        edge.ask(replace(edge.opened(rid), bundle=bundle))
        assert not messages(edge.finish(), CLOUD), "it waits for the Welcome of its bundle"
    first, second = greeted
    out = messages(edge.say(Welcome(VERSION, "2" * 32, 0, first, "cloud", 1, 1), CLOUD), CLOUD)
    assert [(type(one), one.rid) for one in out if isinstance(one, Open | Chunk)] == [
        (Open, 1 if first == D else 2),
        (Chunk, 1 if first == D else 2),
    ]
    assert out[0].bundle == first  # type: ignore[union-attr]
    said = edge.say(Reject("bundle", "not here"), CLOUD)
    failed = [(one.rid, one.code) for one in messages(said, SESSION) if isinstance(one, Failed)]
    assert failed == [(1 if second == D else 2, "unreachable")]


def test_a_bundle_refused_beyond_is_asked_for_again_with_the_next_request() -> None:
    edge = hired(D)
    edge.tell(Up(CLOUD))
    edge.say(Reject("bundle", "not here yet"), CLOUD)
    edge.ask(edge.opened())
    assert [one.bundle for one in messages(edge.finish(), CLOUD) if isinstance(one, Hello)] == [D]
    out = messages(edge.say(Welcome(VERSION, "2" * 32, 0, D, "cloud", 1, 1), CLOUD), CLOUD)
    assert [type(one) for one in out] == [Open, Chunk]


# --- uploads


def test_an_upload_from_the_offer_to_the_first_request() -> None:
    edge = hired()
    assert edge.say(BundleOffer(SHA, E, 2500), OTHER) == [OpenUpload(1, SHA, 2500)]
    assert statuses(edge.tell(UploadOpened(1, 0))) == [(E, "partial", 0)]
    offset = 0
    while offset < 2500:
        sent = part(offset, min(1000, 2500 - offset))
        assert edge.say(sent, OTHER) == [StorePart(1, offset, sent.payload)]
        offset += len(sent.payload)
        said = edge.tell(PartStored(1, offset))
    assert statuses(said) == [(E, "loading", 2500)]
    assert said[-1] == LoadBundle(1, E)
    assert messages(edge.hello(bundle=E))[0].TYPE == "RJ"
    assert statuses(edge.tell(BundleLoaded(1, E, served_of(edge.facts, "edge")))) == [(E, "ready", 2500)]
    assert messages(edge.hello(bundle=E))[0].TYPE == "WE"
    assert isinstance(edge.ask(edge.opened())[-1], Run)
    assert statuses(edge.say(BundleOffer(SHA, E, 2500), OTHER)) == [(E, "ready", 0)]


def test_what_does_not_fit_is_asked_for_again() -> None:
    edge = hired()
    edge.say(BundleOffer(SHA, E, 2500), OTHER)
    assert edge.say(part(0), OTHER) == [], "nobody said yet where to begin"
    edge.tell(UploadOpened(1, 500))
    for wrong in (part(0), part(501), replace(part(500), crc32=1), replace(part(500), payload=bytes(2001))):
        assert statuses(edge.say(wrong, OTHER)) == [(E, "partial", 500)]
    assert edge.say(replace(part(500), bundle=F), OTHER) == []
    assert edge.say(part(500), SESSION) == [], "not by somebody else"
    assert edge.say(part(500), OTHER) == [StorePart(1, 500, PART)]


def test_parts_that_the_disk_has_not_taken_are_bounded() -> None:
    edge = hired()
    size = 1 << 20
    edge.say(BundleOffer(SHA, E, 64 * size), OTHER)
    edge.tell(UploadOpened(1, 0))
    payload = bytes(size)
    crc = zlib.crc32(payload)
    stored = sum(bool(_stores(edge.say(BundlePart(E, at * size, crc, payload), OTHER))) for at in range(20))
    assert stored == 16
    edge.tell(PartStored(1, size))
    assert _stores(edge.say(BundlePart(E, 16 * size, crc, payload), OTHER))


def _stores(said: list[Instruction]) -> list[Instruction]:
    return [one for one in said if isinstance(one, StorePart)]


def test_an_interrupted_upload_goes_on_where_it_was() -> None:
    edge = hired()
    edge.say(BundleOffer(SHA, E, 2500), OTHER)
    edge.tell(UploadOpened(1, 0))
    edge.say(part(0), OTHER)
    assert CloseUpload(1, keep=True) in edge.tell(Down(OTHER, "gone"))
    assert edge.tell(PartStored(1, 1000)) == [], "news of an upload that is over"
    edge.hello(T, key="boss", bundle="")
    assert edge.say(BundleOffer(SHA, E, 2500), OTHER) == [OpenUpload(2, SHA, 2500)]
    assert statuses(edge.tell(UploadOpened(2, 1000))) == [(E, "partial", 1000)]


def test_a_peer_uploads_one_at_a_time_and_a_file_has_one_sender() -> None:
    edge = hired()
    edge.hello("7" * 32, key="boss", bundle="")
    edge.say(BundleOffer(SHA, E, 2500), OTHER)
    (status,) = statuses(edge.say(BundleOffer(SHA, E, 2500), "in:" + "7" * 32), "in:" + "7" * 32)
    assert status == (E, "refused", 0)
    assert edge.say(BundleOffer("2" * 64, F, 2500), OTHER) == [
        CloseUpload(1, keep=True),
        OpenUpload(2, "2" * 64, 2500),
    ]
    assert edge.machine.stats().uploads == 1


@pytest.mark.parametrize(
    ("key", "offer", "reason"),
    [
        ("", BundleOffer(SHA, E, 10), "may not manage"),
        ("friend", BundleOffer(SHA, E, 10), "may not manage"),
        ("boss", BundleOffer(SHA, E, 0), "1 to 5000 bytes"),
        ("boss", BundleOffer(SHA, E, 5001), "1 to 5000 bytes"),
        ("boss", BundleOffer(SHA, "", 10), "1 to 5000 bytes"),
    ],
)
def test_who_and_what_is_refused(key: str, offer: BundleOffer, reason: str) -> None:
    edge = hired(max_bundle_bytes=5000)
    edge.tell(Down(OTHER, "gone"))
    edge.hello(T, key=key)
    (status,) = messages(edge.say(offer, OTHER), OTHER)
    assert isinstance(status, BundleStatus)
    assert status.state == "refused"
    assert reason in status.reason


def test_only_managers_may_come_without_a_bundle() -> None:
    edge = hired()
    (said,) = messages(edge.hello("7" * 32, bundle=""))
    assert isinstance(said, Reject)
    assert said.code == "rights"
    assert edge.say(BundleOffer(SHA, E, 10), "in:" + "7" * 32) == []


def test_an_upload_that_fails_is_refused_with_its_reason_and_can_be_tried_again() -> None:
    edge = hired()
    edge.say(BundleOffer(SHA, E, 1000), OTHER)
    edge.tell(UploadOpened(1, 0))
    edge.say(part(0), OTHER)
    edge.tell(PartStored(1, 1000))
    (status,) = messages(edge.tell(UploadFailed(1, "it is not signed")), OTHER)
    assert status == BundleStatus(E, "refused", 0, "it is not signed")
    assert edge.say(BundleOffer(SHA, E, 1000), OTHER) == [OpenUpload(2, SHA, 1000)]


def test_a_drain_ends_uploads_and_frees_what_comes_too_late() -> None:
    edge = hired()
    edge.ask(edge.opened())
    edge.say(BundleOffer(SHA, E, 1000), OTHER)
    edge.tell(UploadOpened(1, 0))
    said = edge.tell(BeginDrain("enough"))
    assert statuses(said) == [(E, "refused", 0)]
    assert CloseUpload(1, keep=False) in said
    assert UnloadBundle(E) in edge.tell(BundleLoaded(1, E, served_of(edge.facts, "edge")))
    assert statuses(edge.say(BundleOffer(SHA, E, 1000), OTHER)) == [(E, "refused", 0)]


# --- retiring


def test_a_bundle_is_retired_when_its_last_request_is_over() -> None:
    edge = hired(D, E)
    edge.ask(edge.opened())
    said = edge.say(BundleRetire(D, E), OTHER)
    assert messages(said, SESSION) == [Drain("bundle dddddddddddd is being retired", D, E)]
    assert UnloadBundle(D) not in said
    assert failures(edge.ask(edge.opened(2))) == [(SESSION, "edge", "draining")]
    (refused,) = messages(edge.hello("7" * 32))
    assert isinstance(refused, Reject)
    assert "use eeeeeeeeeeee" in refused.reason
    assert edge.machine.readiness() == (True, "")
    edge.ask(edge.opened(attempt=2))
    edge.finish()
    assert UnloadBundle(D) in edge.say(Done(S, 1))
    assert statuses(edge.tell(BundleUnloaded(D))) == [(D, "retired", 0)]
    assert edge.machine.stats().bundles == (E,)
    assert failures(edge.ask(edge.opened(3))) == [(SESSION, "edge", "bundle")]
    assert statuses(edge.say(BundleRetire(D, E), OTHER)) == [(D, "retired", 0)]


def test_requests_that_take_too_long_are_given_up_and_a_run_under_way_is_waited_for() -> None:
    edge = hired(D, E)
    edge.ask(replace(edge.opened(), deadline_ms=2**53 - 1))
    edge.say(BundleRetire(D, E), OTHER)
    for _ in range(30):
        edge.say(Ping(0, 0), SESSION)
        edge.say(Ping(0, 0), OTHER)
        said = edge.tell(Tick(), after_s=1.0)
    assert failures(said) == [(SESSION, "edge", "draining")]
    assert edge.machine.is_idle()
    assert UnloadBundle(D) not in said
    assert UnloadBundle(D) in edge.finish()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (BundleRetire(D), "last bundle"),
        (BundleRetire(D, E), "not served here"),
        (BundleRetire(D, D), "not served here"),
    ],
)
def test_the_last_bundle_stays(message: BundleRetire, reason: str) -> None:
    edge = hired(D)
    (status,) = messages(edge.say(message, OTHER))
    assert isinstance(status, BundleStatus)
    assert status.state == "refused"
    assert reason in status.reason
    assert edge.machine.readiness() == (True, "")


def test_one_of_two_may_be_retired_without_a_successor_but_not_both() -> None:
    edge = hired(D, E)
    assert UnloadBundle(E) in edge.say(BundleRetire(E), OTHER)
    assert statuses(edge.say(BundleRetire(D), OTHER)) == [(D, "refused", 0)]
    (status,) = messages(edge.say(BundleRetire(D, E), SESSION), SESSION)
    assert isinstance(status, BundleStatus)
    assert "may not manage" in status.reason


def test_an_empty_worker_is_ready_with_its_first_bundle() -> None:
    edge = Hired(bundles=(), hooks=WorkerHooks(is_admin=lambda key: key == "boss"))
    assert edge.machine.readiness() == (False, "no bundle is here yet")
    (said,) = messages(edge.hello())
    assert isinstance(said, Reject)
    assert "serves no bundle yet" in said.reason
    (welcome,) = messages(edge.hello(T, key="boss", bundle=""))
    assert isinstance(welcome, Welcome)
    assert (welcome.bundle, welcome.features) == ("", ("resume", "bundles", "probe", "inline", "zstd", "lz4"))
    edge.say(BundleOffer(SHA, D, 1000), OTHER)
    edge.tell(UploadOpened(1, 1000))
    edge.tell(BundleLoaded(1, D, served_of(edge.facts, "edge")))
    assert edge.machine.readiness() == (True, "")
    edge.hello()
    assert isinstance(edge.ask(edge.opened())[-1], Run)
