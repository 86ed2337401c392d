"""The recognizer that was asked for: all of a program here, or its loop, or all of it, at decoder services."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagsplit.apps.decoder_service.program_source import folder_source
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.programs import program_folder
from flagsplit.apps.speech.program_recognizer import ProgramRecognizer
from flagsplit.apps.speech.recognizer import Recognizer
from flagsplit.apps.speech.stream_recognizer import (
    HIDDEN,
    PhoneLoop,
    StreamRecognizer,
    prepare_features,
    prepare_hidden,
)
from flagsplit.apps.text import Tokenizer, open_tokenizer
from flagsplit.errors import ConfigError, UnavailableError
from flagsplit.flagir.programs import ProgramFacts, load_program
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Executable, TensorSpec
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

PHONE: Final = "phone"
ALL_PHONE, SPLIT, ALL_CLOUD = PLANS = ("all-phone", "split", "all-cloud")
_LOOPBACK: Final = "tcp://127.0.0.1:0"


@dataclass(frozen=True)
class RecognizerChoice:
    """What recognizes speech, and where.

    Attributes:
        model: `zoo:NAME`, or a folder of a program.
        plan: "all-phone"; "split", the encoder here and the loop at a service; "all-cloud"; or "" for all-phone, and
            split where there are services.
        cloud: addresses of decoder services; where a plan needs one and there are none, one is started here.
        keys: the key folder; None for the user's own.
        threads: of the engine here; 0 lets it choose.
        connect_s: how long to wait for a service at the start.

    Raises:
        ConfigError: there is no such plan.
    """

    model: str = "zoo:moonshine"
    plan: str = ""
    cloud: tuple[str, ...] = ()
    keys: Path | None = None
    threads: int = 1
    connect_s: float = 5.0

    def __post_init__(self) -> None:
        if self.plan and self.plan not in PLANS:
            raise ConfigError(f"expected a plan of {', '.join(PLANS)}, came {self.plan!r}")
        if self.plan == ALL_PHONE and self.cloud:
            raise ConfigError("the plan all-phone needs no decoder service; leave out one of the two")


def open_recognizer(choice: RecognizerChoice, progress: Callable[[str], None] = lambda _line: None) -> Recognizer:
    """Open what was chosen; `progress` is told in lines what takes its time.

    Raises:
        ConfigError: there is no such model, or it is not for speech.
        ModelError: the model is damaged.
        PeerError: it cannot be fetched, or no decoder service answers.
    """
    folder = program_folder(choice.model, progress=progress)
    program = load_program(folder)
    facts = program.facts
    if facts.input == "text":
        raise ConfigError(f"expected a program that reads sound, {facts.name} reads text")
    tokenizer = open_tokenizer(facts.tokenizer, program.tokenizer)
    parts = _Parts(folder, choice.threads)
    plan = choice.plan or (SPLIT if choice.cloud else ALL_PHONE)
    if plan == ALL_PHONE:
        return ProgramRecognizer(facts, tokenizer, parts.encode(), parts.steps(), PHONE, plan)
    (source,) = program.graphs["encode"].graph.inputs
    spec = TensorSpec(source.name or "", "float32", tuple(_dim(each) for each in source.shape or ()))
    with ExitStack() as stack:
        progress("connect")
        return _streams(choice, plan, facts, tokenizer, parts, spec, stack)


def _dim(dim: object) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


@dataclass(frozen=True)
class _Parts:
    """The graphs of a program, to be opened here."""

    folder: Path
    threads: int

    def encode(self) -> Executable:
        weights = self.folder / WEIGHTS_NAME
        return open_onnx(self.folder / "encode.onnx", weights if weights.is_file() else None, "fast", self.threads)

    def steps(self) -> OrtStepModel:
        return OrtStepModel(self.folder, slots=1, threads=self.threads)


def _streams(
    choice: RecognizerChoice,
    plan: str,
    facts: ProgramFacts,
    tokenizer: Tokenizer,
    parts: _Parts,
    spec: TensorSpec,
    stack: ExitStack,
) -> StreamRecognizer:
    source = folder_source(parts.folder)
    addresses = choice.cloud
    if not addresses:
        channel = ZmqChannel(security=KeyStore(choice.keys).security())
        service = DecoderService(source, channel, _LOOPBACK, DecoderSettings(slots=1, threads=choice.threads))
        stack.callback(service.stop)
        addresses = (str(service.streams.address),)
    loop = PhoneLoop(facts, parts.encode, parts.steps)
    stack.callback(loop.close)
    settings = ClientSettings(own=PHONE, keys=choice.keys, connect_s=choice.connect_s)
    client = stack.enter_context(StreamClient(addresses, source.digest, local=loop, settings=settings))
    _check_replicas(client)
    if plan == ALL_CLOUD:
        cut = next(name for name, tensors in source.cuts.items() if tensors != (HIDDEN,))
        return StreamRecognizer(facts, tokenizer, client, cut, prepare_features(facts, spec), plan, stack.pop_all())
    encode = parts.encode()
    stack.callback(encode.close)
    return StreamRecognizer(facts, tokenizer, client, HIDDEN, prepare_hidden(facts, encode), plan, stack.pop_all())


def _check_replicas(client: StreamClient) -> None:
    """A wrong address is told at once; a service that goes later is what the phone's own loop is for."""
    states = client.replicas
    if "up" not in states.values():
        address, why = next(iter(states.items()))
        raise UnavailableError(
            f"no decoder service takes streams at {address}: {why or 'no answer'}; start flagsplit decode-serve there "
            "with the same program, or leave out --cloud"
        )
