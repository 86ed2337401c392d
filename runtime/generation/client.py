"""A client of token streams: asks replicas of one tier for tokens, and loses none of them when a replica goes."""

import itertools
import logging
import math
import operator
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from flagsplit.errors import FlagsplitError, InputError, PeerError
from flagsplit.runtime.events import Instruction, Note
from flagsplit.runtime.generation.client_machine import ClientMachine
from flagsplit.runtime.generation.client_replicas import ClientFacts
from flagsplit.runtime.generation.client_streams import ClientOptions
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.own_parts import FirstLayers, OwnLoop, OwnParts
from flagsplit.runtime.generation.stream_events import (
    Ask,
    GiveTokens,
    MakeRows,
    Over,
    RunLocal,
    Stop,
    StopLocal,
    StreamRequest,
)
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.runtime.shell import NoEngine, Shell, describe
from flagsplit.targets.interface import Array
from flagsplit.transport.channel import Channel
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

_log = logging.getLogger(__name__)
_NAME_BYTES, _PLAN_BYTES, _TENSOR_BYTES = 64, 128, 256
_MOST_TENSORS = 255  # An Open has 256, and tokens are one of them.
_MOST_TOKEN = 1 << 31


@dataclass(frozen=True)
class ClientSettings:
    """Choices of the application.

    Attributes:
        tier: the tier that the replicas are.
        own: this process's tier.
        deadline_s: seconds that a stream may take unless it says otherwise.
        connect_s: how long to wait at the start until a replica is there.
        keys: folder of the CURVE keys; `$FLAGSPLIT_HOME/keys` or `~/.config/flagsplit/keys` by default.
        machine: how replicas are chosen, patience, heartbeats.
    """

    tier: str = "cloud"
    own: str = "phone"
    deadline_s: float = 120.0
    connect_s: float = 5.0
    keys: Path | None = None
    machine: ClientOptions = field(default_factory=ClientOptions)


