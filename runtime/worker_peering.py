"""Who is let in at a worker, what happens when a peer goes, and what that means for the requests.

Records of peers are in `worker_peers.py`; what else can be said is in `worker_machine.py`.
"""

from collections.abc import Callable, Iterator

from flagsplit.runtime.events import Instruction, Note, Send
from flagsplit.runtime.worker_admission import WorkerAdmission
from flagsplit.runtime.worker_bundles import Bundles
from flagsplit.runtime.worker_options import WorkerOptions
from flagsplit.runtime.worker_peers import Peers
from flagsplit.transport.messages import (
    BUNDLES,
    OLDEST_VERSION,
    VERSION,
    Hello,
    Reject,
    Version,
    Welcome,
    agreed_version,
)
from flagsplit.transport.tensors import TransferLimits


class WorkerPeering(WorkerAdmission):
    """Greets and loses peers; `WorkerMachine` hands the messages on.

    Args:
        instance: names this start of the process.
        slowdown_permille: what peers are told of how slow the engine is made.
        is_worker: whether the owner of a public key may pass on requests of any session.
    """

    def __init__(
        self,
        peers: Peers,
        bundles: Bundles,
        options: WorkerOptions,
        limits: TransferLimits,
        instance: str,
        slowdown_permille: int,
        is_worker: Callable[[str], bool],
    ) -> None:
        super().__init__(peers, bundles, options, limits)
        self._instance = instance
        self._slowdown_permille = slowdown_permille
        self._is_worker = is_worker

    def on_hello(self, peer: str, hello: Hello) -> Iterator[Instruction]:
        if peer in self.peers.beyond:
            return
        refused = _refusal_of_version(hello) or self._refusal_of_role(peer, hello) or self.bundles.refusal(peer, hello)
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

    def _refusal_of_role(self, peer: str, hello: Hello) -> Reject | None:
        """Why a peer may not speak as whom it says it is, if it may not; what it says itself proves nothing."""
        key = self.peers.key_of(peer)
        if hello.role == "worker" and not self._is_worker(key):
            text = f"your key is not known as a worker's at tier {self.tier}, and only workers pass on others' requests"
            return Reject("rights", f"{text}; run flagsplit keys allow NAME '{key or 'KEY'}' --worker there")
        if hello.role != "worker" and not self.may_speak_for(hello.instance, peer):
            return Reject("rights", "requests of a session of this name are here that another key opened")
        return None

    def on_welcome(self, peer: str, message: Welcome) -> Iterator[Instruction]:
        bundle = self.peers.answered(peer)
        if bundle is None:
            return
        beyond = self.peers.beyond[peer]
        if message.tier != beyond.tier:
            yield from self.lose_beyond(peer, f"{beyond.address.address} serves tier {message.tier}")
        elif message.bundle != bundle:
            yield from self.lose_bundle(peer, bundle, f"it serves bundle {message.bundle[:12]}")
        else:
            yield from self.peers.welcomed(peer, bundle, message, self.now)

    def on_reject(self, peer: str, message: Reject) -> Iterator[Instruction]:
        """A tier beyond does not take a bundle; the others that it takes go on."""
        bundle = self.peers.answered(peer)
        if bundle is not None:
            yield Note(f"{peer} refused bundle {bundle[:12]}: {message.reason}")
            yield from self.lose_bundle(peer, bundle, message.reason)

    def on_down(self, peer: str, reason: str, *, for_good: bool) -> Iterator[Instruction]:
        if peer in self.peers.beyond:
            yield from self.lose_beyond(peer, reason)
            return
        was_here = peer in self.peers.inbound
        yield from self.peers.forget(peer, self.now, for_good=for_good)
        if was_here:
            yield Note(f"{peer} left: {reason}")
            self.shares.forget_peer(peer)
            yield from self.bundles.lost(peer)
            yield from self.leave_behind(peer, for_good=for_good)

    def lose_beyond(self, peer: str, reason: str) -> Iterator[Instruction]:
        """Tell the sessions of all requests that went on to a peer that it is gone."""
        self.peers.liveness.forget(peer)
        self.peers.beyond[peer].lose()
        yield from self._fail_beyond(peer, None, reason)

    def lose_bundle(self, peer: str, bundle: str, reason: str) -> Iterator[Instruction]:
        self.peers.beyond[peer].welcomed.discard(bundle)
        self.peers.beyond[peer].forget(bundle)
        yield from self._fail_beyond(peer, bundle, reason)

    def _fail_beyond(self, peer: str, bundle: str | None, reason: str) -> Iterator[Instruction]:
        tier = self.peers.beyond[peer].tier
        text = f"{tier} is not reachable from {self.tier}: {reason}"
        for flight in list(self.flights.values()):
            if flight.neighbors.get(tier) == peer and bundle in (None, flight.bundle):
                yield from self.fail(flight, tier, "unreachable", text, retryable=True)


def _refusal_of_version(hello: Hello) -> Reject | None:
    """Why a peer cannot be spoken with, if it cannot."""
    if agreed_version(hello.version_min, hello.version_max) is not None:
        return None
    ours, theirs = _range(OLDEST_VERSION, VERSION), _range(hello.version_min, hello.version_max)
    return Reject("version", f"this worker speaks protocol {ours}, you {theirs}; upgrade the older side")


def _range(oldest: Version, newest: Version) -> str:
    low, high = (".".join(map(str, version)) for version in (oldest, newest))
    return low if low == high else f"{low} to {high}"
