"""What the transport is held against: plain TCP, pyzmq, gRPC, and shared memory as a prototype; for `transport.py`.

Each is a client class with `stream`, which sends tensors back to back and stops the clock when the last is there, and
`round_trips`, which sends one tensor and waits for as many bytes; and a function that serves it in another process.
Shared memory has no checksums and no limits here: it says what one could gain, not what one would get.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import grpc
import zmq

_ORDER = struct.Struct("<QQ?")
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_SLOTS = 4
_LARGE_FRAME_BYTES = 1 << 20
_COPY_BELOW_BYTES = 64 << 10


class Raw:
    """TCP as plain as it gets: no checksum, no frames, one buffer that is received into again and again."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._line = socket.create_connection((host, int(port)))
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stream(self, data: memoryview, count: int) -> float:
        started = time.perf_counter()
        self._line.sendall(_ORDER.pack(len(data), count, False))
        for _ in range(count):
            self._line.sendall(data)
        self._line.recv(1)
        return time.perf_counter() - started

    def round_trips(self, data: memoryview, count: int) -> list[float]:
        self._line.sendall(_ORDER.pack(len(data), count, True))
        answer, took = memoryview(bytearray(len(data))), []
        for _ in range(count):
            started = time.perf_counter()
            self._line.sendall(data)
            _receive_into(self._line, answer)
            took.append(time.perf_counter() - started)
        return took

    def close(self) -> None:
        self._line.close()


def _receive_into(line: socket.socket, buffer: memoryview) -> None:
    while buffer:
        received = line.recv_into(buffer)
        if not received:
            raise EOFError
        buffer = buffer[received:]


def serve_raw(listening: Callable[[str], None]) -> None:
    """The peer of `Raw`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening("{}:{}".format(*server.getsockname()))
        line, _ = server.accept()
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    order = memoryview(bytearray(_ORDER.size))
    buffer = memoryview(b"")
    while True:
        _receive_into(line, order)
        size_bytes, count, answers = _ORDER.unpack(order)
        if len(buffer) != size_bytes:
            buffer = memoryview(bytearray(size_bytes))
        for _ in range(count):
            _receive_into(line, buffer)
            if answers:
                line.sendall(buffer)
        if not answers:
            line.sendall(b"!")


class Grpc:
    """gRPC, synchronous, bytes as they are; a stream is one call with a message per tensor."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_UNLIMITED)
        self._echo = self._channel.unary_unary("/bench/echo")
        self._take = self._channel.stream_unary("/bench/take")

    def stream(self, data: memoryview, count: int) -> float:
        whole = bytes(data)
        started = time.perf_counter()
        self._take(whole for _ in range(count))
        return time.perf_counter() - started

    def round_trips(self, data: memoryview, count: int) -> list[float]:
        whole, took = bytes(data), []
        for _ in range(count):
            started = time.perf_counter()
            self._echo(whole)
            took.append(time.perf_counter() - started)
        return took

    def close(self) -> None:
        self._channel.close()


