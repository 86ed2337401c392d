"""An encoder that is divided between this side and workers elsewhere, which a session goes through."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flagsplit.apps.local import LocalWorkers
from flagsplit.errors import UnavailableError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.loop_boundary import facts_before_loop
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.targets.interface import Array, LoadOptions
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

_DEADLINE_S: Final = 60.0
_LOOK_S: Final = 0.1
# For so long a worker that everything waits for may be away before it is done without.
_GONE_S: Final = 2.0


@dataclass(frozen=True)
class Reach:
    """How workers are reached.

    Attributes:
        workers: by tier, where one listens; tiers that are needed and have none get one on this host.
        keys: the key folder; None for the user's own.
        threads: of each engine here; 0 lets it choose.
        connect_s: how long to wait for a worker at the start.
    """

    workers: Mapping[str, str] = field(default_factory=dict)
    keys: Path | None = None
    threads: int = 1
    connect_s: float = 5.0


class DividedEncoder:
    """What runs before a cut, on this side and others, in place of a `Chain`; closing it ends what was started here.

    Args:
        bundle: of the program.
        plan: whose cut it is.
        tiers: those beyond this side that run a part of the encoder.
        reach: how to reach them.

    Attributes:
        crossed_bytes: what was sent to other tiers and back, before the transport squeezes it.

    Raises:
        ConfigError: an address or the keys are wrong.
        RefusedError: a worker refuses, for instance because it serves another bundle.
        UnavailableError: there is none at an address.
    """

    def __init__(self, bundle: Bundle, plan: str, tiers: Sequence[str], reach: Reach) -> None:
        self._plan, self.crossed_bytes = plan, 0
        with ExitStack() as stack:
            addresses = {tier: PeerAddress(reach.workers[tier]) for tier in tiers if tier in reach.workers}
            missing = [tier for tier in tiers if tier not in addresses]
            if missing:
                here = LocalWorkers(bundle.path, missing, threads=reach.threads, keys=reach.keys)
                addresses |= stack.enter_context(here).addresses
            settings = SessionSettings(_DEADLINE_S, reach.connect_s, host=LoadOptions(threads=reach.threads))
            channel = ZmqChannel(security=KeyStore(reach.keys).security())
            part = facts_before_loop(bundle, plan)
            self._ways = [{bundle.tiers[tier] for tier in each.used_tiers} for each in part.pool.plans]
            self._gone_since = math.inf
            self._session = stack.enter_context(Session(bundle, addresses, channel, settings, part=part))
            for tier, state in self._session.tiers.items():
                if state != "up":
                    at = addresses[tier].address
                    raise UnavailableError(
                        f"no worker of tier {tier} at {at}: {state}; start flagsplit serve there with the same bundle"
                    )
            self._opened = stack.pop_all()

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors that cross the cut, from the inputs of the model.

        Raises:
            InputError: the encoder cannot run on them.
            UnavailableError: a worker is gone, and no plan of the bundle makes the same tensors without it.
        """
        answer = self._awaited(self._session.submit(tensors, plan=self._plan))
        self.crossed_bytes += sum(link.bytes for link in answer.report.links)
        return dict(answer)

    def _awaited(self, coming: Future[Answer]) -> Answer:
        """The answer. A session would wait until the deadline for workers to come back: long for a listener."""
        while True:
            done, _ = wait([coming], _LOOK_S)
            if done:
                return coming.result()
            states = {tier: state for tier, state in self._session.tiers.items() if state != "up"}
            if not states or any(states.keys().isdisjoint(used) for used in self._ways):
                self._gone_since = math.inf
            elif self._gone_since == math.inf:
                self._gone_since = time.monotonic()
            elif time.monotonic() - self._gone_since > _GONE_S:
                coming.cancel()
                tier, state = next(iter(states.items()))
                raise UnavailableError(f"tier {tier}, which runs a part of the encoder, is gone: {state}")

    def close(self) -> None:
        """Say goodbye to the workers, and end those that were started here."""
        self._opened.close()
