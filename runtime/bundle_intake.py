"""The disk side of bundles that are sent to a worker: part files, digests, loading; on threads of its own.

Each worker has a folder of its own in the cache, held by a lock, and removes the folders of workers that are gone. Part
files are named by the SHA-256 that their whole must have, never by anything else from the wire; what was interrupted
is found there again. Decisions are the machine's (`worker_bundles.py`).
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flagsplit.errors import FlagsplitError
from flagsplit.runtime.background import give_way
from flagsplit.runtime.bundle_events import (
    BundleEvent,
    BundleInstruction,
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

# Beside the file and its members: a full disk harms more than this worker.
_SPARE_BYTES = 256 << 20
_READ_BYTES = 4 << 20
_log = logging.getLogger(__name__)


class BundleIntake:
    """Stores and loads bundles.

    Args:
        cache: where unpacked bundles are kept; part files go into a folder in it.
        load: opens the bundle in a file, checks that it has the digest and can be served, and loads it.
        unload: frees a bundle.
        post: gets the news, on any thread.
    """

    def __init__(
        self,
        cache: Path,
        load: Callable[[Path, str], Served],
        unload: Callable[[str], None],
        post: Callable[[BundleEvent], None],
    ) -> None:
        self._root = cache / "uploads"
        self._load, self._unload, self._post = load, unload, post
        self._folder: Path | None = None
        self._lock = -1
        self._files: dict[int, tuple[Path, str, int]] = {}
        # Digests, unpacking and writing give way to those who serve; segments are loaded by the engine's own thread.
        self._disk = ThreadPoolExecutor(1, "flagsplit-disk", give_way)
        self._loader = ThreadPoolExecutor(1, "flagsplit-loader", give_way)

    def do(self, instruction: BundleInstruction) -> None:
        """Begin what is asked for; does not block."""
        match instruction:
            case OpenUpload(upload):
                self._disk.submit(self._try, upload, lambda: self._open(instruction))
            case StorePart(upload):
                self._disk.submit(self._try, upload, lambda: self._store(instruction))
            case CloseUpload(upload, keep):
                self._disk.submit(self._try, upload, lambda: self._close(upload, keep=keep))
            case LoadBundle(upload):
                self._loader.submit(self._try, upload, lambda: self._take(instruction))
            case UnloadBundle(bundle):
                self._loader.submit(self._free, bundle)

    def close(self) -> None:
        """End the threads, remove part files. A second call does nothing."""
        self._loader.shutdown(cancel_futures=True)
        self._disk.shutdown(cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = None

    def _try(self, upload: int, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whoever sent the bundle must hear of whatever breaks here
            if isinstance(error, OSError):
                reason = f"it cannot be stored: {error.strerror or error}"
            elif isinstance(error, FlagsplitError):
                reason = str(error)
            else:
                reason = f"it cannot be loaded: {type(error).__name__}: {error}"
                _log.exception("taking in a bundle failed")
            path, _, _ = self._files.pop(upload, (None, "", 0))
            if path is not None:
                path.unlink(missing_ok=True)
            self._post(UploadFailed(upload, reason))

    def _open(self, wanted: OpenUpload) -> None:
        folder = self._make_folder()
        path = folder / f"{wanted.file_sha256}.part"
        self._files[wanted.upload] = (path, wanted.file_sha256, wanted.size_bytes)
        path.touch(mode=0o600)
        here = path.stat().st_size
        if here > wanted.size_bytes:
            os.truncate(path, 0)
            here = 0
        # The file, and its members unpacked.
        needed = 2 * wanted.size_bytes - here + _SPARE_BYTES
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(0, f"{needed} bytes of disk are needed, {free} are free")
        self._post(UploadOpened(wanted.upload, here))

    def _store(self, part: StorePart) -> None:
        known = self._files.get(part.upload)
        if known is None:
            return  # it failed, and that was told
        with known[0].open("r+b") as file:
            file.seek(part.offset)
            file.write(part.payload)
        self._post(PartStored(part.upload, part.offset + len(part.payload)))

    def _close(self, upload: int, *, keep: bool) -> None:
        path, _, _ = self._files.pop(upload, (None, "", 0))
        if path is not None and not keep:
            path.unlink(missing_ok=True)

    def _take(self, wanted: LoadBundle) -> None:
        path, sha256, size_bytes = self._files[wanted.upload]
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
        if path.stat().st_size != size_bytes or digest.hexdigest() != sha256:
            raise OSError(0, "its SHA-256 is not the one that was announced; send it again")
        served = self._load(path, wanted.bundle)
        self._close(wanted.upload, keep=False)
        self._post(BundleLoaded(wanted.upload, wanted.bundle, served))

    def _free(self, bundle: str) -> None:
        try:
            self._unload(bundle)
        except Exception:  # noqa: BLE001 - what cannot be freed must not keep the bundle from being retired
            _log.exception("freeing bundle %s failed", bundle[:12])
        self._post(BundleUnloaded(bundle))

    def _make_folder(self) -> Path:
        if self._folder is None:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # One worker at a time, or a folder could be taken for abandoned between its making and its locking.
            turn = _locked(self._root, wait=True)
            try:
                _remove_abandoned(self._root)
                folder = Path(tempfile.mkdtemp(dir=self._root))
                self._lock = _locked(folder)
            finally:
                os.close(turn)
            self._folder = folder
        return self._folder


def _locked(folder: Path, *, wait: bool = False) -> int:
    """The descriptor that holds a folder's lock for as long as this process lives. Raises OSError if another has it."""
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove_abandoned(root: Path) -> None:
    """Remove the folders whose worker is gone."""
    for folder in root.iterdir():
        if not folder.is_dir():
            continue  # the lock of the root itself
        try:
            lock = _locked(folder)
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
