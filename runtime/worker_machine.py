"""The worker as a pure state machine: what each event and message means, and when what is due.

Requests are in `worker_flights.py`, peers in `worker_peers.py`, bundles in `worker_bundles.py`, memory and fairness in
`worker_shares.py`; sockets, files and threads are `worker.py`'s.
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
from flagsplit.runtime.worker_bundles import Bundles
from flagsplit.runtime.worker_flights import WorkerFlights
from flagsplit.runtime.worker_options import WorkerHooks as WorkerHooks
from flagsplit.runtime.worker_options import WorkerOptions as WorkerOptions
from flagsplit.runtime.worker_options import WorkerStats as WorkerStats
from flagsplit.runtime.worker_peers import Peers, refusal_of_version
from flagsplit.transport.channel import Down, Received, Up, Violated, inbound_name
from flagsplit.transport.messages import (
    BUNDLES,
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
    Reject,
    Welcome,
    agreed_version,
)
from flagsplit.transport.tensors import TransferLimits

_MOST: Final = 2**53 - 1


class WorkerMachine(WorkerFlights):
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
        super().__init__(peers, bundles, options, limits or TransferLimits())
        self._instance = instance
        self._slowdown_permille = min(1_000_000, round(slowdown * 1000))
        self._drain_until = 0.0
        self._ended = False

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        said = list(self._handle(event))
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
                yield from self._on_down(peer, reason, for_good=False)
            case Violated(peer, reason):
                yield from self._on_down(peer, reason, for_good=True)
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
            case UploadOpened() | PartStored() | UploadFailed() | BundleLoaded() | BundleUnloaded():
                yield from self._on_bundle_news(event)
            case _:
                raise InternalError(f"a worker cannot handle {event}")

    def _on_message(self, peer: str, message: Message) -> Iterator[Instruction]:
        match message:
            case Hello():
                yield from self._on_hello(peer, message)
            case Welcome():
                yield from self._on_welcome(peer, message)
            case Reject():
                yield from self._on_reject(peer, message)
            case Ping():
                yield self._pong(peer, message)
            case Bye():
                yield from self._on_down(peer, message.reason or "it left", for_good=True)
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
            case _:
                pass

    def _on_hello(self, peer: str, hello: Hello) -> Iterator[Instruction]:
        if peer in self.peers.beyond:
            return
        refused = refusal_of_version(hello) or self.bundles.refusal(peer, hello)
        if peer not in self.peers.inbound and len(self.peers.inbound) >= self.options.max_peers:
            refused = refused or Reject("busy", f"{len(self.peers.inbound)} peers are connected, the limit")
        version = agreed_version(hello.version_min, hello.version_max)
        if refused is not None or version is None:
            yield Send(peer, refused or Reject("version"))
            return
        sized = (self.limits.max_tensor_bytes, self.limits.max_chunk_bytes)
        features = tuple(name for name in self.options.features if name != BUNDLES or self.options.max_bundle_bytes)
        yield Send(
            peer,
            Welcome(
                version,
                self._instance,
                0,
                hello.bundle or next(filter(self.bundles.takes_new, self.bundles.served), ""),
                self.tier,
                *sized,
                features,
                slowdown_permille=self._slowdown_permille,
            ),
        )
        served = self.bundles.served.get(hello.bundle)
        yield from self.peers.welcome(peer, hello, served.tiers if served is not None else (), self.now)
        self.session_is_back(peer)

    def _on_welcome(self, peer: str, message: Welcome) -> Iterator[Instruction]:
        bundle = self.peers.answered(peer)
        if bundle is None:
            return
        beyond = self.peers.beyond[peer]
        if message.tier != beyond.tier:
            yield from self._lose_beyond(peer, f"{beyond.address.address} serves tier {message.tier}")
        elif message.bundle != bundle:
            yield from self._lose_bundle(peer, bundle, f"it serves bundle {message.bundle[:12]}")
        else:
            yield from self.peers.welcomed(peer, bundle, message, self.now)

    def _on_reject(self, peer: str, message: Reject) -> Iterator[Instruction]:
        """A tier beyond does not take a bundle; the others that it takes go on."""
        bundle = self.peers.answered(peer)
        if bundle is not None:
            yield Note(f"{peer} refused bundle {bundle[:12]}: {message.reason}")
            yield from self._lose_bundle(peer, bundle, message.reason)

    def _pong(self, peer: str, ping: Ping) -> Instruction:
        waiting = min(self.waiting_runs, 1 << 31)
        wait_us = min(max(0, self._hooks.wait_us()), _MOST)
        links = tuple(self._hooks.gauges())
        return Send(peer, Pong(ping.seq, ping.sent_us, waiting, 0, wait_us, self.shares.held_bytes, links))

    def _on_down(self, peer: str, reason: str, *, for_good: bool) -> Iterator[Instruction]:
        if peer in self.peers.beyond:
            yield from self._lose_beyond(peer, reason)
            return
        was_here = peer in self.peers.inbound
        yield from self.peers.forget(peer, self.now, for_good=for_good)
        if was_here:
            yield Note(f"{peer} left: {reason}")
            self.shares.forget_peer(peer)
            yield from self.bundles.lost(peer)
            yield from self.leave_behind(peer, for_good=for_good)

    def _lose_beyond(self, peer: str, reason: str) -> Iterator[Instruction]:
        """Tell the sessions of all requests that went on to a peer that it is gone."""
        self.peers.liveness.forget(peer)
        self.peers.beyond[peer].lose()
        yield from self._fail_beyond(peer, None, reason)

    def _lose_bundle(self, peer: str, bundle: str, reason: str) -> Iterator[Instruction]:
        self.peers.beyond[peer].welcomed.discard(bundle)
        self.peers.beyond[peer].forget(bundle)
        yield from self._fail_beyond(peer, bundle, reason)

    def _fail_beyond(self, peer: str, bundle: str | None, reason: str) -> Iterator[Instruction]:
        tier = self.peers.beyond[peer].tier
        text = f"{tier} is not reachable from {self.tier}: {reason}"
        for flight in list(self.flights.values()):
            if flight.neighbors.get(tier) == peer and bundle in (None, flight.bundle):
                yield from self.fail(flight, tier, "unreachable", text, retryable=True)

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
            yield from self._lose_beyond(peer, "it went silent")
            yield from self.peers.redial(peer)
        for peer, bundle in self.peers.overdue(self.now):
            yield from self._lose_bundle(peer, bundle, f"no answer within {self.options.reach_s:g} s")
        for peer in self.peers.silent(self.now):
            yield from self._on_down(peer, "it went silent", for_good=False)
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
