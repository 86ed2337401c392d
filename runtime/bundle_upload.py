"""The sending side of a bundle on the wire: one upload to one worker, as a pure machine.

It says what to send and takes what the worker says; whose connection that goes over is for others to know. Parts go out
a window ahead of what the worker has stored, and again from there when nothing moves, so it survives lost connections
and full queues. `bundle_swap.py` does it for all workers of a line.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flagsplit.errors import ConfigError
from flagsplit.transport.checksum import crc32
from flagsplit.transport.messages import BundleOffer, BundlePart, BundleStatus, Frame, Message

_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class UploadFile:
    """A bundle file to send.

    Attributes:
        bundle: digest of the bundle.
        file_sha256: SHA-256 of the file's bytes, in hexadecimal.
        size_bytes: of the file.
        read: gives bytes of the file, from an offset and of a size.
    """

    bundle: str
    file_sha256: str
    size_bytes: int
    read: Callable[[int, int], Frame] = field(repr=False)

    @classmethod
    def of(cls, path: Path, bundle: str) -> "UploadFile":
        """The file at a path, read once for its digest.

        Raises:
            ConfigError: it cannot be read.
        """
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    digest.update(chunk)
                    size_bytes += len(chunk)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error

        def read(offset: int, count: int) -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(count)

        return cls(bundle, digest.hexdigest(), size_bytes, read)


@dataclass(frozen=True)
class UploadOptions:
    """How an upload goes about it.

    Attributes:
        part_bytes: of each part.
        window_bytes: how far to be ahead of what the worker has stored.
        again_s: seconds without news after which to start again from there.
    """

    part_bytes: int = 256 << 10
    window_bytes: int = 4 << 20
    again_s: float = 3.0


class Upload:
    """One bundle on its way to one worker.

    Args:
        file: what to send.
        options: how.

    Attributes:
        state: "waiting" for a connection, "offered", "sending", "loading", "ready" or "refused".
        stored_bytes: how much the worker has.
        reason: why it was refused.
    """

    def __init__(self, file: UploadFile, options: UploadOptions | None = None) -> None:
        self.file = file
        self.state = "waiting"
        self.stored_bytes = 0
        self.reason = ""
        self._options = options or UploadOptions()
        self._sent_bytes = 0
        self._heard = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the worker serves the bundle, or will not."""
        return self.state in ("ready", "refused")

    def connected(self, now: float) -> Iterator[Message]:
        """The worker can be spoken with, for the first time or again."""
        if not self.is_over:
            self.state, self._heard = "offered", now
            yield BundleOffer(self.file.file_sha256, self.file.bundle, self.file.size_bytes)

    def lost(self) -> None:
        """The connection is gone."""
        if not self.is_over:
            self.state = "waiting"

    def heard(self, status: BundleStatus, now: float) -> Iterator[Message]:
        """The worker says what became of a bundle; of another one is ignored."""
        if status.bundle != self.file.bundle or self.is_over or self.state == "waiting":
            return
        self._heard = now
        if status.state == "partial":
            again = self.state != "sending" or status.offset < self.stored_bytes
            self.state, self.stored_bytes = "sending", min(status.offset, self.file.size_bytes)
            self._sent_bytes = self.stored_bytes if again else max(self._sent_bytes, self.stored_bytes)
            yield from self._parts()
        elif status.state in ("loading", "ready", "refused"):
            self.state, self.reason = status.state, status.reason
            self.stored_bytes = self.file.size_bytes if status.state != "refused" else self.stored_bytes

    def tick(self, now: float) -> Iterator[Message]:
        """Time passed: if nothing moved for long, start again from what is stored."""
        if self.state == "sending" and now - self._heard >= self._options.again_s:
            self._heard, self._sent_bytes = now, self.stored_bytes
            yield from self._parts()

    def _parts(self) -> Iterator[Message]:
        end = min(self.stored_bytes + self._options.window_bytes, self.file.size_bytes)
        while self._sent_bytes < end:
            payload = self.file.read(self._sent_bytes, min(self._options.part_bytes, end - self._sent_bytes))
            if not payload:
                self.state, self.reason = "refused", "the file became shorter while it was sent"
                return
            yield BundlePart(self.file.bundle, self._sent_bytes, crc32(payload), payload)
            self._sent_bytes += len(payload)
