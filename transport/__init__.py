"""What carries messages and tensors between tiers. Knows bytes, no graphs.

    messages.py  what can be said, and its bytes         tensors.py   tensors to chunks and back
    squeeze.py   payloads made smaller without loss      squeeze_policy.py   which, on which link
    channel.py   the interface of channels               zeromq.py    over TCP and ipc       memory.py  in one process
    security.py  keys, and who may connect               testing.py   conformance suite, faults, virtual clock
    emulation/   slow and broken links on one host

`docs/wire.md` is the protocol's specification.
"""

from flagsplit.transport.channel import (
    Acked,
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
    BundleOffer,
    BundlePart,
    BundleRetire,
    BundleStatus,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Done,
    Drain,
    Failed,
    Have,
    Hello,
    Hop,
    HopTiming,
    Lane,
    LinkGauge,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Probe,
    Reject,
    TensorHeader,
    Version,
    Welcome,
    agreed_version,
    decode,
    encode,
)
from flagsplit.transport.security import NO_SECURITY, KeyStore, NoSecurity, Security
from flagsplit.transport.squeeze_policy import SqueezeDecision, SqueezeOptions, SqueezePolicy
from flagsplit.transport.tensors import Assembly, Squeezer, TransferLimits, chunks_of
from flagsplit.transport.zeromq import ZmqChannel

__all__ = [
    "NO_SECURITY",
    "VERSION",
    "Acked",
    "Assembly",
    "BundleOffer",
    "BundlePart",
    "BundleRetire",
    "BundleStatus",
    "Bye",
    "Cancel",
    "Channel",
    "ChannelEvent",
    "ChannelOptions",
    "Chunk",
    "Credit",
    "Done",
    "Down",
    "Drain",
    "Failed",
    "Have",
    "Hello",
    "Hop",
    "HopTiming",
    "KeyStore",
    "Lane",
    "LinkGauge",
    "MemoryChannel",
    "MemoryNetwork",
    "Message",
    "NoSecurity",
    "Open",
    "PeerAddress",
    "Ping",
    "Pong",
    "Probe",
    "Received",
    "Reject",
    "Security",
    "SqueezeDecision",
    "SqueezeOptions",
    "SqueezePolicy",
    "Squeezer",
    "TensorHeader",
    "TransferLimits",
    "Up",
    "Version",
    "Violated",
    "Welcome",
    "ZmqChannel",
    "agreed_version",
    "chunks_of",
    "decode",
    "encode",
    "inbound_name",
    "new_instance",
]
