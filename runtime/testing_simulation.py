"""Processes on a clock that only moves when told, and the network between them: what fakes of the runtime are made of.

The network, which is in `testing_network.py`, keeps the promises of a `flagsplit.transport.Channel` and no more:
messages are in order per connection and lane, those under way are lost when an end dies, a death is noticed late, and a
process or a link may fall silent without a word. Only `fate` breaks these promises, where a test sets it. All chance
comes from one seed, so a history can be told again.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from flagsplit.runtime.events import (
    BeginDrain,
    Connect,
    Disconnect,
    Ended,
    Event,
    Instruction,
    Leave,
    Note,
    Send,
    Tick,
    Withdraw,
)
from flagsplit.runtime.shell import Machine
from flagsplit.runtime.testing_network import Network, Node, Span, Times
from flagsplit.transport.messages import Message
from flagsplit.transport.testing import VirtualClock


class Simulation:
    """Machines, each in a process of its own; who inherits from it says what else their instructions do.

    Args:
        seed: same seed and same calls, same history.
        times: how long things take.

    Attributes:
        clock: the time.
        random: all chance.
        network: all connections.
        watch: called with source tier, target tier and message just before a message arrives; may kill either.
        fate: called with source tier, target tier and message when a message is sent; gives, for each copy that is to
            arrive, by how many seconds it is late. Nothing loses it; one that is late loses its place in its lane.
        overhear: called with tier and instruction before an instruction is followed.
        story: what happened, the newest last.
    """

    def __init__(self, seed: int, times: Times | None = None) -> None:
        self.clock = VirtualClock()
        self.random = random.Random(seed)  # noqa: S311 - a seeded simulation
        self.watch: Callable[[str, str, Message], None] = lambda _source, _target, _message: None
        self.fate: Callable[[str, str, Message], Sequence[float]] = lambda _source, _target, _message: (0.0,)
        self.overhear: Callable[[str, Instruction], None] = lambda _tier, _instruction: None
        self.story: deque[str] = deque(maxlen=400)
        self._times = times or Times()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.network = Network(self, self._times, self.random)
        self._nodes: dict[str, Node] = {}

    @property
    def highest_attempt(self) -> int:
        """Of all attempts that were announced."""
        return self.network.highest_attempt

    def node(self, tier: str) -> Node:
        """The process of a tier, or of a session or client by its name, as it is now."""
        return self._nodes[tier]

    def is_alive(self, tier: str) -> bool:
        """Whether a tier's process runs, frozen or not."""
        return self._nodes[tier].alive

    def host(self, name: str, tier: str, instance: str, machine: Machine, first: list[Instruction]) -> Node:
        """Let a machine of any kind take part; it dials `sim://TIER`."""
        node = self._nodes[name] = Node(tier, instance, machine)
        self._follow(node, first)
        self._plan_tick(node)
        return node

    def tell(self, name: str, event: Event) -> None:
        """Let a process learn of something that no other method brings about."""
        self.tell_node(self._nodes[name], event)

    def drain(self, tier: str) -> None:
        """Ask a process to finish what it has and end."""
        self.tell(tier, BeginDrain("this worker is to end"))

    def kill(self, tier: str) -> None:
        """End a process without a last word."""
        self._end(self._nodes[tier], "killed")

    def leave(self, tier: str) -> None:
        """End a process in order."""
        self._leave(self._nodes[tier])

    def stop(self, tier: str) -> None:
        """Freeze a process: it neither hears nor says anything, and nobody is told."""
        self._nodes[tier].stopped = True
        self.note(f"{tier} freezes")

    def resume(self, tier: str) -> None:
        """Let a frozen process go on with what it missed."""
        node = self._nodes[tier]
        node.stopped = False
        self.note(f"{tier} goes on")
        missed, node.missed = node.missed, []
        for event in missed:
            self.tell_node(node, event)
        self._plan_tick(node)

    def lose(self, one: str, other: str) -> None:
        """Break the connections between two processes, both of which live on."""
        ends = {self._nodes[one], self._nodes[other]}
        for node in (self._nodes[one], self._nodes[other]):
            for connection in list(node.connections.values()):
                if set(connection.ends) == ends and node is connection.ends[0]:
                    self.note(f"{one} and {other} lose each other")
                    for end in (0, 1):
                        self.later(self._times.notice_s, partial(self.network.lose, connection, end, "reset"))

    def partition(self, one: str, other: str) -> None:
        """Hold back everything between two tiers, and tell nobody."""
        self.network.partition(one, other)

    def heal(self, one: str, other: str) -> None:
        """End a partition; what was held back arrives, where the connection is still there."""
        self.network.heal(one, other)

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._agenda, (max(time_s, self.clock.now_s()), next(self._numbers), action))

    def later(self, span: Span, action: Callable[[], None]) -> None:
        """Do something after a time that is drawn from a span of seconds."""
        self.at(self.clock.now_s() + self.random.uniform(*span), action)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.now_s() + seconds
        while self._agenda and self._agenda[0][0] <= end:
            due, _, action = heapq.heappop(self._agenda)
            self.clock.advance(max(0.0, due - self.clock.now_s()))
            action()
        self.clock.advance(max(0.0, end - self.clock.now_s()))  # the sum of the steps may end a rounding later

    def note(self, text: str) -> None:
        """Add to the story."""
        self.story.append(f"{self.clock.now_s():.3f} {text}")

    def tell_node(self, node: Node, event: Event) -> None:
        """Hand an event to a process, unless it is dead."""
        if not node.alive:
            return
        if node.stopped:
            node.missed.append(event)
            return
        self._follow(node, node.machine.handle(event, self.clock.now_s()))
        self._plan_tick(node)

    def _new_instance(self) -> str:
        return self.random.randbytes(16).hex()

    def _plan_tick(self, node: Node) -> None:
        due = node.machine.next_tick()
        if node.alive and not node.stopped and not self.clock.now_s() < node.next_tick <= due:
            node.next_tick = max(due, self.clock.now_s() + 1e-6)
            if node.next_tick < float("inf"):
                self.at(node.next_tick, lambda: self._tick(node))

    def _tick(self, node: Node) -> None:
        if node.alive and not node.stopped:
            node.next_tick = -1.0
            if node.machine.next_tick() <= self.clock.now_s():
                self.tell_node(node, Tick())
            self._plan_tick(node)

    def _end(self, node: Node, how: str) -> None:
        if not node.alive:
            return
        node.alive = False
        self.note(f"{node.tier} is {how}")
        for connection in dict.fromkeys((*node.connections.values(), *node.accepted)):
            self.network.close(connection, connection.ends.index(node), f"{node.tier} is gone")

    def _leave(self, node: Node) -> None:
        if node.alive:
            self.tell_node(node, Leave())
            self._end(node, "left")

    def _follow(self, node: Node, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self.overhear(node.tier, instruction)
            match instruction:
                case Send(peer, message):
                    self.network.send(node, peer, message)
                case Connect(peer, address, _):
                    node.dials[peer] = address.removeprefix("sim://")
                    node.told_down.discard(peer)
                    self.later((0.0, 0.01), partial(self.network.dial, node, peer))
                case Disconnect(peer):
                    node.dials.pop(peer, None)
                    self.network.hang_up(node, peer)
                case Withdraw(peer, sid, rid):
                    self.network.withdraw(node, peer, sid, rid)
                case Ended(reason):
                    self.note(f"{node.tier} ended: {reason}")
                    self.later((0.0, 0.0), partial(self._leave, node))
                case Note(text):
                    self.note(f"{node.tier}: {text}")
                case _:
                    self._do(node, instruction)

    def _do(self, node: Node, instruction: Instruction) -> None:
        """Follow an instruction that is not about connections."""
        raise NotImplementedError
