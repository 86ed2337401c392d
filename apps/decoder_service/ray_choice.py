"""`--engine ray`: a decoder service whose tokens are made in replicas of Ray Serve."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flagsplit.apps.decoder_service.program_source import ProgramSource
from flagsplit.apps.decoder_service.ray_engine import RayEngine
from flagsplit.apps.decoder_service.ray_serve import RayServe
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.apps.decoder_service.serve import DecoderSettings, EngineFactory, step_opener
from flagsplit.runtime.generation.events import Event

_DIGITS: Final = 12


def ray_engine(settings: RaySettings) -> EngineFactory:
    """What makes the engine of a service.

    Args:
        settings: of the replicas; slots and waiting streams are those of the service.
    """

    def make(source: ProgramSource, decoder: DecoderSettings, emit: Callable[[Event], None]) -> RayEngine:
        # Replicas of another program would go on with other tokens.
        named = replace(settings, name=settings.name or f"flagsplit-{source.digest[:_DIGITS]}")
        serve = RayServe(step_opener(source, decoder), named, decoder.scheduler)
        return RayEngine(serve, emit, source.facts.prompt, named)

    return make
