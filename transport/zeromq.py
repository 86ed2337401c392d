"""The channel over ZeroMQ: one object, one context, one thread that calls it.

Outbound peers are in `zeromq_outbound.py`, inbound ones in `zeromq_inbound.py`; this file is the loop around them and
what they share. Security must be given: `KeyStore().security()`, or `NO_SECURITY` in so many words.
"""

import itertools
import math
import random
import socket as sockets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeAlias

import zmq

from flagsplit.errors import ConfigError, InternalError
from flagsplit.transport.address import parse_address
from flagsplit.transport.channel import ChannelEvent, ChannelOptions, SendQueue, new_instance
from flagsplit.transport.flow import Flow
from flagsplit.transport.messages import Bye, Done, Hello, Lane, Message, Welcome, encode
from flagsplit.transport.security import NoSecurity, Security, check_key
from flagsplit.transport.zap import ZapHandler
from flagsplit.transport.zeromq_inbound import Listener
from flagsplit.transport.zeromq_outbound import OutboundPeer
from flagsplit.transport.zeromq_sockets import READABLE

# A ROUTER cannot tell which peer became writable, so a queue for an inbound peer is tried again this often.
_INBOUND_RETRY_S = 0.002
_Ready: TypeAlias = Mapping[object, int]


class ZmqChannel:
    """A `Channel` over tcp:// and ipc://. Raises ConfigError for bad addresses and keys, nothing for what peers do."""

    def __init__(
        self,
        *,
        security: Security | NoSecurity,
        instance: str | None = None,
        options: ChannelOptions | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._instance = instance or new_instance()
        self._security = security
        self._options = options or ChannelOptions()
        self._rng = rng or random.Random()  # noqa: S311 - spreads reconnects, guards nothing
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake_lock = threading.RLock()  # reentrant, because a signal handler may wake as well
        self._wake_here, self._wake_there = sockets.socketpair()
        self._wake_here.setblocking(False)
        self._wake_there.setblocking(False)
        self._wake_fd = self._wake_here.fileno()
        self._outbound: dict[str, OutboundPeer] = {}
        self._listener: Listener | None = None
        self._zap: ZapHandler | None = None
        self._events: list[ChannelEvent] = []
        self._serials = itertools.count(1)
        self._owner: int | None = None
        self._polled: list[int] | None = None
        self._poller = zmq.Poller()
        self._farewell = False
        self._closed = False

    @property
    def instance(self) -> str:
        return self._instance

    def connect(self, peer: str, address: str, *, server_key: str | None = None) -> None:
        self._check_usable()
        if peer in self._outbound or peer.startswith("in:"):
            raise ConfigError(f"peer {peer!r}: expected a name that is free and does not start with 'in:'")
        parsed = parse_address(address)
        for other in self._outbound.values():
            if other.address == parsed:
                raise ConfigError(f"peer {peer!r}: {address} is connected already, as {other.name!r}")
        key = ""
        if not isinstance(self._security, NoSecurity):
            key = check_key(server_key or self._security.server_key_for(address), f"server key of {address}")
        self._polled = None
        self._outbound[peer] = OutboundPeer(
            peer,
            parsed,
            context=self._context,
            security=self._security,
            server_key=key,
            instance=self._instance,
            options=self._options,
            next_serial=lambda: next(self._serials),
            wake=self.wake,
            emit=self._events.append,
            rng=self._rng,
        )

    def disconnect(self, peer: str) -> None:
        self._check_usable()
        self._polled = None
        outbound = self._outbound.pop(peer, None)
        if outbound is not None:
            outbound.close(self._farewell_s)
        elif self._listener is not None:
            self._listener.disconnect(peer)

    def listen(self, address: str) -> str:
        self._check_usable()
        parse_address(address, listening=True)
        try:
            return self._listen(address)
        except zmq.ZMQError as exc:
            raise ConfigError(f"cannot listen on {address}: {exc.strerror}") from exc

    def _listen(self, address: str) -> str:
        if self._zap is None and not isinstance(self._security, NoSecurity):
            self._zap = ZapHandler(self._context, self._security.is_authorized)
        self._polled = None
        if self._listener is None:
            self._listener = Listener(self._context, self._security, self._options, self._events.append)
        return self._listener.bind(address)

    def send(self, peer: str, message: Message) -> bool:
        self._check_usable()
        flow = self._flow(peer) if isinstance(message, Hello | Welcome) else None
        message = message if flow is None else flow.stamped(message)
        frames = encode(message)
        outbound = self._outbound.get(peer)
        if outbound is not None:
            sent = outbound.send(message, frames)
        else:
            sent = self._listener is not None and self._listener.send(peer, message, frames)
        self._farewell = self._farewell or (sent and isinstance(message, Bye | Done))
        return sent

    def poll(self, timeout_s: float | None) -> list[ChannelEvent]:
        self._check_usable()
        self._owner = threading.get_ident()
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            self._advance(now_s)
            ready = self._wait(now_s, now_s if self._events else deadline_s)
            woken = self._wake_fd in ready and self._drain_wake()
            now_s = time.monotonic()
            self._receive(now_s, ready)
            if self._events or woken or now_s >= deadline_s:
                events = self._events.copy()
                self._events.clear()  # in place: peers hold its append
                return events

    def backlog_bytes(self, peer: str, lane: Lane = Lane.DATA) -> int:
        queue = self._queue(peer, lane)
        return queue.size_bytes if queue else 0

    def withdraw(self, peer: str, sid: str, rid: int) -> int:
        queue = self._queue(peer, Lane.DATA)
        return queue.withdraw(sid, rid) if queue else 0

    def pause(self, peer: str, paused: bool) -> None:
        self._check_usable()
        flow = self._flow(peer)
        if flow is not None:
            flow.pause(paused)

    def window(self, peer: str, window_bytes: int) -> None:
        self._check_usable()
        flow = self._flow(peer)
        if flow is not None:
            flow.resize(window_bytes)

    def wake(self) -> None:
        # Full means that a wake-up is pending already; closed means that nobody is left to wake. The lock keeps `close`
        # from giving our descriptor's number to somebody else in between.
        with self._wake_lock, suppress(OSError):
            self._wake_there.send(b"\0")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._farewell:
            self._flush()
        for outbound in self._outbound.values():
            outbound.close(self._farewell_s)
        if self._listener is not None:
            self._listener.close(self._farewell_s)
        if self._zap is None or self._zap.stop():
            # Waits for the sockets' linger at most: no socket of the context has an unlimited one.
            self._context.term()
        with self._wake_lock:
            self._wake_here.close()
            self._wake_there.close()

    @property
    def _farewell_s(self) -> float:
        return self._options.farewell_s if self._farewell else 0.0

    def _check_usable(self) -> None:
        if self._closed:
            raise InternalError("the channel is closed; make a new one")
        if self._owner is not None and self._owner != threading.get_ident():
            raise InternalError("a channel belongs to the thread that polls it; other threads may only call wake()")

    def _queue(self, peer: str, lane: Lane) -> SendQueue | None:
        flow = self._flow(peer)
        return flow.queues[lane] if flow else None

    def _flow(self, peer: str) -> Flow | None:
        outbound = self._outbound.get(peer)
        if outbound is not None:
            return outbound.flow
        return self._listener.flow(peer) if self._listener else None

    def _advance(self, now_s: float) -> None:
        for outbound in self._outbound.values():
            outbound.advance(now_s)
        if self._listener is not None:
            self._listener.advance(now_s)
        self._flush()

    def _flush(self) -> None:
        for outbound in self._outbound.values():
            outbound.flush()
        if self._listener is not None:
            self._listener.flush()

    def _wait(self, now_s: float, until_s: float) -> _Ready:
        """Sleep until something happens or a timer is due; what happened, by socket."""
        wanted = []
        for outbound in self._outbound.values():
            wanted.append(outbound.wanted)
            due_s = outbound.deadline_s()
            if due_s is not None and due_s < until_s:
                until_s = due_s
        if self._listener is not None:
            due_s = self._listener.deadline_s()
            if due_s is not None and due_s < until_s:
                until_s = due_s
            if self._listener.has_backlog():
                until_s = min(until_s, now_s + _INBOUND_RETRY_S)
        if wanted != self._polled:  # seldom: peers came or went, or a queue began or ended
            self._register(wanted)
        timeout_ms = None if until_s == math.inf else math.ceil(max(0.0, until_s - now_s) * 1000)
        return dict(self._poller.poll(timeout_ms))

    def _register(self, wanted: list[int]) -> None:
        self._polled, self._poller = wanted, zmq.Poller()
        for outbound in self._outbound.values():
            for socket, flags in outbound.polled():
                self._poller.register(socket, flags)
        if self._listener is not None:
            for socket, flags in self._listener.polled():
                self._poller.register(socket, flags)
        self._poller.register(self._wake_fd, READABLE)

    def _drain_wake(self) -> bool:
        with suppress(BlockingIOError):
            while self._wake_here.recv(4096):
                pass
        return True

    def _receive(self, now_s: float, ready: _Ready) -> None:
        for outbound in self._outbound.values():
            outbound.receive(now_s, self._options.max_events_per_poll, ready)
        if self._listener is not None:
            self._listener.receive(now_s, self._options.max_events_per_poll, ready)
