"""The worker as a pure state machine: what each event and message means, and when what is due.

Its other parts, each on top of the one before: `relay.py`, requests in `worker_flights.py`, how they are taken in
`worker_admission.py`, peers in `worker_peering.py`. Beside them stand records of peers (`worker_peers.py`), bundles
(`worker_bundles.py`) and memory (`worker_shares.py`). Sockets, files and threads are `worker.py`'s.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from flagsplit.errors import InternalError
from flagsplit.runtime.bundle_events import (
    BundleEvent,
    BundleLoaded,
    BundleUnloaded,
    PartStored,
    Served,
    UploadFailed,
    UploadOpened,
)
from flagsplit.runtime.events import BeginDrain, Disconnect, Ended, Event, Instruction, Leave, Note, Ran, Send, Tick
from flagsplit.runtime.telemetry.stats import LinkStats
from flagsplit.runtime.telemetry.stats import WorkerStats as Figures
from flagsplit.runtime.worker_bundles import Bundles
from flagsplit.runtime.worker_options import WorkerHooks as WorkerHooks
from flagsplit.runtime.worker_options import WorkerOptions as WorkerOptions
from flagsplit.runtime.worker_options import WorkerStats as WorkerStats
from flagsplit.runtime.worker_peering import WorkerPeering
from flagsplit.runtime.worker_peers import Peers
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated, inbound_name
from flagsplit.transport.messages import (
    MAX_HOPS,
    BundleOffer,
    BundlePart,
    BundleRetire,
    Bye,
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Have,
    Hello,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Probe,
    Reject,
    Welcome,
)
from flagsplit.transport.tensors import TransferLimits

_MOST: Final = 2**53 - 1


class WorkerMachine(WorkerPeering):
    """One tier, of any number of bundles.

    Args:
        tier: name of the tier.
        served: the bundles that it has, by digest.
        instance: names this start of the process.
        fixed: addresses of tiers beyond that the operator set; they win over what sessions say.
        options: limits and times.
        limits: on tensors that come in.
        slowdown: how many times as slow the engine is made, which peers are told.
        hooks: whom to ask for rights and gauges.
    """

    def __init__(
        self,
        tier: str,
        served: Mapping[str, Served],
        instance: str,
        fixed: Mapping[str, PeerAddress] | None = None,
        options: WorkerOptions | None = None,
        limits: TransferLimits | None = None,
        *,
        slowdown: float = 1.0,
        hooks: WorkerHooks | None = None,
    ) -> None:
        options, self._hooks = options or WorkerOptions(), hooks or WorkerHooks()
        peers = Peers(tier, instance, fixed or {}, options)
        bundles = Bundles(tier, served, options, lambda peer: self._hooks.is_admin(peers.key_of(peer)))
        permille = min(1_000_000, round(slowdown * 1000))
        limits = limits or TransferLimits()
        super().__init__(peers, bundles, options, limits, instance, permille, self._hooks.is_worker)
        self.squeezing = self._hooks.squeezing
        self._drain_until = 0.0
        self._ended = False

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        said = list(self._handle(event))
        self.gauges.note(said, now)
        if self.bundles.retiring or self.bundles.draining:
            said.extend(self._finish())
        return said

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        return self.peers.liveness.next_tick()

    def is_idle(self) -> bool:
        """Whether no request is here, those whose session is away included."""
        return not self.flights

    def readiness(self) -> tuple[bool, str]:
        """Whether new sessions are welcome, and why not."""
        if self.bundles.draining:
            return False, self.bundles.draining
        if not any(self.bundles.takes_new(bundle) for bundle in self.bundles.served):
            return False, "no bundle is here yet" if not self.bundles.served else "its bundles are being retired"
        return True, ""

    def stats(self) -> WorkerStats:
        """What there is now, and what was so far."""
        inbound = self.peers.inbound.values()
        workers = sum(one.role == "worker" for one in inbound)
        return WorkerStats(
            tier=self.tier,
            bundles=tuple(self.bundles.served),
            retiring=tuple(self.bundles.retiring),
            draining=bool(self.bundles.draining),
            sessions=len(inbound) - workers,
            workers=workers,
            beyond={name: bool(one.welcomed) for name, one in self.peers.beyond.items()},
            paused=tuple(sorted(self.shares.paused)),
            uploads=self.bundles.uploads,
            flights=len(self.flights),
            lingering=len(self._away),
            waiting_runs=self.waiting_runs,
            held_bytes=self.shares.held_bytes,
            clients=dict(self.shares.clients),
            opened=self.counts["opened"],
            resumed=self.counts["resumed"],
            returned=self.counts["returned"],
            done=self.counts["done"],
            failed=dict(self.failures),
        )

    def _handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Up(peer, key):
                yield from self.peers.up(peer, key)
            case Down(peer, reason):
                yield from self.on_down(peer, reason, for_good=False)
            case Violated(peer, reason):
                yield from self.on_down(peer, reason, for_good=True)
            case Received(peer, message):
                self.peers.heard(peer, self.now)
                yield from self._on_message(peer, message)
            case Ran():
                yield from self.on_ran(event)
                yield from self._balance()
            case Tick():
                yield from self._on_tick()
            case BeginDrain(reason):
                yield from self._begin_drain(reason)
            case Leave():
                yield from self._on_leave()
            case Acked(peer):
                self.peers.heard(peer, self.now)
                self.gauges.acked(event, self.now)
            case UploadOpened() | PartStored() | UploadFailed() | BundleLoaded() | BundleUnloaded():
                yield from self._on_bundle_news(event)
            case _:
                raise InternalError(f"a worker cannot handle {event}")

    def _on_message(self, peer: str, message: Message) -> Iterator[Instruction]:
        match message:
            case Hello():
                yield from self.on_hello(peer, message)
            case Welcome():
                yield from self.on_welcome(peer, message)
            case Reject():
                yield from self.on_reject(peer, message)
            case Ping():
                yield self._pong(peer, message)
            case Bye():
                yield from self.on_down(peer, message.reason or "it left", for_good=True)
            case Drain() if peer in self.peers.beyond:
                yield Note(f"{peer} takes nothing new: {message.reason}")  # it says so of each request by itself
            case Failed():
                yield from self.pass_back(peer, message)
            case Cancel() | Done():
                yield from self.forget(peer, message)
                yield from self._balance()
            case Open() | Chunk() if peer in self.peers.inbound or peer in self.peers.beyond:
                yield from self.on_tensors(peer, message)
                if isinstance(message, Open):
                    yield from self._balance()
            case Have():
                yield from self.on_have(peer, message)
            case BundleOffer() if peer in self.peers.inbound:
                yield from self.bundles.offer(peer, message)
            case BundlePart() if peer in self.peers.inbound:
                yield from self.bundles.part(peer, message)
            case BundleRetire() if peer in self.peers.inbound:
                yield from self._on_retire(peer, message)
            case Pong(sent_us=sent_us):
                self.gauges.ponged(peer, self.now - sent_us / 1e6, self.now)
            case Probe(reply_bytes=size_bytes) if size_bytes and peer in self.peers.inbound:
                yield Send(peer, Probe(message.seq, payload=bytes(size_bytes)))
            case _:
                pass

    def _pong(self, peer: str, ping: Ping) -> Instruction:
        waiting = min(self.waiting_runs, 1 << 31)
        wait_us = min(max(0, self._hooks.wait_us()), _MOST)
        links = self.gauges.of(self._tiers_around(peer), self.now)
        return Send(peer, Pong(ping.seq, ping.sent_us, waiting, 0, wait_us, self.shares.held_bytes, links))

    def _tiers_around(self, peer: str) -> dict[str, str]:
        """The tiers beyond, and the session that asks, by the names of their peers."""
        around = {name: beyond.tier for name, beyond in self.peers.beyond.items()}
        inbound = self.peers.inbound.get(peer)
        served = self.bundles.served.get(inbound.bundle) if inbound is not None and inbound.role == "session" else None
        if served is not None:
            around[peer] = served.tiers[0]
        return dict(list(around.items())[-MAX_HOPS:])

    def figures(self) -> Figures:
        """What there is now, for whoever watches."""
        now = self.stats()
        return Figures(
            queue=now.waiting_runs,
            flights=now.flights,
            held_bytes=now.held_bytes,
            draining=now.draining,
            links=tuple(
                LinkStats(self.tier, gauge.tier, gauge.bytes_per_s, gauge.rtt_us / 1e6, gauge.loss_permille / 1e3)
                for gauge in self.gauges.of(self._tiers_around(""), self.now)
            ),
        )

    def _on_retire(self, peer: str, message: BundleRetire) -> Iterator[Instruction]:
        known = message.bundle in self.bundles.retiring
        yield from self.bundles.retire(peer, message, self.now)
        if known or message.bundle not in self.bundles.retiring:
            return
        drain = Drain(f"bundle {message.bundle[:12]} is being retired", message.bundle, message.successor)
        yield from (Send(name, drain) for name, one in self.peers.inbound.items() if message.bundle in one.ways)

    def _on_bundle_news(self, event: BundleEvent) -> Iterator[Instruction]:
        if isinstance(event, BundleUnloaded):
            self.segments.pop(event.bundle, None)
            yield from self.peers.forget_bundle(event.bundle)
        yield from self.bundles.news(event)
        if isinstance(event, BundleLoaded) and event.bundle in self.bundles.served:
            self.segments[event.bundle] = dict(event.served.segments)

    def _begin_drain(self, reason: str) -> Iterator[Instruction]:
        if not self.bundles.draining:
            self._drain_until = self.now + self.options.drain_s
            yield from self.bundles.drain(reason or f"tier {self.tier} shuts down")
            yield from (Send(peer, Drain(self.bundles.draining)) for peer in self.peers.inbound)
            yield from self.end_lingering(all_of_them=True)

    def _finish(self) -> Iterator[Instruction]:
        """Free retired bundles that nobody uses any more; end if there is nothing left to do."""
        for bundle in self.bundles.retiring:
            if not self.runs_of(bundle) and all(flight.bundle != bundle for flight in self.flights.values()):
                yield from self.bundles.unload(bundle)
        late = self.now >= self._drain_until
        if self.bundles.draining and not self._ended and (self.is_idle() or late):
            self._ended = True
            left = f", giving up {len(self.flights)} requests" if self.flights else ""
            yield Ended(f"{self.bundles.draining}{left}")

    def _on_tick(self) -> Iterator[Instruction]:
        due, silent = self.peers.liveness.tick(self.now)
        yield from (Send(peer, Ping(0, int(self.now * 1e6))) for peer in due)
        for peer in silent:
            yield from self.lose_beyond(peer, "it went silent")
            yield from self.peers.redial(peer)
        for peer, bundle in self.peers.overdue(self.now):
            yield from self.lose_bundle(peer, bundle, f"no answer within {self.options.reach_s:g} s")
        for peer in self.peers.silent(self.now):
            yield from self.on_down(peer, "it went silent", for_good=False)
            yield Disconnect(peer)
        for flight in [one for one in self.flights.values() if self.now >= one.deadline]:
            yield from self.give_up_late(flight)
        for bundle, retirement in self.bundles.retiring.items():
            if self.now >= retirement.until:
                yield from self._give_up_bundle(bundle)
        yield from self.end_lingering()
        yield from self.peers.tidy(self.now)
        yield from self._balance()

    def _give_up_bundle(self, bundle: str) -> Iterator[Instruction]:
        for flight in [one for one in self.flights.values() if one.bundle == bundle]:
            text = f"bundle {bundle[:12]} was retired before the request was done"
            yield from self.fail(flight, self.tier, "draining", text, retryable=True)
            yield from self.drop(flight)

    def _balance(self) -> Iterator[Instruction]:
        yield from self.shares.balance(self._data_peer, is_working=bool(self.waiting_runs))

    def _data_peer(self, sid: str) -> str | None:
        session = inbound_name(sid)
        return session if session in self.peers.inbound else None

    def _on_leave(self) -> Iterator[Instruction]:
        self.bundles.draining = self.bundles.draining or f"tier {self.tier} shuts down"
        self._ended = True
        welcome = (peer for peer, beyond in self.peers.beyond.items() if beyond.welcomed)
        yield from (Send(peer, Bye(f"tier {self.tier} shuts down")) for peer in (*self.peers.inbound, *welcome))
