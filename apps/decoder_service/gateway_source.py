"""Where the tokens of a gateway come from: an engine that it shares with a service, or services elsewhere."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from flagsplit.apps.decoder_service.gateway_backend import BusyError, Wanted
from flagsplit.apps.decoder_service.gateway_patience import Patience
from flagsplit.errors import FlagsplitError, InputError, UnavailableError
from flagsplit.runtime.generation.client import StreamClient
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.service import Encode, TokenEngine
from flagsplit.runtime.generation.stream_events import Place, Scores
from flagsplit.runtime.generation.token_stream import TokenStream
from flagsplit.targets.interface import Array


class Source(Protocol):
    """Makes tokens. Any thread may ask."""

    def stream(self, wanted: Wanted) -> TokenStream:
        """Begin a stream; it raises, or its tokens do, what `Backend.generate` says. May take a while."""

    def not_ready(self) -> str:
        """Why it takes no streams now, "" if it does."""


class EngineSource:
    """Tokens of an engine in this process.

    Args:
        make_engine: makes it or lends it, such as `engine_hub.EngineHub.user`.
        encode: makes of a plan's tensors what a stream begins with; called from any thread.
        tier: what is said of where tokens are made.
        not_ready: why no streams are taken, "" if they are.
    """

    def __init__(
        self,
        make_engine: Callable[[Callable[[Event], None]], TokenEngine],
        encode: Encode,
        tier: str,
        not_ready: Callable[[], str] = lambda: "",
    ) -> None:
        self._engine = make_engine(self._emit)
        self._encode = encode
        self._place = Place(tier)
        self._why_not = not_ready
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._streams: dict[str, TokenStream] = {}
        self._engine.start()

    def not_ready(self) -> str:
        """Why it takes no streams now, "" if it does."""
        return self._why_not()

    def stream(self, wanted: Wanted) -> TokenStream:
        """Begin a stream; encodes on the thread of the caller.

        Raises:
            InputError: the tensors are not what the model takes.
        """
        context: Mapping[str, Array] | None = None
        if wanted.tensors:
            context = self._encode(wanted.plan, wanted.tensors)
        number = next(self._numbers)
        name = str(number)
        found = TokenStream(number, lambda _: self._engine.cancel(name))
        with self._lock:
            self._streams[name] = found
        deadline_s = wanted.options.deadline_s
        self._engine.submit(
            Generate(
                name,
                wanted.client,
                context,
                (*wanted.prompt, *wanted.generated),
                len(wanted.generated),
                wanted.options,
                time.monotonic() + deadline_s if deadline_s else math.inf,
                input_s=wanted.input_s,
            )
        )
        return found

    def close(self) -> None:
        """End; streams that go on are cancelled. A second call does nothing."""
        with self._lock:
            left = list(self._streams)
        for name in left:
            self._engine.cancel(name)
        self._engine.stop()

    def _emit(self, event: Event) -> None:
        with self._lock:
            stream = self._streams.get(event.stream_id)
            if stream is None:
                return
            if isinstance(event, Refused) or event.done:
                del self._streams[event.stream_id]
        if isinstance(event, Tokens):
            if event.tokens or event.logprobs:
                stream.give(event.offset, event.tokens, self._place, Scores(event.logprobs, event.no_speech))
            if event.done:
                stream.end(event.reason)
        else:
            stream.end("", error_of(event))


def error_of(event: Refused) -> FlagsplitError:
    """What a user of a gateway is told of a refusal."""
    if event.code == "busy":
        return BusyError(event.reason, event.retry_after_s or 1.0)
    if event.code in ("bad-input", "too-large"):
        return InputError(event.reason)
    return UnavailableError(event.reason)


class ClientSource:
    """Tokens of services elsewhere.

    Args:
        client: asks them; the caller closes it afterwards.
        whole_input: the plan under which the services take the model's input as it is.
        first_s: how long a stream may take to begin: the client itself asks again until the deadline.
    """

    def __init__(self, client: StreamClient, whole_input: str, first_s: float = 20.0) -> None:
        self._client = client
        self._patience = Patience(first_s, self.not_ready)
        self._whole_input = whole_input

    def not_ready(self) -> str:
        """Why it takes no streams now, "" if it does."""
        states = self._client.replicas
        if "up" in states.values():
            return ""
        return "; ".join(f"{address}: {state}" for address, state in states.items()) or "there are no replicas"

    def stream(self, wanted: Wanted) -> TokenStream:
        """Begin a stream.

        Raises:
            InputError: a tensor cannot be sent.
        """
        plan = wanted.plan or self._whole_input
        stream = self._client.stream(
            wanted.tensors,
            wanted.options,
            plan=plan,
            prompt=wanted.prompt,
            delivered=wanted.generated,
            input_s=wanted.input_s,
            name=wanted.client.encode()[:64].decode(errors="ignore"),
        )
        if wanted.options.beams == 1:  # A search gives all of its tokens at its end.
            self._patience.watch(stream)
        return stream

    def close(self) -> None:
        """End; the client stays. A second call does nothing."""
        self._patience.close()
