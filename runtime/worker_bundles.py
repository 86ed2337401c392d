"""Which bundles a worker serves, which it is about to stop serving, and which are on their way here.

A bundle is offered, sent in parts, loaded beside those that run, and served; one that is retired takes no new requests,
and is freed when the last of its own is over. Only peers with the right to manage may do this. Files and loading are
`bundle_intake.py`'s; how the other side goes about it is in `bundle_upload.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from flagsplit.runtime.bundle_events import (
    BundleEvent,
    BundleLoaded,
    BundleUnloaded,
    CloseUpload,
    LoadBundle,
    OpenUpload,
    PartStored,
    Served,
    StorePart,
    UnloadBundle,
    UploadFailed,
    UploadOpened,
)
from flagsplit.runtime.events import Instruction, Note, Send
from flagsplit.runtime.worker_options import WorkerOptions
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import (
    MAX_PAYLOAD_BYTES,
    BundleOffer,
    BundlePart,
    BundleRetire,
    BundleStatus,
    Hello,
    Reject,
)

# Parts that the disk has not taken yet; a sender that heeds what it is told is never beyond it.
_UNSTORED_BYTES = 16 * MAX_PAYLOAD_BYTES
_MAX_UPLOADS = 4
_NO_RIGHTS = "your key may not manage bundles here; let it with flagsplit keys allow --admin"


@dataclass
class _Upload:
    """A bundle on its way here. `taken` bytes were handed on, `stored` are known to be in the file."""

    number: int
    peer: str
    offer: BundleOffer
    state: str = "opening"
    taken: int = 0
    stored: int = 0
    watchers: set[str] = field(default_factory=set)


@dataclass
class Retirement:
    """A bundle that takes no new requests.

    Attributes:
        peer: who asked for it.
        successor: the bundle that takes its place, or "".
        until: when the requests that are left are given up.
        unloading: whether it is being freed.
    """

    peer: str
    successor: str
    until: float
    unloading: bool = False


class Bundles:
    """The bundles of a worker.

    Args:
        tier: the worker's own.
        served: the bundles that it has at the start, by digest.
        options: limits and times.
        may_manage: whether a peer has the right to send and retire bundles.
    """

    def __init__(
        self, tier: str, served: Mapping[str, Served], options: WorkerOptions, may_manage: Callable[[str], bool]
    ) -> None:
        self._tier = tier
        self._options = options
        self._may_manage = may_manage
        self.served = dict(served)
        self.retiring: dict[str, Retirement] = {}
        self.draining = ""
        self._uploads: dict[str, _Upload] = {}
        self._numbers = 0

    @property
    def uploads(self) -> int:
        """Bundles on their way here."""
        return len(self._uploads)

    def takes_new(self, bundle: str) -> bool:
        """Whether new requests of a bundle are taken."""
        return bundle in self.served and bundle not in self.retiring and not self.draining

    def refusal(self, peer: str, hello: Hello) -> Reject | None:
        """Why a Hello cannot be welcomed on account of its bundle, if it cannot."""
        if self.draining:
            return Reject("draining", f"{self.draining}; try another")
        if not hello.bundle and self._may_manage(peer):
            return None
        if not hello.bundle:
            return Reject(
                "rights", "no bundle is named and your key may not manage any; let it with flagsplit keys allow --admin"
            )
        retired = self.retiring.get(hello.bundle)
        if retired is not None:
            instead = f"; use {retired.successor[:12]}" if retired.successor else ""
            return Reject("bundle", f"bundle {hello.bundle[:12]} is being retired at tier {self._tier}{instead}")
        if hello.bundle not in self.served:
            known = ", ".join(sorted(bundle[:12] for bundle in self.served)) or "no bundle yet"
            text = f"this worker serves {known} as tier {self._tier}; you have {hello.bundle[:12]}"
            return Reject("bundle", f"{text}; use the same bundle file on both sides, or send it with flagsplit swap")
        return None

    def offer(self, peer: str, offer: BundleOffer) -> Iterator[Instruction]:
        """Somebody has a bundle for this worker. A later offer of the same peer takes the place of an earlier one."""
        bundle = offer.bundle
        mine = next((upload for upload in self._uploads.values() if upload.peer == peer), None)
        there = self._uploads.get(bundle)
        reason = self._offer_refused(peer, offer, there)
        if reason:
            yield Send(peer, BundleStatus(bundle, "refused", 0, reason))
        elif bundle in self.served:
            yield Send(peer, BundleStatus(bundle, "ready"))
        elif there is not None and there.state == "loading":
            there.watchers.add(peer)
            yield Send(peer, BundleStatus(bundle, "loading", there.stored))
        else:
            if mine is not None and mine.state != "loading":
                yield self._close(mine, keep=True)
            self._numbers += 1
            self._uploads[bundle] = _Upload(self._numbers, peer, offer, watchers={peer})
            yield OpenUpload(self._numbers, offer.file_sha256, offer.size_bytes)

    def _offer_refused(self, peer: str, offer: BundleOffer, there: _Upload | None) -> str:
        if not self._may_manage(peer):
            return _NO_RIGHTS
        if self.draining:
            return self.draining
        if offer.bundle in self.retiring:
            return "it is being retired; wait until it is"
        if offer.bundle in self.served:
            return ""
        if not offer.bundle or not 0 < offer.size_bytes <= self._options.max_bundle_bytes:
            limit = self._options.max_bundle_bytes
            return f"expected a bundle of 1 to {limit} bytes, came one of {offer.size_bytes}; see --max-bundle-mb"
        if there is not None and there.state == "loading":
            return ""
        others = [upload for upload in self._uploads.values() if upload.peer != peer]
        if any(upload.offer.file_sha256 == offer.file_sha256 or upload is there for upload in others):
            return "somebody else is sending it; try again when they are done"
        if len(others) >= _MAX_UPLOADS or len(self.served) + len(others) >= self._options.max_bundles:
            return f"{len(self.served)} bundles are here and {len(others)} on their way, the limit; retire one first"
        return ""

    def part(self, peer: str, part: BundlePart) -> Iterator[Instruction]:
        """Bytes of the file that a peer offered last. What does not fit is asked for again."""
        upload = self._uploads.get(part.bundle)
        if upload is None or upload.peer != peer or upload.state != "receiving":
            return
        end = part.offset + len(part.payload)
        fits = part.offset == upload.taken and end <= upload.offer.size_bytes
        if not fits or end - upload.stored > _UNSTORED_BYTES or crc32(part.payload) != part.crc32:
            yield Send(peer, BundleStatus(part.bundle, "partial", upload.taken))
            return
        upload.taken = end
        yield StorePart(upload.number, part.offset, part.payload)

    def news(self, event: BundleEvent) -> Iterator[Instruction]:
        """What became of an instruction."""
        if isinstance(event, BundleUnloaded):
            yield from self._retired(event.bundle)
            return
        upload = next((one for one in self._uploads.values() if one.number == event.upload), None)
        match event:
            case BundleLoaded():
                yield from self._loaded(upload, event)
            case UploadFailed(_, reason) if upload is not None:
                del self._uploads[upload.offer.bundle]
                yield Note(f"bundle {upload.offer.bundle[:12]} of {upload.peer} is refused: {reason}")
                yield from self._tell(upload, BundleStatus(upload.offer.bundle, "refused", 0, reason))
            case UploadOpened(_, offset) if upload is not None:
                upload.state, upload.taken = "receiving", offset
                yield from self._stored(upload, offset)
            case PartStored(_, offset) if upload is not None:
                yield from self._stored(upload, offset)

    def _stored(self, upload: _Upload, offset: int) -> Iterator[Instruction]:
        upload.stored = offset
        if offset < upload.offer.size_bytes:
            yield from self._tell(upload, BundleStatus(upload.offer.bundle, "partial", offset))
            return
        upload.state = "loading"
        yield from self._tell(upload, BundleStatus(upload.offer.bundle, "loading", offset))
        yield LoadBundle(upload.number, upload.offer.bundle)

    def _loaded(self, upload: _Upload | None, event: BundleLoaded) -> Iterator[Instruction]:
        if upload is None:
            yield UnloadBundle(event.bundle)  # the worker was told to end meanwhile
            return
        del self._uploads[event.bundle]
        self.served[event.bundle] = event.served
        yield Note(f"bundle {event.bundle[:12]} of {upload.peer} is served from now on")
        yield from self._tell(upload, BundleStatus(event.bundle, "ready", upload.stored))

    @staticmethod
    def _tell(upload: _Upload, status: BundleStatus) -> Iterator[Instruction]:
        yield from (Send(peer, status) for peer in sorted(upload.watchers))

    def retire(self, peer: str, message: BundleRetire, now: float) -> Iterator[Instruction]:
        """Begin to stop serving a bundle; whoever uses it is for the machine to tell."""
        bundle = message.bundle
        reason = self._retire_refused(peer, message)
        if reason:
            yield Send(peer, BundleStatus(bundle, "refused", 0, reason))
        elif bundle not in self.served:
            yield Send(peer, BundleStatus(bundle, "retired"))
        elif bundle in self.retiring:
            self.retiring[bundle].peer = peer
        else:
            self.retiring[bundle] = Retirement(peer, message.successor, now + self._options.drain_s)
            yield Note(f"{peer} retires bundle {bundle[:12]}")

    def _retire_refused(self, peer: str, message: BundleRetire) -> str:
        if not self._may_manage(peer):
            return _NO_RIGHTS
        if message.bundle not in self.served or message.bundle in self.retiring:
            return ""
        if message.successor and (message.successor == message.bundle or not self.takes_new(message.successor)):
            return f"the successor {message.successor[:12]} is not served here; send it first"
        if not any(self.takes_new(other) for other in self.served if other != message.bundle):
            return "it is the last bundle here; send a successor first"
        return ""

    def unload(self, bundle: str) -> Iterator[Instruction]:
        """The last request of a retired bundle is over."""
        retirement = self.retiring[bundle]
        if not retirement.unloading:
            retirement.unloading = True
            yield UnloadBundle(bundle)

    def _retired(self, bundle: str) -> Iterator[Instruction]:
        retirement = self.retiring.pop(bundle, None)
        self.served.pop(bundle, None)
        if retirement is not None:
            yield Send(retirement.peer, BundleStatus(bundle, "retired"))

    def lost(self, peer: str) -> Iterator[Instruction]:
        """A peer is gone; it may come back and send the rest."""
        for upload in list(self._uploads.values()):
            upload.watchers.discard(peer)
            if upload.peer == peer and upload.state != "loading":
                yield self._close(upload, keep=True)

    def drain(self, reason: str) -> Iterator[Instruction]:
        """Take nothing new."""
        self.draining = reason
        for upload in list(self._uploads.values()):
            yield from self._tell(upload, BundleStatus(upload.offer.bundle, "refused", 0, reason))
            yield self._close(upload, keep=False)

    def _close(self, upload: _Upload, *, keep: bool) -> Instruction:
        del self._uploads[upload.offer.bundle]
        return CloseUpload(upload.number, keep)