def serve_grpc(listening: Callable[[str], None]) -> None:
    """The peer of `Grpc`."""

    def take(messages: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        for _message in messages:
            pass
        return b"!"

    handlers = {
        "echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
        "take": grpc.stream_unary_rpc_method_handler(take),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2), options=_UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    listening(f"127.0.0.1:{port}")
    server.wait_for_termination()


class Bare:
    """pyzmq alone, with as many messages of such sizes as the transport sends: what its sockets and threads cost.

    With keys, of the client (public, secret) and of the server, it encrypts by CURVE.
    """

    def __init__(self, address: str, keys: tuple[bytes, bytes, bytes] | None = None) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.linger = 0
        if keys is not None:
            self._socket.curve_publickey, self._socket.curve_secretkey, self._socket.curve_serverkey = keys
        self._socket.connect(address)

    def stream(self, data: memoryview, count: int) -> float:
        started = time.perf_counter()
        for at in range(count):
            if at >= _SLOTS:
                self._socket.recv()
            _send_bare(self._socket, [], data, _LARGE_FRAME_BYTES)
        for _ in range(min(count, _SLOTS)):
            self._socket.recv()
        return time.perf_counter() - started

    def round_trips(self, data: memoryview, count: int) -> list[float]:
        took = []
        for _ in range(count):
            started = time.perf_counter()
            _send_bare(self._socket, [], data, len(data))
            self._socket.recv_multipart(copy=False)
            self._socket.recv_multipart(copy=False)
            took.append(time.perf_counter() - started)
        return took

    def close(self) -> None:
        self._socket.close()


def _send_bare(line: "zmq.Socket[bytes]", to: list[bytes], data: memoryview, frame_bytes: int) -> None:
    line.send_multipart([*to, b"o" * 300 + b"%d" % len(data)])
    for offset in range(0, len(data), frame_bytes):
        payload = data[offset : offset + frame_bytes]
        line.send_multipart([*to, b"c" * 100, payload], copy=len(payload) < _COPY_BELOW_BYTES)


def serve_bare(listening: Callable[[str], None], keys: tuple[bytes, bytes] | None = None) -> None:
    """The peer of `Bare`: a small tensor goes back, of a large one only its arrival is told."""
    line = zmq.Context.instance().socket(zmq.ROUTER)
    if keys is not None:
        line.curve_server = True
        line.curve_publickey, line.curve_secretkey = keys
    listening(f"tcp://127.0.0.1:{line.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        route, opened = line.recv_multipart()
        missing_bytes = size_bytes = int(opened[300:])
        while missing_bytes:
            payload = line.recv_multipart(copy=False)[2].buffer
            missing_bytes -= len(payload)
        if size_bytes < _COPY_BELOW_BYTES:
            _send_bare(line, [route], payload, size_bytes)
        else:
            line.send_multipart([route, b"!"])


class Shared:
    """Copy a tensor into one of the slots that both processes see, tell so over ipc; the peer uses it in place."""

    def __init__(self, address: str) -> None:
        self._notes = zmq.Context.instance().socket(zmq.PAIR)
        self._notes.linger = 0
        self._notes.connect(address)
        self._slots: list[shared_memory.SharedMemory] = []

    def stream(self, data: memoryview, count: int) -> float:
        self._make_slots(len(data))
        started = time.perf_counter()
        for at in range(count):
            if at >= len(self._slots):
                self._notes.recv()
            self._put(data, at)
        for _ in range(min(count, len(self._slots))):
            self._notes.recv()
        return time.perf_counter() - started

    def round_trips(self, data: memoryview, count: int) -> list[float]:
        self._make_slots(len(data))
        took = []
        for at in range(count):
            started = time.perf_counter()
            self._put(data, at)
            answer = self._notes.recv()
            bytes(self._slots[int(answer)].buf[: len(data)])
            took.append(time.perf_counter() - started)
        return took

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
            slot.unlink()
        self._slots = []

    def _put(self, data: memoryview, at: int) -> None:
        slot = at % len(self._slots)
        self._slots[slot].buf[: len(data)] = data
        self._notes.send(b"%d" % slot)

    def _make_slots(self, size_bytes: int) -> None:
        if not self._slots or self._slots[0].size < size_bytes:
            self.close()
            self._slots = [shared_memory.SharedMemory(create=True, size=size_bytes) for _ in range(_SLOTS)]
            self._notes.send(" ".join(slot.name for slot in self._slots).encode())
            self._notes.recv()


def serve_shared(folder: Path, listening: Callable[[str], None]) -> None:
    """The peer of `Shared`; a note with names says which slots there are, one with a number which was filled."""
    notes = zmq.Context.instance().socket(zmq.PAIR)
    address = f"ipc://{folder / 'notes'}"
    notes.bind(address)
    listening(address)
    slots: list[shared_memory.SharedMemory] = []
    while True:
        note = notes.recv()
        if not note.isdigit():
            slots = [shared_memory.SharedMemory(name) for name in note.decode().split()]
            for slot in slots:  # the client unlinks them
                resource_tracker.unregister(slot._name, "shared_memory")  # type: ignore[attr-defined]
        notes.send(note)
