"""What carries messages and tensors between tiers. Knows bytes, no graphs.

    messages.py  what can be said, and its bytes         tensors.py   tensors to chunks and back
    channel.py   the interface of channels               zeromq.py    over TCP and ipc       memory.py  in one process
    security.py  keys, and who may connect               testing.py   conformance suite, faults, virtual clock

`docs/wire.md` is the protocol's specification.
"""

from flagsplit.transport.channel import (
    Channel,
    ChannelEvent,
    ChannelOptions,
    Down,
    Received,
    Up,
    Violated,
    inbound_name,
    new_instance,
)
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import (
    VERSION,
    Bye,
    Cancel,
    Chunk,
    Done,
    Drain,
    Failed,
    Hello,
    Hop,
    HopTiming,
    Lane,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Reject,
    TensorHeader,
    Version,
    Welcome,
    decode,
    encode,
)
from flagsplit.transport.security import NO_SECURITY, KeyStore, NoSecurity, Security
from flagsplit.transport.tensors import Assembly, TransferLimits, chunks_of
from flagsplit.transport.zeromq import ZmqChannel

__all__ = [
    "NO_SECURITY",
    "VERSION",
    "Assembly",
    "Bye",
    "Cancel",
    "Channel",
    "ChannelEvent",
    "ChannelOptions",
    "Chunk",
    "Done",
    "Down",
    "Drain",
    "Failed",
    "Hello",
    "Hop",
    "HopTiming",
    "KeyStore",
    "Lane",
    "MemoryChannel",
    "MemoryNetwork",
    "Message",
    "NoSecurity",
    "Open",
    "PeerAddress",
    "Ping",
    "Pong",
    "Received",
    "Reject",
    "Security",
    "TensorHeader",
    "TransferLimits",
    "Up",
    "Version",
    "Violated",
    "Welcome",
    "ZmqChannel",
    "chunks_of",
    "decode",
    "encode",
    "inbound_name",
    "new_instance",
]
