"""Who is connected to a worker, what each was told, and how the tiers beyond are reached.

Inbound peers are sessions and the workers before this one; peers beyond are the tiers that this one passes requests on
to, at the addresses that sessions name or the operator fixed. One connection serves all bundles: a peer says Hello for
each, and nothing of a bundle travels before its Welcome. What the requests do meanwhile is in `worker_machine.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flagsplit.errors import ProtocolError
from flagsplit.runtime.events import Connect, Disconnect, Instruction, Send
from flagsplit.runtime.liveness import Liveness
from flagsplit.runtime.peer_records import Beyond, Inbound
from flagsplit.runtime.worker_options import WorkerOptions
from flagsplit.transport.channel import inbound_name
from flagsplit.transport.messages import (
    OLDEST_VERSION,
    VERSION,
    Chunk,
    Hello,
    Open,
    PeerAddress,
    Welcome,
)


class Peers:
    """All peers of a worker.

    Args:
        tier: the worker's own.
        instance: names this start of the process.
        fixed: addresses of tiers beyond that the operator set; they win over what sessions say.
        options: limits and times.
    """

    def __init__(self, tier: str, instance: str, fixed: Mapping[str, PeerAddress], options: WorkerOptions) -> None:
        self.tier = tier
        self.inbound: dict[str, Inbound] = {}
        self.beyond: dict[str, Beyond] = {}
        self.liveness = Liveness(options.liveness)
        self._instance = instance
        self._fixed = dict(fixed)
        self._options = options
        self._keys: dict[str, str] = {}
        self._left: dict[str, tuple[float, Inbound]] = {}

    def heard(self, peer: str, now: float) -> None:
        """A peer said something."""
        self.liveness.heard(peer, now)
        if peer in self.inbound:
            self.inbound[peer].last_heard = now

    def key_of(self, peer: str) -> str:
        """The public key that an inbound peer proved to have, or ""."""
        return self._keys.get(peer, "")

    def up(self, peer: str, key: str) -> Iterator[Instruction]:
        """A connection is there: greet a tier beyond, remember the key of whoever came."""
        beyond = self.beyond.get(peer)
        if beyond is None:
            self._keys[peer] = key
            return
        beyond.connected = True
        beyond.asked.clear()
        beyond.welcomed.clear()
        named = (bundle for one in self.inbound.values() for bundle, ways in one.ways.items() if peer in ways.values())
        for bundle in dict.fromkeys((*named, *beyond.waiting)):
            yield self._hello(peer, beyond, bundle)

    def welcome(self, peer: str, hello: Hello, tiers: Sequence[str], now: float) -> Iterator[Instruction]:
        """Let a peer in, or let it speak of one more bundle; connect to the tiers beyond that it names."""
        silence_s = self._options.liveness.missed * max(hello.heartbeat_ms / 1000, 1.0)
        known = self.inbound.get(peer)
        key = self._keys.get(peer, "")
        inbound = known or Inbound(hello.instance, hello.role, key, hello.bundle, silence_s, now)
        inbound.bundle, inbound.silence_s, inbound.features = hello.bundle, silence_s, frozenset(hello.features)
        self.inbound[peer] = inbound
        if not hello.bundle:
            return
        if peer in self._left:
            _, left = self._left.pop(peer)
            before = _names(left.ways)
        else:
            before = list(inbound.ways.get(hello.bundle, {}).values())
        inbound.ways[hello.bundle] = {}
        for tier, address in hello.peers.items():
            if tier in tiers and tiers.index(tier) > tiers.index(self.tier):
                address = self._fixed.get(tier, address)
                inbound.ways[hello.bundle][tier] = _peer_name(tier, address)
                yield from self._reach(tier, address)
        yield from self._leave_unused(before)

    def way(self, sid: str, bundle: str, tier: str) -> str:
        """The peer for a tier beyond, as a request's session or the operator named it.

        Raises:
            ProtocolError: nobody named it.
        """
        peer = inbound_name(sid)
        session = self.inbound.get(peer) or self._left.get(peer, (0.0, None))[1]
        known = session.ways.get(bundle, {}) if session is not None else {}
        name = known.get(tier) or (_peer_name(tier, self._fixed[tier]) if tier in self._fixed else None)
        if name is None or name not in self.beyond:
            raise ProtocolError(f"tier {self.tier} was not told where {tier!r} is")
        return name

    def post(self, peer: str, bundle: str, messages: Sequence[Open | Chunk], now: float) -> Iterator[Instruction]:
        """Send to a peer; what a tier beyond is not ready for waits until it is, and who left gets nothing."""
        beyond = self.beyond.get(peer)
        if beyond is None:
            if peer in self.inbound:
                yield from (Send(peer, message) for message in messages)
        elif bundle in beyond.welcomed:
            yield from (Send(peer, message) for message in messages)
        else:
            beyond.waiting_since.setdefault(bundle, now)
            beyond.waiting.setdefault(bundle, []).extend(messages)
            if beyond.connected and bundle not in beyond.asked:
                yield self._hello(peer, beyond, bundle)

    def answered(self, peer: str) -> str | None:
        """The bundle whose Hello a Welcome or Reject of a tier beyond answers; they come in order."""
        beyond = self.beyond.get(peer)
        return beyond.asked.popleft() if beyond is not None and beyond.asked else None

    def welcomed(self, peer: str, bundle: str, message: Welcome, now: float) -> Iterator[Instruction]:
        """A tier beyond takes what is of a bundle."""
        beyond = self.beyond[peer]
        beyond.welcomed.add(bundle)
        beyond.features = frozenset(message.features)
        self.liveness.watch(peer, now)
        yield from (Send(peer, waiting) for waiting in beyond.forget(bundle))

    def features_of(self, peer: str) -> frozenset[str]:
        """What a peer understands."""
        known = self.inbound.get(peer) or self.beyond.get(peer)
        return known.features if known is not None else frozenset()

    def understands(self, peer: str, bundle: str, feature: str) -> bool:
        """Whether a peer named a feature; what waits for a Welcome may go to another than was there before."""
        beyond = self.beyond.get(peer)
        if beyond is not None:
            return bundle in beyond.welcomed and feature in beyond.features
        inbound = self.inbound.get(peer)
        return inbound is not None and feature in inbound.features

    def forget(self, peer: str, now: float, *, for_good: bool) -> Iterator[Instruction]:
        """An inbound peer is gone; unless it is for good, the tiers that only it named stay connected for a while."""
        self._keys.pop(peer, None)
        inbound = self.inbound.pop(peer, None)
        if inbound is not None and for_good:
            yield from self._leave_unused(_names(inbound.ways))
        elif inbound is not None:
            self._left[peer] = now, inbound
            if len(self._left) > self._options.max_peers:
                yield from self._forget_left(next(iter(self._left)))

    def tidy(self, now: float) -> Iterator[Instruction]:
        """Leave tiers beyond whose sessions did not come back."""
        for peer in [peer for peer, (since, _) in self._left.items() if now - since >= self._options.linger_s]:
            yield from self._forget_left(peer)

    def _forget_left(self, peer: str) -> Iterator[Instruction]:
        _, inbound = self._left.pop(peer)
        yield from self._leave_unused(_names(inbound.ways))

    def forget_bundle(self, bundle: str) -> Iterator[Instruction]:
        """A bundle is not served any more."""
        everybody = (*self.inbound.values(), *(inbound for _, inbound in self._left.values()))
        names = [name for inbound in everybody for name in inbound.ways.pop(bundle, {}).values()]
        for inbound in everybody:
            inbound.bundle = "" if inbound.bundle == bundle else inbound.bundle
        for beyond in self.beyond.values():
            beyond.welcomed.discard(bundle)
            beyond.forget(bundle)
        yield from self._leave_unused(names)

    def silent(self, now: float) -> list[str]:
        """Inbound peers that have been silent for too long."""
        return [peer for peer, inbound in self.inbound.items() if now - inbound.last_heard > inbound.silence_s]

    def overdue(self, now: float) -> list[tuple[str, str]]:
        """Peer and bundle of what has waited too long for a tier beyond."""
        return [
            (peer, bundle)
            for peer, beyond in self.beyond.items()
            for bundle, since in beyond.waiting_since.items()
            if now - since > self._options.reach_s
        ]

    def redial(self, peer: str) -> Iterator[Instruction]:
        """Connect anew to a tier beyond that went silent."""
        beyond = self.beyond.get(peer)
        if beyond is not None:
            yield Disconnect(peer)
            yield Connect(peer, beyond.address.address, beyond.address.server_key)

    def _hello(self, peer: str, beyond: Beyond, bundle: str) -> Instruction:
        beyond.asked.append(bundle)
        heartbeat_ms = int(self._options.liveness.heartbeat_s * 1000)
        features = self._options.features
        return Send(
            peer, Hello(OLDEST_VERSION, VERSION, self._instance, "worker", bundle, heartbeat_ms, features=features)
        )

    def _reach(self, tier: str, address: PeerAddress) -> Iterator[Instruction]:
        name = _peer_name(tier, address)
        if name not in self.beyond:
            self.beyond[name] = Beyond(tier, address)
            yield Connect(name, address.address, address.server_key)

    def _leave_unused(self, names: Iterable[str]) -> Iterator[Instruction]:
        """Disconnect from tiers beyond that no session names any more."""
        everybody = (*self.inbound.values(), *(inbound for _, inbound in self._left.values()))
        named = {name for inbound in everybody for name in _names(inbound.ways)}
        for name in dict.fromkeys(names):
            if name in named or name not in self.beyond:
                continue
            self.liveness.forget(name)
            del self.beyond[name]
            yield Disconnect(name)


def _names(ways: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [name for named in ways.values() for name in named.values()]


def _peer_name(tier: str, address: PeerAddress) -> str:
    return f"{tier}@{address.address}"
