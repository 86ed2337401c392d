"""What streams must give in a `StreamWorld`, and the made-up engines there that give it.

Tokens are hashes of everything that a stream should have by then.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flagsplit.errors import InternalError
from flagsplit.runtime.generation.events import Generate, Refused, Tokens
from flagsplit.runtime.generation.service_machine import StreamFacts
from flagsplit.runtime.generation.stream_events import Generated, StreamRequest
from flagsplit.runtime.testing_network import Node, Span
from flagsplit.targets.interface import Array

BUNDLE = "b" * 64
VOCABULARY, STOP, PROMPT, WIDTH = 97, 0, (1,), 4
FACTS = StreamFacts({"p1": ("hidden",), "p2": ("audio", "mask")}, VOCABULARY, PROMPT, WIDTH)
STEP_S: Span = (0.02, 0.12)


def encode(cut: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Stands for what is left of the encoder."""
    story = cut.encode() + b"".join(tensors[name].tobytes() for name in FACTS.cuts[cut])
    return {"hidden": np.frombuffer(hashlib.sha256(story).digest(), np.uint8).astype(np.float32)[None, :, None]}


def token_after(story: bytes, tokens: Sequence[int], seed: int = 0) -> int:
    """The next token; `STOP` is rare."""
    digest = hashlib.sha256(story + np.array([seed, *tokens], np.int64).tobytes()).digest()
    return STOP if digest[0] < 5 else 2 + digest[1] % (VOCABULARY - 2)


def rows_of(tokens: Sequence[int], position: int) -> Array:
    """Stands for the first layers: each row depends on all tokens up to it."""
    return np.stack([_row(tokens[: index + 1]) for index in range(position, len(tokens))])


def _row(tokens: Sequence[int]) -> Array:
    digest = hashlib.sha256(np.array(tokens, np.int64).tobytes()).digest()
    return np.frombuffer(digest[:WIDTH], np.uint8).astype(np.float32)


def expected(request: StreamRequest) -> tuple[list[int], str]:
    """What a stream must give, and why it ends."""
    made: list[int] = []
    prompt = list(request.prompt or PROMPT)
    story = b"" if request.tensors is None else encode(request.plan, request.tensors)["hidden"].tobytes()
    while len(made) < request.options.max_tokens:
        if request.tensors is None:
            story = rows_of([*prompt, *made], 0).tobytes()
            token = token_after(story, (), request.options.seed)
        else:
            token = token_after(story, [*prompt, *made], request.options.seed)
        if token == STOP:
            return made, "stop"
        made.append(token)
    return made, "length"


class World(Protocol):
    """What an engine needs of its world."""

    def later(self, span: Span, action: Callable[[], None]) -> None:
        """Do something after a time that is drawn from a span."""

    def tell_node(self, node: Node, event: Generated) -> None:
        """Hand an event to a process."""


@dataclass
class _Running:
    generate: Generate
    made: int
    rows: list[Array] = field(default_factory=list)


class MadeUpEngine:
    """Makes the tokens of one service."""

    def __init__(self, world: World, node: Node, slots: int) -> None:
        self._world, self._node, self._slots = world, node, slots
        self.running: dict[str, _Running] = {}

    def submit(self, generate: Generate) -> None:
        name = generate.stream_id
        here = self.running.get(name)
        if generate.position and (here is None or sum(map(len, here.rows)) != generate.position):
            self.running.pop(name, None)
            self._say(Refused(name, "no-state", "these rows are not here"))
            return
        if here is None and len(self.running) >= self._slots:
            self._say(Refused(name, "busy", "all slots are taken", 0.3))
            return
        if here is not None and not generate.position:
            raise InternalError(f"{name} began twice")
        running = self.running[name] = here or _Running(generate, generate.generated)
        running.generate = generate
        if generate.rows is not None:
            running.rows.append(generate.rows)
        self._step_later(name, running)

    def cancel(self, name: str) -> None:
        self.running.pop(name, None)

    def _step_later(self, name: str, running: _Running) -> None:
        self._world.later(STEP_S, lambda: self._step(name, running))

    def _step(self, name: str, running: _Running) -> None:
        if self.running.get(name) is not running or not self._node.alive:
            return
        if self._node.stopped:
            self._step_later(name, running)
            return
        generate, options = running.generate, running.generate.options
        if generate.rows is not None:
            running.made = generate.generated
            token = token_after(np.concatenate(running.rows).tobytes(), (), options.seed)
        else:
            assert generate.context is not None
            made = running.made - generate.generated
            known = getattr(running, "tokens", list(generate.tokens)) if made else list(generate.tokens)
            running.tokens = known  # type: ignore[attr-defined]
            token = token_after(generate.context["hidden"].tobytes(), known, options.seed)
        offset = running.made
        if token == STOP:
            self._end(name, Tokens(name, offset, (), done=True, reason="stop"))
            return
        running.made += 1
        if generate.rows is None:
            running.tokens.append(token)  # type: ignore[attr-defined]
        if running.made >= options.max_tokens:
            self._end(name, Tokens(name, offset, (token,), done=True, reason="length"))
            return
        self._say(Tokens(name, offset, (token,), done=generate.rows is not None))
        if generate.rows is None:
            self._step_later(name, running)

    def _end(self, name: str, event: Tokens) -> None:
        del self.running[name]
        self._say(event)

    def _say(self, event: Tokens | Refused) -> None:
        self._world.later((0.0, 0.002), lambda: self._world.tell_node(self._node, Generated(event)))
