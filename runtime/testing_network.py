"""The network of a `flagsplit.runtime.testing.Cluster`: connections that are dialed, fail, and carry messages.

It keeps the promises of a `flagsplit.transport.Channel` and no more, see `testing.py`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flagsplit.errors import InternalError
from flagsplit.runtime.events import Event, Run
from flagsplit.transport.channel import Down, Received, Up, inbound_name
from flagsplit.transport.messages import Chunk, Hello, Lane, Message, Open, decode, encode
from flagsplit.transport.testing import VirtualClock

Span = tuple[float, float]


@dataclass(frozen=True)
class Times:
    """How long things take, each drawn evenly from a span of seconds.

    Attributes:
        delay_s: a message on its way.
        notice_s: from the end of a connection until the other side is told.
        redial_s: between two attempts to connect.
        run_s: a segment on an engine that is not slowed down.
    """

    delay_s: Span = (0.001, 0.03)
    notice_s: Span = (0.0, 0.3)
    redial_s: Span = (0.05, 0.5)
    run_s: Span = (0.001, 0.05)


@dataclass(eq=False)
class Connection:
    """Two ends, the one that dialed first. `names` is what each calls the other, `open` whether it still listens."""

    ends: tuple["Node", "Node"]
    names: tuple[str, str]
    open: list[bool] = field(default_factory=lambda: [True, True])
    introduced: bool = False
    last_due: dict[tuple[int, Lane], float] = field(default_factory=dict)
    flying: list["Flying"] = field(default_factory=list)


@dataclass(eq=False)
class Flying:
    """A message under way."""

    connection: Connection
    target: int
    message: Message


@dataclass(eq=False)
class Node:
    """A process, from its start to its end."""

    tier: str
    instance: str
    machine: Any  # a `Machine` of any kind; tests look into them
    alive: bool = True
    stopped: bool = False
    jobs: list[tuple[Run, float]] = field(default_factory=list)
    is_busy: bool = False
    next_tick: float = -1.0
    dials: dict[str, str] = field(default_factory=dict)
    told_down: set[str] = field(default_factory=set)
    connections: dict[str, Connection] = field(default_factory=dict)
    accepted: list[Connection] = field(default_factory=list)
    parts: dict[str, bytearray] = field(default_factory=dict)
    uploads: dict[int, str] = field(default_factory=dict)
    missed: list[Event] = field(default_factory=list)


class World(Protocol):
    """What the network needs of its cluster."""

    clock: VirtualClock
    watch: Callable[[str, str, Message], None]
    fate: Callable[[str, str, Message], Sequence[float]]

    def node(self, tier: str) -> Node:
        """The process of a tier as it is now."""

    def tell_node(self, node: Node, event: Event) -> None:
        """Hand an event to a process."""

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something at a time."""

    def later(self, span: Span, action: Callable[[], None]) -> None:
        """Do something after a time that is drawn from a span."""

    def note(self, text: str) -> None:
        """Add to the story."""


