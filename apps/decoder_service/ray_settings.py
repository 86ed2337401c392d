"""What can be chosen of an engine that runs in replicas of Ray Serve."""

import os
from dataclasses import dataclass
from typing import Final

from flagsplit.errors import ConfigError

ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # How long the router waits for a replica to say how busy it is: a dead one must not hold streams up.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray prints what its processes say to the standard output, which is for what the command says.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""What has to be said before Ray is imported."""


@dataclass(frozen=True)
class RaySettings:
    """Choices for the replicas.

    Attributes:
        replicas: how many there are, at least.
        max_replicas: how many there may be when streams queue up.
        slots: of a replica's step model; a replica with more streams than this is worth another.
        waiting: streams that may wait at a replica for a slot.
        cpus: of each replica.
        gpus: of each replica.
        address: of the cluster; "" starts one on this host, which ends with the engine.
        name: of the application in the cluster. Who deploys under a name that is there takes its replicas over.
        object_store_bytes: shared memory of a cluster on this host.
        start_s: how long the first replica may take to come up.
        stop_s: how long a replica that is replaced may go on with its streams.
        stall_s: how long a stream that has begun at a replica may be without a token before another takes it.
        max_failures: how often in a row a stream may lose its replica without a token in between.
    """

    replicas: int = 2
    max_replicas: int = 0
    slots: int = 16
    waiting: int = 64
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""
    name: str = "flagsplit-decoder"
    object_store_bytes: int = 128 << 20
    start_s: float = 120.0
    stop_s: float = 60.0
    stall_s: float = 30.0
    max_failures: int = 20

    def __post_init__(self) -> None:
        if self.replicas < 1 or 0 < self.max_replicas < self.replicas:
            raise ConfigError(
                f"expected --replicas of at least 1 and --max-replicas of at least as many, came {self.replicas} and "
                f"{self.max_replicas}"
            )

    @property
    def most(self) -> int:
        """Replicas that there may be."""
        return max(self.replicas, self.max_replicas)


def set_environment() -> None:
    """Say what Ray reads from the environment when it is imported; what the operator says of it stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
