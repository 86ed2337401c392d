"""What a session of `flagsplit.connect` does when no plan of its bundle keeps a new policy.

The bundle is built again in a process of its own, kept in the cache under the bundle's digest and the policy, and sent
to the workers that are up. The session then swaps it in (`flagsplit.runtime.session`).
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from flagsplit.apps.delivery import deliver
from flagsplit.errors import RefusedError
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.sla import SLA
from flagsplit.transport.messages import PeerAddress

_log = logging.getLogger(__name__)


class Rebuilder:
    """Builds a bundle again under another policy, and sees to it that the workers have it.

    Args:
        workers: address of each worker of the session, by tier.
        keys: the key folder of the session; the user's own by default.

    Attributes:
        states: gives the state of each tier, "up" or why it is not. Tiers that are not up get nothing, and the session
            does without them until somebody brings them the bundle (`flagsplit swap`).
    """

    def __init__(self, workers: Mapping[str, PeerAddress], keys: Path | None) -> None:
        self._workers, self._keys = dict(workers), keys
        self.states: Callable[[], Mapping[str, str]] = lambda: dict.fromkeys(workers, "up")

    def __call__(self, bundle: Bundle, sla: SLA) -> Bundle:
        """The new bundle, once the workers that are up serve it.

        Raises:
            PolicyError: no plan can keep the policy.
            BundleError, ConfigError: the bundle cannot be built again here.
            RefusedError: a worker does not take it, for instance because our key is not an admin's there.
        """
        from flagsplit.apps.rebuild import rebuilt
        from flagsplit.apps.rebuild_process import rebuild_elsewhere

        def make(place: Path) -> None:
            for note in rebuild_elsewhere(bundle, sla, place):
                _log.warning("%s: %s", bundle.path, note)

        built = rebuilt(bundle, sla, make)
        states = self.states()
        absent = [tier for tier in self._workers if states.get(tier) != "up"]
        if absent:
            _log.warning("the new bundle does not get to %s, not up now", ", ".join(absent))
        present = {tier: at for tier, at in self._workers.items() if tier not in absent}
        if present:
            self._deliver(built, present)
        return built

    def _deliver(self, bundle: Bundle, workers: Mapping[str, PeerAddress]) -> None:
        try:
            deliver(bundle, workers, self._keys)
        except RefusedError as error:
            raise RefusedError(f"the bundle was built again, but not taken: {error}") from None