class Network:
    """All connections of a cluster.

    Attributes:
        highest_attempt: of all attempts that were announced.
    """

    def __init__(self, world: World, times: Times, draws: random.Random) -> None:
        self.highest_attempt = 0
        self._world, self._times, self._random = world, times, draws
        self._partitions: set[frozenset[str]] = set()
        self._cut_off: list[Flying] = []

    def partition(self, one: str, other: str) -> None:
        """Hold back everything between two tiers, and tell nobody."""
        self._partitions.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """End a partition; what was held back arrives, where the connection is still there."""
        self._partitions.discard(frozenset((one, other)))
        held, self._cut_off = self._cut_off, []
        for flying in held:
            self._arrive(flying)

    def _is_cut(self, one: Node, other: Node) -> bool:
        return frozenset((one.tier, other.tier)) in self._partitions

    def dial(self, node: Node, peer: str) -> None:
        """Try to connect, and again until it works or nobody wants it."""
        if not node.alive or peer not in node.dials or peer in node.connections:
            return
        target = self._world.node(node.dials[peer])
        if node.stopped:
            pass  # tries again when it goes on
        elif target.alive and not target.stopped and not self._is_cut(node, target):
            connection = Connection((node, target), (peer, inbound_name(node.instance)))
            node.connections[peer] = connection
            target.accepted.append(connection)
            node.told_down.discard(peer)
            self._world.tell_node(node, Up(peer))
            return
        elif peer not in node.told_down:
            node.told_down.add(peer)
            self._world.tell_node(node, Down(peer, "nobody answers"))
        self._world.later(self._times.redial_s, lambda: self.dial(node, peer))

    def hang_up(self, node: Node, peer: str) -> None:
        """End the connection with a peer."""
        connection = node.connections.pop(peer, None)
        if connection is not None:
            self.close(connection, connection.ends.index(node), "the peer hung up")

    def close(self, connection: Connection, end: int, reason: str) -> None:
        """One end is gone; the other notices in a while and may still get what was under way."""
        connection.open[end] = False
        if connection.open[1 - end]:
            self._world.later(self._times.notice_s, lambda: self.lose(connection, 1 - end, reason))

    def lose(self, connection: Connection, end: int, reason: str) -> None:
        node, peer = connection.ends[end], connection.names[end]
        if not connection.open[end]:
            return
        connection.open[end] = False
        if connection.open[1 - end]:
            self.close(connection, end, reason)
        if node.connections.get(peer) is connection:
            del node.connections[peer]
            self._world.tell_node(node, Down(peer, reason))
        if peer in node.dials:
            self._world.later(self._times.redial_s, lambda: self.dial(node, peer))

    def send(self, node: Node, peer: str, message: Message) -> None:
        """Put a message on its way, if there is a connection."""
        connection = node.connections.get(peer)
        if connection is None:
            return
        if isinstance(message, Open):
            self.highest_attempt = max(self.highest_attempt, message.attempt)
        target = 1 - connection.ends.index(node)
        key = (target, message.LANE)
        due = max(
            connection.last_due.get(key, 0.0), self._world.clock.now_s() + self._random.uniform(*self._times.delay_s)
        )
        connection.last_due[key] = due
        message = decode(encode(message))
        for late_s in self._world.fate(node.tier, connection.ends[target].tier, message):
            flying = Flying(connection, target, message)
            connection.flying.append(flying)
            self._world.at(due + late_s, lambda flying=flying: self._arrive(flying))  # type: ignore[misc]

    def withdraw(self, node: Node, peer: str, sid: str, rid: int) -> None:
        """What has left already arrives nevertheless: a part of what is under way, the oldest first."""
        connection = node.connections.get(peer)
        if connection is None:
            return
        target = 1 - connection.ends.index(node)
        queued = [
            flying for flying in connection.flying if flying.target == target and _is_of(flying.message, sid, rid)
        ]
        for flying in queued[self._random.randint(0, len(queued)) :]:
            connection.flying.remove(flying)

    def _arrive(self, flying: Flying) -> None:
        connection, message = flying.connection, flying.message
        source, target = connection.ends[1 - flying.target], connection.ends[flying.target]
        if flying not in connection.flying:
            return
        if self._is_cut(source, target):
            self._cut_off.append(flying)
            return
        if connection.open[flying.target]:
            self._world.watch(source.tier, target.tier, message)
        connection.flying.remove(flying)
        if not connection.open[flying.target] or not target.alive:
            return
        peer = connection.names[flying.target]
        if flying.target == 1 and not connection.introduced:
            if not isinstance(message, Hello):
                raise InternalError(f"{type(message).__name__} came before Hello")
            self._introduce(connection)
        self._world.note(f"{source.tier} → {target.tier}: {_brief(message)}")
        self._world.tell_node(target, Received(peer, message))

    def _introduce(self, connection: Connection) -> None:
        target, peer = connection.ends[1], connection.names[1]
        connection.introduced = True
        if peer in target.connections:
            self.lose(target.connections[peer], 1, "it connected anew")
        target.connections[peer] = connection
        self._world.tell_node(target, Up(peer))


def _is_of(message: Message, sid: str, rid: int) -> bool:
    return isinstance(message, Open | Chunk) and (message.sid, message.rid) == (sid, rid)


def _brief(message: Message) -> str:
    about = [f"{name} {getattr(message, name)}" for name in ("rid", "attempt", "hop", "code") if hasattr(message, name)]
    return " ".join((type(message).__name__, *about))
