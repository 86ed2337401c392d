"""Limits and times of a worker, and what it tells of itself to whoever counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.transport.messages import BUNDLES, INLINE, LZ4, PROBE, RESUME, ZSTD
from flagsplit.transport.squeeze_policy import SqueezePolicy


def _nobody(_key: str) -> bool:
    return False


def _whoever_has_none(key: str) -> bool:
    """Where there are no keys at all, a peer's word has to do; of those that have one, somebody must know them."""
    return not key


def _no_wait_us() -> int:
    return 0


@dataclass(frozen=True)
class WorkerHooks:
    """What a worker asks of others; each answers at once.

    Attributes:
        is_admin: whether the owner of a public key may send and retire bundles.
        is_worker: whether the owner of a public key may pass on requests of any session; "" is the key of a peer on a
            channel without keys.
        wait_us: how long a new run would wait for the engine, in microseconds.
        squeezing: says which tensors to squeeze on their way; without one, none.
    """

    is_admin: Callable[[str], bool] = _nobody
    is_worker: Callable[[str], bool] = _whoever_has_none
    wait_us: Callable[[], int] = _no_wait_us
    squeezing: SqueezePolicy | None = None


@dataclass(frozen=True)
class WorkerOptions:
    """Limits and times of a worker.

    Attributes:
        max_held_bytes: tensors held for all requests together; beyond it a request is refused as busy.
        max_flights: requests held at once.
        max_held_bytes_per_client: of one client, whether it is alone or not; None shares evenly (`worker_shares.py`).
        max_flights_per_client: of one client; likewise.
        max_peers: sessions and workers connected at once.
        max_bundles: bundles served at once, those that are being retired included.
        max_bundle_bytes: size of a bundle that is sent here; 0 takes none.
        reach_s: how long requests wait for a tier beyond that is not connected yet.
        linger_s: how long a request outlives the connection that it came by, for its session to come back.
        drain_s: how long requests that are here may take once the worker, or their bundle, is to take no more.
        pause_from: share of `max_held_bytes` from which on the largest clients are paused while runs go on.
        resume_below: share below which they go on.
        features: what of the protocol this worker offers; a channel that has more of its own adds them here.
        liveness: heartbeats to the tiers beyond, and patience with silent sessions.
    """

    max_held_bytes: int = 2 << 30
    max_flights: int = 4096
    max_held_bytes_per_client: int | None = None
    max_flights_per_client: int | None = None
    max_peers: int = 1024
    max_bundles: int = 16
    max_bundle_bytes: int = 4 << 30
    reach_s: float = 3.0
    linger_s: float = 10.0
    drain_s: float = 30.0
    pause_from: float = 0.8
    resume_below: float = 0.6
    features: tuple[str, ...] = (RESUME, BUNDLES, PROBE, INLINE, ZSTD, LZ4)
    liveness: LivenessOptions = field(default_factory=LivenessOptions)


@dataclass(frozen=True)
class WorkerStats:
    """A worker at one moment, and what it did since its start.

    Attributes:
        tier: its name.
        bundles: digests of the bundles that it serves.
        retiring: those of them that take no new requests.
        draining: whether the worker takes none at all.
        sessions: sessions connected.
        workers: workers before this one connected.
        beyond: by address name, whether a tier beyond is connected.
        paused: peers that may not send data for now.
        uploads: bundles on their way here.
        flights: requests here.
        lingering: those of them whose session is away.
        waiting_runs: segments asked of the engine that have not come back.
        held_bytes: what all requests hold.
        clients: by client, which is a public key or else a session, requests and bytes held.
        opened: requests taken since the start.
        resumed: announcements answered with how much was here already.
        returned: requests that a session came back for.
        done: requests that ended with an accepted answer.
        failed: by code, attempts answered with Failed.
    """

    tier: str
    bundles: tuple[str, ...]
    retiring: tuple[str, ...]
    draining: bool
    sessions: int
    workers: int
    beyond: Mapping[str, bool]
    paused: tuple[str, ...]
    uploads: int
    flights: int
    lingering: int
    waiting_runs: int
    held_bytes: int
    clients: Mapping[str, tuple[int, int]]
    opened: int
    resumed: int
    returned: int
    done: int
    failed: Mapping[str, int]
