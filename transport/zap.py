"""The authenticator: answers ZeroMQ's ZAP requests (RFC 27).

It has a thread of its own, so that a busy runtime starves no handshake.
Everything here fails closed. Whatever goes wrong while a key is looked up is a refusal; when the thread is gone nobody
answers, and libzmq refuses because `ZAP_ENFORCE_DOMAIN` is set. Which keys are allowed is `security.py`'s to know.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import zmq
from zmq.utils import z85

ZAP_DOMAIN: Final = b"flagsplit"
_ENDPOINT: Final = "inproc://zeromq.zap.01"
_KEY_BYTES: Final = 32
_log = logging.getLogger(__name__)


class ZapHandler:
    """Lets in the clients whose CURVE key `is_authorized`; their key becomes the User-Id of every message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], is_authorized: Callable[[str], bool]) -> None:
        self._context = context
        self._orphaned = False
        self._is_authorized = is_authorized
        # Bound here and not in the thread: no connection can come in before there is somebody to ask.
        with ExitStack() as made:  # what is left open when there are no descriptors for the rest would hold the context
            self._requests = made.enter_context(context.socket(zmq.REP))
            self._requests.linger = 0
            self._requests.bind(_ENDPOINT)
            self._stop_here = made.enter_context(context.socket(zmq.PAIR))
            self._stop_there = made.enter_context(context.socket(zmq.PAIR))
            self._stop_there.bind(f"inproc://flagsplit-zap-stop-{id(self)}")
            self._stop_here.connect(f"inproc://flagsplit-zap-stop-{id(self)}")
            self._stop_here.linger = self._stop_there.linger = 0
            made.pop_all()
        self._thread = threading.Thread(target=self._run, name="flagsplit-zap", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> bool:
        """End the thread; from then on every connection is refused.

        False: a key look-up hangs and the thread with it; it will terminate the context when it gets that far.
        """
        if not self._stop_here.closed:
            self._stop_here.send(b"", zmq.NOBLOCK)
            self._thread.join(timeout=1)
            self._stop_here.close()
        if self.alive:
            self._orphaned = True
            _log.warning("the look-up of a client key hangs; its thread is left behind")
        return not self.alive

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._requests, zmq.POLLIN)
        poller.register(self._stop_there, zmq.POLLIN)
        try:
            while self._stop_there not in dict(poller.poll()):
                self._requests.send_multipart(self._answer(self._requests.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            self._requests.close()
            self._stop_there.close()
            if self._orphaned:
                self._context.term()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        padded = request + [b""] * (6 - len(request))
        version, request_id, domain, peer_address, _, mechanism, *credentials = padded
        if version != b"1.0" or domain != ZAP_DOMAIN or mechanism != b"CURVE" or len(credentials) != 1:
            return [b"1.0", request_id, b"400", b"CURVE only", b"", b""]
        if len(credentials[0]) != _KEY_BYTES:
            return [b"1.0", request_id, b"400", b"bad key", b"", b""]
        key = z85.encode(credentials[0]).decode()
        try:
            allowed = self._is_authorized(key)
        except Exception:  # noqa: BLE001 - an unreadable key folder must not end the authenticator
            _log.exception("looking up a client key failed, the client is refused")
            return [b"1.0", request_id, b"500", b"key lookup failed", b"", b""]
        if not allowed:
            _log.info("client key %s from %s is not authorized", key, peer_address.decode("ascii", "replace"))
            return [b"1.0", request_id, b"400", b"key not authorized", b"", b""]
        return [b"1.0", request_id, b"200", b"OK", key.encode(), b""]
