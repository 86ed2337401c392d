"""The options of a decoder service: what makes the tokens, and how much of it at once."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.apps.decoder_service.serve import EngineFactory, Provider, local_engine
from flagsplit.errors import ConfigError

Plan = Annotated[
    str, typer.Option(help="Serve this plan of the bundle alone; needed for one that divides a decoder's layers.")
]
Slots = Annotated[int, typer.Option(min=1, help="Streams that make tokens at the same time.")]
StepProvider = Annotated[
    Provider, typer.Option(help="What runs the steps: the CPU, an NVIDIA GPU, or ONNX Runtime on one.")
]
Precision = Annotated[Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the steps, with --provider cuda.")]
KvMb = Annotated[float, typer.Option(min=1, help="Memory for the caches of all streams, 10^6 bytes.")]
MaxStreams = Annotated[int, typer.Option(min=1, help="Streams here at once, those that wait included.")]
MaxStreamsPerClient = Annotated[
    int, typer.Option(min=0, help="The same of one client; 0 shares evenly among those that are connected.")
]
MaxWaitS = Annotated[float, typer.Option(min=0, help="A stream that would wait for longer is refused.")]
DrainStreams = Annotated[float, typer.Option(min=0, help="How long streams may take once it is told to end.")]
LingerStreams = Annotated[float, typer.Option(min=0, help="How long streams outlive their connection.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="Make tokens in this process, or in replicas of Ray Serve.")
]
Replicas = Annotated[int, typer.Option(min=0, help="With --engine ray: how many replicas there are; 0 is 2.")]
MaxReplicas = Annotated[
    int, typer.Option(min=0, help="With --engine ray: how many there may be when streams queue up.")
]
RayAddress = Annotated[
    str, typer.Option(help="With --engine ray: the cluster to join, such as auto; starts one here without it.")
]
RayName = Annotated[
    str, typer.Option(help="With --engine ray: name of the replicas in the cluster; who has it takes them over.")
]


@dataclass(frozen=True)
class EngineOptions:
    """What was said of the engine on the command line."""

    engine: Literal["local", "ray"]
    replicas: int
    max_replicas: int
    ray_address: str
    ray_name: str

    def factory(self, slots: int) -> EngineFactory:
        """What makes it, for so many streams at once.

        Raises:
            ConfigError: they do not go together.
        """
        if self.engine == "ray":
            from flagsplit.apps.decoder_service.ray_choice import ray_engine  # only here, because Ray is an extra

            replicas = self.replicas or 2
            return ray_engine(
                RaySettings(replicas, self.max_replicas, slots, address=self.ray_address, name=self.ray_name)
            )
        if self.replicas or self.max_replicas or self.ray_address or self.ray_name:
            raise ConfigError(
                "--replicas, --max-replicas, --ray-address and --ray-name are of --engine ray, came the local engine; "
                "add --engine ray, or start a decode-serve for each replica"
            )
        return local_engine
