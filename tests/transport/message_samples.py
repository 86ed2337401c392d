"""A message of each type, of each version of the protocol, and the frames of one with other fields."""

import zlib

import msgpack

from flagsplit.transport.messages import (
    Attach,
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
    Frame,
    Have,
    Hello,
    Hop,
    HopTiming,
    LinkGauge,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Probe,
    Reject,
    TensorHeader,
    Tokens,
    Welcome,
    encode,
)

INSTANCE = "00112233445566778899aabbccddeeff"
DIGEST = "sha256:" + "ab" * 32
KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"

SAMPLES: dict[str, Message] = {
    "hello": Hello(
        version_min=(1, 0),
        version_max=(1, 2),
        instance=INSTANCE,
        role="session",
        bundle=DIGEST,
        heartbeat_ms=500,
        peers={"edge": PeerAddress("tcp://10.0.0.2:7000", KEY), "cloud": PeerAddress("tcp://cloud.example:7000")},
        features=("zstd",),
    ),
    "welcome": Welcome((1, 0), INSTANCE, 7, DIGEST, "edge", 268435456, 262144, ("zstd",)),
    "reject": Reject("bundle", "this worker serves another bundle"),
    "failed": Failed("s-1", 42, 1, "edge", "engine", "out of memory", retryable=True),
    "cancel": Cancel("s-1", 42, 1),
    "done": Done("s-1", 42),
    "ping": Ping(3, 1_700_000_000_000_000),
    "pong": Pong(3, 1_700_000_000_000_000, queue=2, epoch=7),
    "drain": Drain("new bundle"),
    "bye": Bye("shutting down"),
    "attach": Attach(INSTANCE),
    "open": Open(
        sid="s-1",
        rid=42,
        attempt=1,
        epoch=7,
        plan="plan-3",
        hop=1,
        route=(Hop("phone", "p0", ("a",)), Hop("edge", "", ("a", "b")), Hop("cloud", "p2")),
        tensors=(TensorHeader("a", "float16", (1, 3, 2), 12), TensorHeader("b", "uint8", (0, 4), 0)),
        deadline_ms=250,
        trace=(HopTiming("phone", "p0", 10, 2000, 0, 12),),
        outputs=("y",),
    ),
    "chunk": Chunk("s-1", 42, 1, 1, tensor=0, offset=0, crc32=0x1DB55E4A, payload=b"twelve bytes"),
}

SINCE_1_1: dict[str, Message] = {
    "hello": Hello((1, 0), (1, 1), INSTANCE, "worker", DIGEST, 500, {}, ("credit",), credit_bytes=8 << 20),
    "welcome": Welcome(
        (1, 1),
        INSTANCE,
        7,
        DIGEST,
        "edge",
        268435456,
        262144,
        ("credit",),
        credit_bytes=4 << 20,
        slowdown_permille=12_500,
    ),
    "pong": Pong(3, 5, 2, 7, wait_us=1500, held_bytes=1 << 20, links=(LinkGauge("cloud", 2_500_000, 41_000, 5),)),
    "drain": Drain("new bundle", bundle=DIGEST, successor="sha256:" + "cd" * 32),
    "credit": Credit(received_bytes=3 << 20, limit_bytes=11 << 20, held_us=900),
    "have": Have("s-1", 42, 2, 1, (12, 0)),
    "bundle_offer": BundleOffer("ab" * 32, DIGEST, 1 << 30),
    "bundle_status": BundleStatus(DIGEST, "partial", 1 << 20, "8 % are here"),
    "bundle_retire": BundleRetire(DIGEST, "sha256:" + "cd" * 32),
    "open": Open(
        sid="s-1",
        rid=42,
        attempt=2,
        epoch=8,
        plan="plan-3",
        hop=1,
        route=(Hop("phone", "p0", ("a",)), Hop("cloud", "p2")),
        tensors=(TensorHeader("a", "float16", (1, 3, 2), 12),),
        deadline_ms=250,
        trace=(HopTiming("phone", "p0", 10, 2000, 0, 12, batch=4),),
        bundle=DIGEST,
        resume=True,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    "open_inline": Open(
        sid="s-1",
        rid=42,
        attempt=1,
        epoch=8,
        plan="plan-3",
        hop=1,
        route=(Hop("phone", "p0", ("a", "b")), Hop("cloud", "p2")),
        tensors=(TensorHeader("a", "float16", (1, 3, 1), 6), TensorHeader("b", "uint8", (2, 3), 6)),
        deadline_ms=250,
        trace=(HopTiming("phone", "p0", 10, 2000, 0, 12),),
        inline_crc32=zlib.crc32(b"twelve bytes"),
        payload=b"twelve bytes",
    ),
    "chunk": Chunk("s-1", 42, 1, 1, 0, 0, 0x1DB55E4A, squeeze="zstd", raw_bytes=4096, payload=b"twelve bytes"),
    "bundle_part": BundlePart(DIGEST, 1 << 20, 0x1DB55E4A, payload=b"twelve bytes"),
    "probe": Probe(9, 65536, payload=b"\0" * 16),
}


SINCE_1_2: dict[str, Message] = {
    "open": Open(
        sid="s-1",
        rid=42,
        attempt=2,
        epoch=8,
        plan="plan1",
        hop=1,
        route=(Hop("phone", "", ("hidden", "tokens")), Hop("cloud")),
        tensors=(TensorHeader("hidden", "float32", (1, 3, 2), 24), TensorHeader("tokens", "int64", (2,), 16)),
        deadline_ms=250,
        bundle=DIGEST,
        generation='{"stream":"7","delivered":1,"max_tokens":9}',
    ),
    "failed": Failed("s-1", 42, 2, "cloud", "busy", "64 streams wait", retryable=True, retry_ms=1500),
    "tokens": Tokens("s-1", 42, 2, 17, (0, 50256, 2**53 - 1)),
    "tokens_last": Tokens("s-1", 42, 2, 20, (2,), last=True, reason="stop", wait_us=900, run_us=4100, batch=16),
    "tokens_scored": Tokens(
        "s-1", 42, 2, 0, (2, 5), last=True, reason="stop", costs=(0, 9, 2**32 - 1), no_speech=600_000
    ),
}

FUZZED: dict[str, Message] = SAMPLES | {f"{name} of 1.2": message for name, message in SINCE_1_2.items()}


def header_of(name: str) -> dict[str, object]:
    header: dict[str, object] = msgpack.unpackb(encode(FUZZED[name])[0])  # type: ignore[attr-defined,no-untyped-call]
    return header


def frames_of(name: str, **changes: object) -> list[Frame]:
    header = {key: value for key, value in (header_of(name) | changes).items() if value is not Ellipsis}
    packed: bytes = msgpack.packb(header)  # type: ignore[no-untyped-call]
    return [packed, *encode(FUZZED[name])[1:]]
