"""A decoder service: a program's source, an engine that makes its tokens, and the service that clients reach."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from flagsplit.apps.decoder_service.engine_hub import EngineHub
from flagsplit.apps.decoder_service.program_source import ProgramSource, Remainders
from flagsplit.errors import ConfigError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event
from flagsplit.runtime.generation.service import ServiceProgram, ServiceSettings, StreamService, TokenEngine
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.channel import Channel

_THREADS_HELD_BY_ENCODERS = 1


Provider = Literal["cpu", "cuda", "ort-cuda"]


@dataclass(frozen=True)
class DecoderSettings:
    """Choices of the operator.

    Attributes:
        tier: the tier to serve.
        slots: streams that make tokens at the same time.
        threads: of the engine; 0 lets it choose.
        provider: what the steps run on: ONNX Runtime on the CPU, PyTorch on an NVIDIA GPU ("cuda"), or ONNX Runtime
            there ("ort-cuda"), which moves the caches at each step.
        precision: of the steps on a GPU with "cuda".
        scheduler: memory for caches, how many streams may wait and for how long.
        service: limits of connections and tensors, times, telemetry.
        engine: makes what makes the tokens: of a program, these settings, and where its events go.

    Raises:
        ConfigError: a number is below what makes sense.
    """

    tier: str = "cloud"
    slots: int = 16
    threads: int = 0
    provider: Provider = "cpu"
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    engine: "EngineFactory" = field(default_factory=lambda: local_engine)

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError(f"slots: expected 1 or more, came {self.slots}")


EngineFactory = Callable[[ProgramSource, DecoderSettings, Callable[[Event], None]], TokenEngine]


def local_engine(source: ProgramSource, settings: DecoderSettings, emit: Callable[[Event], None]) -> TokenEngine:
    """An engine in this process.

    Raises:
        BundleError: a graph cannot be loaded.
        ConfigError: the provider is not there.
    """
    return GenerationEngine(step_opener(source, settings)(), emit, settings.scheduler)


def step_opener(source: ProgramSource, settings: DecoderSettings) -> Callable[[], StepModel]:
    """What opens a program's steps, here or in another process, whose host must have its files at the same place."""
    return partial(
        _open_steps,
        source.steps.absolute(),
        settings.slots,
        settings.threads,
        settings.provider,
        settings.precision,
        source.step,
        source.weights.absolute() if source.weights is not None else None,
    )


def _open_steps(
    folder: Path,
    slots: int,
    threads: int,
    provider: Provider,
    precision: Literal["fp32", "fp16", "bf16"],
    step: str,
    weights: Path | None,
) -> StepModel:
    if provider == "cuda":
        from flagsplit.targets.generation.cuda_step import CudaStepModel  # loads PyTorch

        model = CudaStepModel(folder, slots, precision, step=step, weights=weights)
        model.warm_up(1, 1)
        return model
    from flagsplit.targets.generation.ort_step import OrtStepModel  # loads ONNX Runtime

    return OrtStepModel(folder, slots, threads, "cuda" if provider == "ort-cuda" else "cpu", step=step, weights=weights)


class DecoderService:
    """Serves a program's token streams from the constructor on; `stop` ends it, `drain` lets it end.

    Args:
        source: the program.
        channel: how to listen; the service closes it.
        address: where to listen.
        settings: choices of the operator.
        failed: called if the service breaks.
        ended: called when it ended by itself, because it was drained.

    Attributes:
        source: as given.
        streams: what answers on the wire.
        hub: the engine, for whoever else asks in this process.
        encode: makes of a plan's tensors what a stream begins with.

    Raises:
        BundleError: a graph cannot be loaded.
        ConfigError: the address is taken or malformed, or the provider is not there.
        PolicyError: there is no such tier.
    """

    def __init__(
        self,
        source: ProgramSource,
        channel: Channel,
        address: str,
        settings: DecoderSettings | None = None,
        failed: Callable[[Exception], None] = lambda _: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self._settings = source, settings or DecoderSettings()
        try:
            _check_tier(source, self._settings.tier)
            self.encode = Remainders(source, LoadOptions(threads=_THREADS_HELD_BY_ENCODERS))
            self.hub = EngineHub(lambda emit: self._settings.engine(source, self._settings, emit))
            self.streams = StreamService(
                ServiceProgram(source.digest, source.tiers, self._settings.tier, source.stream_facts),
                self.hub.user,
                self.encode,
                channel,
                address,
                self._settings.service,
                failed,
                ended,
            )
        except BaseException:
            channel.close()
            raise

    def stop(self) -> None:
        """Say goodbye to all clients and free everything. A second call does nothing."""
        self.streams.stop()
        self.encode.close()

    def drain(self, reason: str = "") -> None:
        """Finish the streams that are here, take no new ones, then end. From any thread."""
        self.streams.drain(reason)


def _check_tier(source: ProgramSource, tier: str) -> None:
    if tier not in source.tiers[1:]:
        raise ConfigError(f"expected a tier of {', '.join(source.tiers[1:])} to serve, came {tier!r}; see --tier")
