"""The replicas of a client: which are there, which take streams, when to try one again.

What becomes of the streams of one that is gone is decided in `client_machine.py`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flagsplit.runtime.events import Connect, Disconnect, Instruction, Note, Send
from flagsplit.runtime.liveness import Liveness, LivenessOptions
from flagsplit.runtime.session_peers import WorkerPeer
from flagsplit.transport.messages import GENERATE, Hello, PeerAddress, Ping, Pong, Welcome

_EVERYTHING = ""


@dataclass(frozen=True)
class ClientFacts:
    """What a client asks for.

    Attributes:
        bundle: digest of the bundle, or of the program, that the replicas must serve.
        tier: the tier that they are.
        own: this process's tier.
    """

    bundle: str
    tier: str = "cloud"
    own: str = "phone"


@dataclass
class Replica:
    """One process that makes tokens.

    Attributes:
        peer: what is known of it as of any worker.
        instance: names the start of it that was welcomed.
        streams: how many streams of this client are there.
        wait_s: how long a new stream would wait there, as it said last.
    """

    peer: WorkerPeer
    instance: str = ""
    streams: int = 0
    wait_s: float = 0.0

    @property
    def name(self) -> str:
        """Its address."""
        return self.peer.address.address

    @property
    def load(self) -> int:
        """What it has to do, as far as is known here."""
        return max(self.peer.queue or 0, self.streams)


class Replicas:
    """All replicas of a client, by address, which is the name of the peer too.

    Args:
        facts: what they are asked for.
        addresses: where they listen.
        instance: the client's.
        liveness: heartbeats.
    """

    def __init__(
        self, facts: ClientFacts, addresses: Sequence[PeerAddress], instance: str, liveness: LivenessOptions
    ) -> None:
        self._facts, self._instance, self._options = facts, instance, liveness
        self._all = {each.address: Replica(WorkerPeer(facts.tier, each)) for each in addresses}
        self.liveness = Liveness(liveness)

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __getitem__(self, name: str) -> Replica:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def connect(self) -> Iterator[Instruction]:
        """Reach all of them."""
        for name in self._all:
            yield from self._dial(name)

    def states(self) -> dict[str, str]:
        """For each replica "up", or why it takes no streams."""
        return {
            name: "up" if self._takes(each) else "draining" if each.peer.draining else each.peer.reason
            for name, each in self._all.items()
        }

    def fit(self) -> list[Replica]:
        """Those that take new streams."""
        return [each for each in self._all.values() if self._takes(each)]

    def _takes(self, each: Replica) -> bool:
        return each.peer.takes(self._facts.bundle) and GENERATE in each.peer.features

    def is_connected(self, name: str) -> bool:
        """Whether it can be told something."""
        return self._all[name].peer.connected

    def up(self, name: str) -> Iterator[Instruction]:
        """A connection is there: say Hello."""
        peer = self._all[name].peer
        peer.connected, peer.reason = True, "it has not answered yet"
        hello: Hello = peer.hello(self._facts.bundle, self._instance, {}, self._options)
        yield Send(name, replace(hello, features=(*hello.features, GENERATE)))

    def refusal(self, message: Welcome) -> str:
        """Why one that welcomes this client is of no use, "" if it is."""
        if message.tier == self._facts.tier and GENERATE in message.features:
            return ""
        return f"it serves tier {message.tier}, and no token streams of tier {self._facts.tier}"

    def welcomed(self, name: str, message: Welcome, now: float) -> None:
        """It takes streams."""
        known = self._all[name]
        known.peer.welcomed(message)
        known.instance = message.instance
        self.liveness.watch(name, now)

    def refused(self, name: str, reason: str, now: float) -> Iterator[Instruction]:
        """It will not have this client: leave, and ask again later."""
        self.lost(name, reason)
        self._all[name].peer.had_no_room(now, self._instance)
        yield Disconnect(name)
        yield Note(f"{name} refuses: {reason}")

    def lost(self, name: str, reason: str) -> None:
        """The connection is gone, and with it all that was said on it."""
        self._all[name].peer.lost(reason)
        self.liveness.forget(name)

    def ponged(self, name: str, message: Pong) -> None:
        """It says how much it has to do."""
        self._all[name].peer.queue, self._all[name].wait_s = message.queue, message.wait_us / 1e6

    def drains(self, name: str, bundle: str) -> None:
        """It takes nothing new, of one bundle or of any."""
        if bundle in ("", self._facts.bundle):
            self._all[name].peer.draining.add(_EVERYTHING)

    def redial(self, name: str) -> Iterator[Instruction]:
        """Connect anew to one that went silent."""
        yield Disconnect(name)
        yield from self._dial(name)

    def tick(self, now: float) -> tuple[list[Instruction], list[str]]:
        """Pings, and attempts to reach who refused before; and who has been silent for too long."""
        due, silent = self.liveness.tick(now)
        said: list[Instruction] = [Send(name, Ping(0, int(now * 1e6))) for name in due]
        for name, each in self._all.items():
            if each.peer.ask_again <= now:
                each.peer.ask_again = math.inf
                said.extend(self._dial(name))
        return said, silent

    def next_tick(self) -> float:
        """When `tick` has something to do."""
        return min((self.liveness.next_tick(), *(each.peer.ask_again for each in self._all.values())))

    def _dial(self, name: str) -> Iterator[Instruction]:
        address = self._all[name].peer.address
        yield Connect(name, address.address, address.server_key)