class StreamClient:
    """Streams from replicas of one tier. Use it in a `with` statement, or call `close`; any thread may ask.

    Args:
        replicas: their addresses; all make the same tokens of the same bundle. None at all leaves the own loop.
        bundle: digest of the bundle or program that they serve.
        local: the whole model on this side, to go on with where no replica takes a stream.
        layers: the first layers of a model, for `stream_rows`.
        channel: the way to the replicas, which the client closes; by default ZeroMQ with the keys of the settings.
        settings: choices of the application.

    Raises:
        ConfigError: an address or the keys are wrong.
    """

    def __init__(
        self,
        replicas: Sequence[str | PeerAddress],
        bundle: str,
        *,
        local: OwnLoop | None = None,
        layers: FirstLayers | None = None,
        channel: Channel | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._rids = itertools.count(1)
        self._streams: dict[int, TokenStream] = {}
        self._lock = threading.Lock()
        self._broken: FlagsplitError | None = None
        self._has_layers = layers is not None
        channel = channel or ZmqChannel(security=KeyStore(self._settings.keys).security())
        addresses = [PeerAddress(each) if isinstance(each, str) else each for each in replicas]
        facts = ClientFacts(bundle, self._settings.tier, self._settings.own)
        self._machine = ClientMachine(
            facts, addresses, channel.instance, self._settings.machine, has_local=local is not None
        )
        self._shell = Shell(self._machine, channel, NoEngine(), self._tell, self._broke, "flagsplit-streams")
        self._own = OwnParts(local, layers, self._shell.post)
        self._shell.start(self._machine.start())
        self._await_replica()

    def stream(
        self,
        tensors: Mapping[str, Array],
        options: GenerationOptions | None = None,
        *,
        plan: str = "",
        prompt: Sequence[int] = (),
        delivered: Sequence[int] = (),
        key: str = "",
        deadline_s: float | None = None,
        input_s: float = 0.0,
        name: str = "",
    ) -> TokenStream:
        """Ask for the tokens that follow from some tensors, without waiting for them.

        Args:
            tensors: those that cross the cut of `plan`, by name. They are copied.
            options: of the generation; greedy by default.
            plan: whose cut the tensors cross.
            prompt: tokens to begin with; none takes the model's own.
            delivered: tokens of this stream that came before, to another client maybe; it goes on after them.
            key: streams of one key go to the same replica as long as it is there; by default each has its own.
            deadline_s: seconds after which it ends, with what it has; by default that of the options or the settings.
            input_s: seconds of input, for models that make only so many tokens a second; 0 is not known.
            name: for logs, at most 64 bytes.

        Raises:
            InputError: a tensor cannot be sent, or the deadline is no number.
            PeerError: the client is closed.
        """
        copied = {each: np.array(array, order="C") for each, array in tensors.items()}
        request = StreamRequest(
            copied,
            _tokens("prompt", prompt),
            plan=plan,
            key=key,
            input_s=input_s,
            name=name,
            delivered=_tokens("delivered", delivered),
        )
        return self._ask(request, options, deadline_s)

    def stream_rows(
        self,
        prompt: Sequence[int],
        options: GenerationOptions | None = None,
        *,
        plan: str = "",
        key: str = "",
        deadline_s: float | None = None,
        name: str = "",
    ) -> TokenStream:
        """Ask for the tokens that follow a prompt, of a model whose first layers run here: no token leaves but as rows.

        Args:
            prompt: at least one token.
            options, plan, key, deadline_s, name: as for `stream`.

        Raises:
            InputError: there is no prompt, or the client was made without `layers`.
            PeerError: the client is closed.
        """
        tokens = _tokens("prompt", prompt)
        if not tokens or not self._has_layers:
            raise InputError("rows: expected a prompt of at least one token, and a client that was given `layers`")
        return self._ask(StreamRequest(None, tokens, plan=plan, key=key, name=name), options, deadline_s)

    def _ask(self, request: StreamRequest, options: GenerationOptions | None, deadline_s: float | None) -> TokenStream:
        options = options or GenerationOptions()
        seconds = options.deadline_s or self._settings.deadline_s if deadline_s is None else deadline_s
        if math.isnan(seconds):
            raise InputError("expected seconds until the deadline, came nan; math.inf waits for ever")
        _check(request, options)
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if not self._shell.is_running:
                raise PeerError("the client of token streams is closed; make another")
            rid = next(self._rids)
            found = self._streams[rid] = TokenStream(rid, lambda number: self._shell.post(Stop(number)))
        self._shell.post(Ask(rid, replace(request, options=options, deadline=time.monotonic() + seconds)))
        return found

    @property
    def replicas(self) -> dict[str, str]:
        """For each replica "up", or why it takes no streams."""
        return self._shell.ask(self._machine.replicas.states)

    @property
    def moves(self) -> dict[str, int]:
        """How often streams left a replica, by reason: "lost", "silent", "stalled", "gap", or a code of Failed."""
        return self._shell.ask(lambda: dict(self._machine.moves))

    @property
    def live(self) -> int:
        """How many streams are not over."""
        with self._lock:
            return len(self._streams)

    def close(self) -> None:
        """End what goes on, say goodbye, free everything. A second call does nothing."""
        self._shell.stop()
        self._own.stop()
        self._end_all(PeerError("the client was closed before the stream was over"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_replica(self) -> None:
        """Wait until one replica is there; going on without is no error."""
        until = time.monotonic() + self._settings.connect_s
        states = self.replicas
        while states and "up" not in states.values() and time.monotonic() < until:
            time.sleep(0.01)
            states = self.replicas

    def _tell(self, instruction: Instruction) -> None:
        match instruction:
            case GiveTokens(rid, offset, tokens, place, scores):
                self._streams[rid].give(offset, tokens, place, scores)
            case Over(rid, reason, error):
                with self._lock:
                    ended = self._streams.pop(rid)
                self._own.forget(rid)
                ended.end(reason, error)
            case RunLocal() | MakeRows():
                self._own.submit(instruction)
            case StopLocal(rid):
                self._own.forget(rid)
            case Note(text):
                _log.info("%s", text)

    def _broke(self, error: Exception) -> None:
        _log.error("the client of token streams broke: %s: %s", type(error).__name__, error)
        self._broken = describe(error)
        self._end_all(self._broken)

    def _end_all(self, error: FlagsplitError) -> None:
        with self._lock:
            left, self._streams = list(self._streams.values()), {}
        for stream in left:
            stream.end("", error)


def _check(request: StreamRequest, options: GenerationOptions) -> None:
    """Raise InputError for what no message can say."""
    limits: dict[str, tuple[object, float]] = {
        "plan": (request.plan, _PLAN_BYTES),
        "key": (request.key, math.inf),
        "name": (request.name, _NAME_BYTES),
    }
    for what, (text, most_bytes) in limits.items():
        _check_text(what, text, most_bytes)
    tensors = request.tensors or {}
    if len(tensors) > _MOST_TENSORS:
        raise InputError(f"expected at most {_MOST_TENSORS} tensors, came {len(tensors)}")
    for name in tensors:
        _check_text("the name of a tensor", name, _TENSOR_BYTES)
    seconds: object = request.input_s
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise InputError(f"input_s: expected seconds, 0 if they are not known, came {seconds!r:.80}")
    if len(request.delivered) > options.max_tokens:
        raise InputError(
            f"delivered: expected at most max_tokens, {options.max_tokens}, came {len(request.delivered)} tokens"
        )


def _check_text(what: str, text: object, most_bytes: float) -> None:
    if not isinstance(text, str):
        raise InputError(f"{what}: expected a text, came {text!r:.80}")
    try:
        is_short = len(text.encode()) <= most_bytes
    except UnicodeEncodeError:
        raise InputError(f"{what}: expected whole characters, came {text!r:.80}") from None
    if not is_short:
        raise InputError(f"{what}: expected at most {most_bytes} bytes, came {text!r:.80}")


def _tokens(what: str, given: Sequence[int]) -> tuple[int, ...]:
    """Tokens as plain numbers: what is none would break the client, and with it all of its streams."""
    try:
        found = tuple(operator.index(each) for each in given)
    except TypeError:
        found = (-1,)
    if not all(0 <= each < _MOST_TOKEN for each in found):
        raise InputError(f"{what}: expected tokens, whole numbers from 0, came {given!r:.80}")
    return found
