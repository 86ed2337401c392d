"""Sending a new bundle to all workers of a line, and retiring the old one when all of them serve it; a pure machine.

All or nothing: where one worker refuses, nothing is retired, and the line goes on as it was. `flagsplit swap` drives it
through a shell; one upload is in `bundle_upload.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flagsplit.errors import InternalError
from flagsplit.runtime.bundle_upload import Upload, UploadFile, UploadOptions
from flagsplit.runtime.events import Connect, Ended, Event, Instruction, Leave, Send, Tick
from flagsplit.runtime.liveness import Liveness, LivenessOptions
from flagsplit.transport.channel import Acked, Down, Received, Up, Violated
from flagsplit.transport.messages import (
    BUNDLES,
    OLDEST_VERSION,
    VERSION,
    BundleRetire,
    BundleStatus,
    Bye,
    Hello,
    Message,
    PeerAddress,
    Ping,
    Reject,
    Welcome,
)

RETIRE_OLD = "old"
"""Instead of a digest: whichever bundle each worker has served for longest."""


@dataclass(frozen=True)
class SwapOptions:
    """How a swap goes about it.

    Attributes:
        retire: digest of the bundle to retire at the end, `RETIRE_OLD`, or "" for none.
        patience_s: seconds without progress at a worker after which it is given up.
        upload: how parts are sent.
        liveness: heartbeats to the workers.
    """

    retire: str = ""
    patience_s: float = 60.0
    upload: UploadOptions = field(default_factory=UploadOptions)
    liveness: LivenessOptions = field(default_factory=LivenessOptions)


@dataclass
class _Target:
    address: PeerAddress
    upload: Upload
    connected: bool = False
    old: str = ""
    retired: bool = False
    progress: tuple[str, int, bool] = ("", 0, False)
    moved: float = 0.0
    reason: str = "it was not reached"


class SwapMachine:
    """Uploads a bundle to workers, and retires another.

    Args:
        file: the bundle.
        workers: address of each worker, by tier.
        instance: names this start of the process.
        options: what to retire, and when to give up.

    Attributes:
        error: why it did not work, "" if it did or is under way.
    """

    def __init__(
        self,
        file: UploadFile,
        workers: Mapping[str, PeerAddress],
        instance: str,
        options: SwapOptions | None = None,
    ) -> None:
        self._options = options or SwapOptions()
        self._instance = instance
        self._targets = {tier: _Target(at, Upload(file, self._options.upload)) for tier, at in workers.items()}
        self._file = file
        self._liveness = Liveness(self._options.liveness)
        self._retiring = False
        self._over = False
        self._began: float | None = None
        self.error = ""
        self.now = 0.0

    def start(self) -> list[Instruction]:
        """Connect to all workers."""
        return [Connect(tier, one.address.address, one.address.server_key) for tier, one in self._targets.items()]

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event at a time in seconds; answer with what to do, in order."""
        self.now = now
        if self._began is None:
            self._began = now
            for target in self._targets.values():
                target.moved = now
        said = list(self._handle(event))
        if not self._over:
            said += self._go_on()
        return said

    def next_tick(self) -> float:
        """When the machine wants a `Tick` at the latest."""
        return self._liveness.next_tick()

    @property
    def progress(self) -> dict[str, tuple[str, int, int]]:
        """By tier: the state, bytes that the worker has, bytes in all."""
        return {
            tier: (
                "retired" if one.retired else "retiring" if self._retiring else one.upload.state,
                one.upload.stored_bytes,
                self._file.size_bytes,
            )
            for tier, one in self._targets.items()
        }

    def _handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Up(tier):
                heartbeat_ms = int(self._options.liveness.heartbeat_s * 1000)
                yield Send(
                    tier,
                    Hello(OLDEST_VERSION, VERSION, self._instance, "session", "", heartbeat_ms, features=(BUNDLES,)),
                )
            case Down(tier, reason) | Violated(tier, reason):
                self._liveness.forget(tier)
                target = self._targets[tier]
                target.connected, target.reason = False, reason
                target.upload.lost()
            case Received(tier, message):
                self._liveness.heard(tier, self.now)
                yield from (Send(tier, answer) for answer in self._on_message(tier, message))
            case Acked(tier):
                self._liveness.heard(tier, self.now)
            case Tick():
                due, silent = self._liveness.tick(self.now)
                yield from (Send(tier, Ping(0, int(self.now * 1e6))) for tier in due)
                for tier in silent:
                    yield from self._handle(Down(tier, "it went silent"))
                for tier, target in self._targets.items():
                    yield from (Send(tier, part) for part in target.upload.tick(self.now))
            case Leave():
                yield from (Send(tier, Bye("the swap is over")) for tier, one in self._targets.items() if one.connected)
            case _:
                raise InternalError(f"a swap cannot handle {event}")

    def _on_message(self, tier: str, message: Message) -> Iterator[Message]:
        target = self._targets[tier]
        match message:
            case Welcome():
                yield from self._welcomed(tier, target, message)
            case Reject(code="draining"):
                target.reason = message.reason
            case Reject():
                self._fail(f"tier {tier} refused us: {message.reason}")
            case BundleStatus() if message.bundle == self._file.bundle:
                yield from target.upload.heard(message, self.now)
            case BundleStatus(bundle, "retired") if self._retiring and bundle == target.old:
                target.retired = True
            case BundleStatus(bundle, "refused") if self._retiring and bundle == target.old:
                self._fail(f"tier {tier} does not retire bundle {bundle[:12]}: {message.reason}")
            case _:
                pass

    def _welcomed(self, tier: str, target: _Target, message: Welcome) -> Iterator[Message]:
        if message.tier != tier:
            self._fail(f"the worker at {target.address.address} serves tier {message.tier}, not {tier}")
        elif BUNDLES not in message.features:
            self._fail(f"the worker of tier {tier} takes no bundles; start it with the new one instead")
        else:
            target.connected = True
            self._liveness.watch(tier, self.now)
            wanted = message.bundle if self._options.retire == RETIRE_OLD else self._options.retire
            target.old = target.old or (wanted if wanted != self._file.bundle else "")
            yield from target.upload.connected(self.now)
            if self._retiring:
                yield from self._retire(target)

    def _retire(self, target: _Target) -> Iterator[Message]:
        if not target.old:
            target.retired = True
        elif not target.retired:
            yield BundleRetire(target.old, self._file.bundle)

    def _go_on(self) -> Iterator[Instruction]:
        """From uploading to retiring, and to the end."""
        for tier, target in self._targets.items():
            progress = (target.upload.state, target.upload.stored_bytes, target.retired)
            if progress != target.progress:
                target.progress, target.moved = progress, self.now
            if target.upload.state == "refused":
                self._fail(f"tier {tier} refused bundle {self._file.bundle[:12]}: {target.upload.reason}")
            elif not target.upload.is_over and self.now - target.moved > self._options.patience_s:
                what = f"no progress for {self._options.patience_s:g} s ({target.upload.state}; {target.reason})"
                self._fail(f"tier {tier}: {what}")
        if not self.error and not self._retiring and all(one.upload.state == "ready" for one in self._targets.values()):
            self._retiring = bool(self._options.retire)
            if not self._retiring:
                yield from self._end("all workers serve it")
                return
            for tier, target in self._targets.items():
                target.moved = self.now
                yield from (Send(tier, message) for message in self._retire(target) if target.connected)
        if self.error:
            yield from self._end(self.error)
        elif self._retiring and all(one.retired for one in self._targets.values()):
            yield from self._end("all workers serve it, and the old one is retired")
        elif self._retiring and any(
            not one.retired and self.now - one.moved > self._options.patience_s for one in self._targets.values()
        ):
            self._fail("the new bundle is served everywhere, but the old one is not retired yet at every worker")
            yield from self._end(self.error)

    def _fail(self, reason: str) -> None:
        self.error = self.error or reason

    def _end(self, reason: str) -> Iterator[Instruction]:
        self._over = True
        yield Ended(reason)
