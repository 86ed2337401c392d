"""Small pools with figures that can be checked by hand, for estimates and decisions."""

from collections.abc import Sequence

from flagsplit.splitter.plan import Cut, Features, Plan, Predicted
from flagsplit.splitter.pool import Pool, PoolCertificate
from flagsplit.splitter.state import State

TIERS = ("phone", "edge", "cloud")
NOMINAL = State((1.0,) * 3, (1e-6, 1e-7), (5e-7, 1e-7), (0.02, 0.01), (0.02, 0.01), (True,) * 3)
_CERTIFICATE = PoolCertificate(False, 0, 0, None, (1.0, 1.0), (1.0, 1.0))


def plan(
    name: str,
    seconds: Sequence[float],
    up_bytes: Sequence[float] = (0.0, 0.0),
    placement: Sequence[int] = (),
    codec: str = "none",
    route: tuple[int, ...] = (),
) -> Plan:
    """A plan that runs where it spends seconds; what it sends up, it sends in one message, and a little comes back."""
    used = tuple(placement) or tuple(k for k, s in enumerate(seconds) if s > 0)
    used += used[-1:] * (len(seconds) - len(used))
    crossed = tuple(1.0 if size else 0.0 for size in up_bytes)
    down = tuple(1000.0 * each for each in crossed)
    count = (0.0,) * len(seconds)
    features = Features(tuple(seconds), tuple(up_bytes), down, crossed, crossed, count, 0.0, count)
    cuts = (Cut("x", 1000, 0, 1, (1,), codec),) if any(up_bytes) else ()
    return Plan(name, TIERS[: len(seconds)], used, cuts, features, Predicted(0, 0, 0, 0), route)


def pool(*plans: Plan, **more: object) -> Pool:
    """For the least latency."""
    return Pool(plans, 1.0, (0.0,) * len(plans), None, {}, _CERTIFICATE, **more)  # type: ignore[arg-type]


def usual() -> Pool:
    """The phone alone, the edge, the cloud, a cut, and the cut with a codec."""
    return pool(
        plan("all-phone", (0.5, 0.0, 0.0)),
        plan("all-edge", (0.0, 0.1, 0.0), (100_000.0, 0.0)),
        plan("all-cloud", (0.0, 0.0, 0.02), (100_000.0, 100_000.0)),
        plan("phone+cloud-1", (0.1, 0.0, 0.02), (40_000.0, 40_000.0)),
        plan("phone+cloud-u8", (0.13, 0.0, 0.022), (10_000.0, 10_000.0), codec="u8"),
    )
