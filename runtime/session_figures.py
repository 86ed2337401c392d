"""The figures of a session: what there is now, for whoever watches."""

from collections.abc import Mapping

from flagsplit.runtime.session_guide import SessionGuide
from flagsplit.runtime.session_peers import WorkerPeer
from flagsplit.runtime.session_routes import Epoch
from flagsplit.runtime.session_workers import Workers
from flagsplit.runtime.telemetry.stats import LinkStats, PeerStats, PlanStats, SessionStats

_PLANS_SHOWN = 2


def session_figures(
    guide: SessionGuide, epoch: Epoch, workers: Workers, now: float, *, queue: int, waiting: int, held_bytes: list[int]
) -> SessionStats:
    """What a session believes, follows and holds.

    Args:
        guide: its estimates and decisions.
        epoch: that answers new requests.
        workers: all of them.
        now: the time.
        queue: runs that wait for the engine.
        waiting: requests that wait for their turn.
        held_bytes: of each request that is under way.
    """
    snapshot = guide.snapshot(now, workers.line(epoch.facts))
    predicted = sorted(snapshot["predicted_s"].items(), key=lambda item: (item[0] != snapshot["plan"], item[1]))
    tiers, links = snapshot["estimates"]["tiers"], snapshot["estimates"]["links"]
    return SessionStats(
        queue=queue,
        waiting=waiting,
        flights=len(held_bytes),
        held_bytes=sum(held_bytes),
        epoch=epoch.number,
        plans=tuple(PlanStats(*each) for each in predicted[:_PLANS_SHOWN]),
        peers=tuple(_peer(peer, epoch.facts.bundle, tiers.get(tier, {})) for tier, peer in workers.peers.items()),
        links=tuple(_link(way, each) for way, each in links.items()),
        slowdown=tiers[guide.home]["slowdown"],
        decisions=tuple(guide.log),
        switches=dict(guide.switches),
    )


def _peer(peer: WorkerPeer, bundle: str, estimate: Mapping[str, float]) -> PeerStats:
    state = "up" if peer.takes(bundle) else "draining" if peer.draining else "down"
    return PeerStats(
        peer.tier,
        state,
        "" if state == "up" else peer.reason,
        queue=peer.queue,
        wait_s=estimate.get("wait_s"),
        held_bytes=peer.held_bytes,
        slowdown=estimate.get("slowdown"),
    )


def _link(way: str, figures: Mapping[str, float]) -> LinkStats:
    source, _, target = way.partition(">")
    return LinkStats(source, target, figures["bytes_per_s"], figures["rtt_s"], figures["loss"])
