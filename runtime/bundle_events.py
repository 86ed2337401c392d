"""What passes between the worker's machine and whoever stores and loads the bundles that peers send.

The machine decides (`flagsplit.runtime.worker_bundles`), `flagsplit.runtime.bundle_intake` does: files, digests and
loading take longer than a machine may. An upload has a number of its own, so that news of one that is over is not taken
for news of the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.transport.messages import Frame


@dataclass(frozen=True)
class Served:
    """What a worker knows of a bundle that it serves: all tiers in the order of the line, and its own segments."""

    tiers: tuple[str, ...]
    segments: Mapping[str, PlannedStep] = field(repr=False)


@dataclass(frozen=True)
class OpenUpload:
    """Make room for a file, or find the part of it that is here; `UploadOpened` or `UploadFailed` follows."""

    upload: int
    file_sha256: str
    size_bytes: int


@dataclass(frozen=True)
class StorePart:
    """Write bytes of the file; `PartStored` or `UploadFailed` follows."""

    upload: int
    offset: int
    payload: Frame = field(repr=False)


@dataclass(frozen=True)
class CloseUpload:
    """Nobody sends the rest for now: keep what is here of the file, or remove it."""

    upload: int
    keep: bool


@dataclass(frozen=True)
class LoadBundle:
    """The file is whole: check it, load it beside what is loaded; `BundleLoaded` or `UploadFailed` follows."""

    upload: int
    bundle: str


@dataclass(frozen=True)
class UnloadBundle:
    """Nobody runs a bundle any more: free what it holds; `BundleUnloaded` follows."""

    bundle: str


@dataclass(frozen=True)
class UploadOpened:
    """`offset` bytes from the start of the file are here."""

    upload: int
    offset: int


@dataclass(frozen=True)
class PartStored:
    """`offset` bytes from the start of the file are here now."""

    upload: int
    offset: int


@dataclass(frozen=True)
class UploadFailed:
    """The file cannot be stored, or is no bundle that can be served here; nothing of it is left."""

    upload: int
    reason: str


@dataclass(frozen=True)
class BundleLoaded:
    """A bundle can be served from now on."""

    upload: int
    bundle: str
    served: Served


@dataclass(frozen=True)
class BundleUnloaded:
    """A bundle holds nothing any more."""

    bundle: str


BundleEvent = UploadOpened | PartStored | UploadFailed | BundleLoaded | BundleUnloaded
BundleInstruction = OpenUpload | StorePart | CloseUpload | LoadBundle | UnloadBundle
