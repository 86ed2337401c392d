"""`--engine ray`: a decoder service whose tokens are made in replicas of Ray Serve."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from flagsplit.apps.decoder_service.program_source import ProgramSource
from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_serve import RayServe
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.apps.decoder_service.serve import DecoderSettings, EngineFactory
from flagsplit.runtime.generation.events import Event
from flagsplit.targets.generation.step_model import StepModel


def ray_engine(settings: RaySettings) -> EngineFactory:
    """What makes the engine of a service.

    Args:
        settings: of the replicas; slots and waiting streams are those of the service.
    """

    def make(source: ProgramSource, decoder: DecoderSettings, emit: Callable[[Event], None]) -> RayEngine:
        open_model = partial(open_steps, source.steps.absolute(), decoder.slots, decoder.threads, decoder.provider)
        return RayEngine(RayServe(open_model, settings, decoder.scheduler), emit, source.facts.prompt, settings)

    return make


def open_steps(folder: Path, slots: int, threads: int, provider: Literal["cpu", "cuda"]) -> StepModel:
    """Open a program's steps on the host of a replica, where the folder must be too.

    Raises:
        BundleError: a graph cannot be loaded.
        ConfigError: the provider is not there.
    """
    from flagsplit.targets.generation.ort_step import OrtStepModel  # loads ONNX Runtime

    return OrtStepModel(folder, slots, threads, provider)
