"""The backend of a gateway for a program that can be served."""

from collections.abc import Mapping

from flagsplit.apps.decoder_service.gateway_backend import Backend, Cut
from flagsplit.apps.decoder_service.gateway_program import ProgramBackend, SpeechBackend, model_facts
from flagsplit.apps.decoder_service.gateway_source import Source
from flagsplit.apps.decoder_service.program_source import HIDDEN, ProgramSource
from flagsplit.apps.speech.features import sound_input
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.apps.speech.vad import open_detector
from flagsplit.apps.text import open_tokenizer
from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs.store import TOKENIZER_NAME
from flagsplit.targets.interface import TensorSpec


def open_backend(source: ProgramSource, tokens: Source, name: str = "") -> Backend:
    """What a gateway needs to answer for a program.

    Args:
        source: the program.
        tokens: where its tokens come from.
        name: by which clients ask for it; by default its own.

    Raises:
        ModelError: its tokenizer or its encoder cannot be read.
        PeerError: the network that finds speech cannot be fetched.
    """
    tokenizer = open_tokenizer(source.facts.tokenizer, _bytes(source, TOKENIZER_NAME))
    if source.facts.kind == "decoder-only":
        return ProgramBackend(model_facts(source.facts, name), tokenizer, tokens)
    spec = encoder_input(source)
    open_detector().close()  # So that it is known at the start if it cannot be had.
    facts = model_facts(source.facts, name, _cuts(source, spec))
    sound = sound_input(source.facts, spec.name, spec.shape)
    about = SpeechFacts(whole_input(source), source.facts, sound, tokenizer)
    return SpeechBackend(facts, about, tokens, open_detector)


def whole_input(source: ProgramSource) -> str:
    """The plan under which a service takes the program's input as it is.

    Raises:
        ConfigError: there is none.
    """
    entered = () if source.facts.kind == "decoder-only" else (encoder_input(source).name,)
    for plan, names in source.cuts.items():
        if names == entered and plan != HIDDEN and not source.takes_rows:
            return plan
    there = ", ".join(source.cuts)
    raise ConfigError(f"the gateway needs a plan of {source.name} that runs all of it in the cloud; there are {there}")


def encoder_input(source: ProgramSource) -> TensorSpec:
    """What the encoder reads.

    Raises:
        ModelError: it cannot be told.
    """
    path = source.steps / "encode.onnx"
    found = read_model(path, source.weights.parent if source.weights is not None else None).graph.inputs
    shape = found[0].shape if len(found) == 1 else None
    if shape is None:
        raise ModelError(f"expected an encoder of one input with a shape, {path} has {len(found)}")
    return TensorSpec(found[0].name or "", "float32", tuple(d if isinstance(d, int) else str(d.value) for d in shape))


def _cuts(source: ProgramSource, spec: TensorSpec) -> Mapping[str, Cut]:
    plain = {HIDDEN: (TensorSpec(HIDDEN, "float32", (1, "frames", source.facts.width)),), spec.name: (spec,)}
    specs = {plan: each for plan, each in {**plain, **source.specs}.items() if plan in source.cuts}
    return {plan: {each.name: (each.dtype, _sizes(each)) for each in tensors} for plan, tensors in specs.items()}


def _sizes(spec: TensorSpec) -> tuple[int | None, ...]:
    """Of one stream: what is open in the first dimension is the batch."""
    first = tuple(size if isinstance(size, int) else 1 for size in spec.shape[:1])
    return (*first, *(size if isinstance(size, int) else None for size in spec.shape[1:]))


def _bytes(source: ProgramSource, name: str) -> bytes:
    try:
        return (source.steps / name).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {source.steps / name}: {error.strerror}; make the program again") from None
