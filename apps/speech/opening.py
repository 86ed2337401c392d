"""The recognizer that was asked for: all of a model here, or its loop, or all of it, at decoder services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.apps.models import is_bundle
from flagsplit.apps.programs import program_folder
from flagsplit.apps.speech.else_here import ElseHere
from flagsplit.apps.speech.encoding import Rest
from flagsplit.apps.speech.encoding_elsewhere import Reach
from flagsplit.apps.speech.program_recognizer import ProgramRecognizer
from flagsplit.apps.speech.recognizer import SpeechFacts
from flagsplit.apps.speech.speech_model import SpeechModel, SpeechPlan, bundle_model, folder_model
from flagsplit.apps.speech.stream_recognizer import PhoneLoop, StreamRecognizer
from flagsplit.apps.text import open_tokenizer
from flagsplit.errors import ConfigError, UnavailableError
from flagsplit.runtime.bundle import open_bundle
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

_LOOPBACK: Final = "tcp://127.0.0.1:0"


@dataclass(frozen=True)
class RecognizerChoice:
    """What recognizes speech, and where.

    Attributes:
        model: `zoo:NAME`, a folder of a program, or a bundle of one.
        plan: of the bundle; of a program "all-phone", "split" behind the encoder, or "all-cloud"; "" for the best one
            that runs here, or where there are services for the best one whose loop is there.
        cloud: addresses of decoder services; where a plan needs one and there are none, one is started here.
        keys: the key folder; None for the user's own.
        threads: of the engine here; 0 lets it choose.
        connect_s: how long to wait for a service at the start.
        times: whether phrases are to have the times that the model gives, if it can.
        workers: by tier, address of a worker that runs a part of the encoder; where a plan needs one and there is none,
            one is started here.
    """

    model: str = "zoo:moonshine"
    plan: str = ""
    cloud: tuple[str, ...] = ()
    keys: Path | None = None
    threads: int = 1
    connect_s: float = 5.0
    times: bool = False
    workers: Mapping[str, str] = field(default_factory=dict)


def open_recognizer(
    choice: RecognizerChoice, progress: Callable[[str], None] = lambda _line: None
) -> ProgramRecognizer | StreamRecognizer | ElseHere:
    """Open what was chosen; `progress` is told in lines what takes its time.

    Raises:
        BundleError, ModelError: the model is damaged.
        ConfigError: there is no such model or plan, or it is not for speech.
        PeerError: it cannot be fetched, or no decoder service answers.
    """
    model = open_model(choice, progress)
    plan = model.plan(choice.plan, elsewhere=bool(choice.cloud), workers=choice.workers)
    if plan.tier == model.own and choice.cloud:
        raise ConfigError(f"plan {plan.name} needs no decoder service; leave out --cloud or --plan")
    own = model.own_plan
    if not plan.between or own is None:
        return _open(choice, model, plan, progress)
    return ElseHere(_open(choice, model, plan, progress), lambda: _open(choice, model, own, progress))


def _open(
    choice: RecognizerChoice, model: SpeechModel, plan: SpeechPlan, progress: Callable[[str], None]
) -> ProgramRecognizer | StreamRecognizer:
    """What recognizes under one plan."""
    reach = Reach(choice.workers, choice.keys, choice.threads, choice.connect_s)
    tokenizer = open_tokenizer(model.facts.tokenizer, model.tokenizer)
    about = SpeechFacts(plan.name, model.facts, model.sound, tokenizer, times=choice.times)
    if plan.tier == model.own:
        return ProgramRecognizer(about, model.own, plan.open_before(reach), Rest(plan.open_rest), model.open_steps())
    with ExitStack() as stack:
        progress("connect")
        client = _client(choice, model, plan, stack)
        before = plan.open_before(reach)
        stack.callback(before.close)
        return StreamRecognizer(about, plan.cut, before, client, stack.pop_all())


def open_model(choice: RecognizerChoice, progress: Callable[[str], None] = lambda _line: None) -> SpeechModel:
    """The model of a choice; errors as for `open_recognizer`."""
    if is_bundle(Path(choice.model)):
        return bundle_model(open_bundle(Path(choice.model)), choice.threads)
    return folder_model(program_folder(choice.model, progress=progress), choice.threads)


def _client(choice: RecognizerChoice, model: SpeechModel, plan: SpeechPlan, stack: ExitStack) -> StreamClient:
    """A client of the services that were named, or of one that is started here."""
    addresses = choice.cloud
    if not addresses:
        channel = ZmqChannel(security=KeyStore(choice.keys).security())
        settings = DecoderSettings(tier=plan.tier, slots=1, threads=choice.threads)
        service = DecoderService(model.source(plan.tier), channel, _LOOPBACK, settings)
        stack.callback(service.stop)
        addresses = (str(service.streams.address),)
    loop = None
    if model.can_run_here:
        loop = PhoneLoop(model.facts, Rest(plan.open_rest), model.open_steps)
        stack.callback(loop.close)
    chosen = ClientSettings(plan.tier, model.own, keys=choice.keys, connect_s=choice.connect_s)
    client = stack.enter_context(StreamClient(addresses, model.digest, local=loop, settings=chosen))
    _check_replicas(client)
    return client


def _check_replicas(client: StreamClient) -> None:
    """A wrong address is told at once; a service that goes later is what the phone's own loop is for."""
    states = client.replicas
    if "up" not in states.values():
        address, why = next(iter(states.items()))
        raise UnavailableError(
            f"no decoder service takes streams at {address}: {why or 'no answer'}; start flagsplit decode-serve there "
            "with the same program or bundle, or leave out --cloud"
        )
