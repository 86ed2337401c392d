"""The bundle as a file: a zip whose large members are stored and page-aligned, and whose reader believes nothing.

Small text and graph members are deflated. Writing is atomic and gives the same bytes for the same content. Reading
checks names, sizes and digests before a byte of a member is used, and unpacks once into a cache keyed by digest.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from flagsplit.errors import BundleError, ConfigError
from flagsplit.runtime.manifest import Facts, Manifest, read_manifest, write_manifest

MANIFEST_NAME = "manifest.json"

_EPOCH = (1980, 1, 1, 0, 0, 0)
_ALIGN_BYTES = 4096
_STORED_BYTES = 1 << 20
_CHUNK_BYTES = 4 << 20
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_DEFLATED_BYTES = 256 << 20
_ENCRYPTED_FLAG = 1
_PAD_ID = 0xD935

Member = bytes | Path
Progress = Callable[[int, int], None]


def write_archive(
    path: Path,
    members: dict[str, Member],
    facts_of: Callable[[dict[str, int]], Facts],
    progress: Progress | None = None,
) -> str:
    """Write a bundle; it appears whole under its name or not at all.

    Args:
        path: the bundle file; an existing one is replaced.
        members: content by name, as bytes or as the file that holds it.
        facts_of: makes the manifest's facts from the size of each member.
        progress: called with bytes done and bytes in all.

    Returns:
        The bundle's digest: SHA-256 of its manifest.

    Raises:
        ConfigError: the file cannot be written.
    """
    sizes = {name: _size(member) for name, member in members.items()}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        subjects: dict[str, str] = {}
        done = 0
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, member in sorted(members.items(), key=lambda item: (sizes[item[0]], item[0])):
                digest = hashlib.sha256()
                with _member_for_writing(archive, name, sizes[name]) as out:
                    for chunk in _chunks(member):
                        digest.update(chunk)
                        out.write(chunk)
                        done += len(chunk)
                        if progress is not None:
                            progress(done, sum(sizes.values()))
                subjects[name] = digest.hexdigest()
            manifest = write_manifest(subjects, facts_of(sizes))
            with _member_for_writing(archive, MANIFEST_NAME, len(manifest)) as out:
                out.write(manifest)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}; choose another place with -o") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return hashlib.sha256(manifest).hexdigest()


def _size(member: Member) -> int:
    return len(member) if isinstance(member, bytes) else member.stat().st_size


def _chunks(member: Member) -> Iterator[bytes]:
    if isinstance(member, bytes):
        yield member
        return
    with member.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def _member_for_writing(archive: zipfile.ZipFile, name: str, size_bytes: int) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    info.create_system = 3
    large = size_bytes >= _STORED_BYTES
    info.compress_type = zipfile.ZIP_STORED if large else zipfile.ZIP_DEFLATED
    zip64 = size_bytes >= (1 << 31) - 1
    if large and archive.fp is not None:
        header = archive.fp.tell() + 30 + len(name.encode()) + (20 if zip64 else 0) + 4
        padding = -header % _ALIGN_BYTES
        info.extra = _PAD_ID.to_bytes(2, "little") + padding.to_bytes(2, "little") + b"\0" * padding
    with archive.open(info, "w", force_zip64=zip64) as out:
        yield out


@dataclass(frozen=True)
class Unpacked:
    """A bundle's members on disk.

    Attributes:
        folder: where they are.
        manifest: what the bundle says of itself.
        digest: SHA-256 of the manifest.
    """

    folder: Path
    manifest: Manifest
    digest: str


def unpack(path: Path, cache: Path, progress: Progress | None = None) -> Unpacked:
    """Unpack and verify a bundle, once for each digest.

    Args:
        path: the bundle.
        cache: folder in which unpacked bundles are kept, one per digest.
        progress: called with bytes done and bytes in all.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: the cache cannot be written.
    """
    with _opened(path) as archive:
        manifest, digest = _manifest_of(archive, path)
        _check_members(archive, manifest, path)
        folder = cache / digest
        if _is_whole(folder, manifest):
            return Unpacked(folder, manifest, digest)
        try:
            with _folder_for_unpacking(cache, digest) as temporary:
                _extract(archive, manifest, temporary, path, progress)
                _move_into_place(temporary, folder, manifest, cache)
        except OSError as error:
            raise ConfigError(
                f"cannot unpack {path} into {cache}: {error.strerror or error}; set FLAGSPLIT_CACHE to another folder"
            ) from error
    return Unpacked(folder, manifest, digest)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.exists():
        raise BundleError(f"no such bundle: {path}")
    if not path.is_file():
        raise BundleError(f"expected a bundle file, {path} is a folder or a device")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise BundleError(f"{path} is not a .flagsplit bundle, or is truncated; build or copy it again") from None
    with archive:
        try:
            yield archive
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, zlib.error) as error:
            text = " ".join(str(error).split())
            raise BundleError(f"{path} is damaged: {text}; build or copy it again") from None


def _manifest_of(archive: zipfile.ZipFile, path: Path) -> tuple[Manifest, str]:
    try:
        info = archive.getinfo(MANIFEST_NAME)
    except KeyError:
        raise BundleError(f"{path} is a zip without {MANIFEST_NAME}, so not a flagsplit bundle") from None
    _check_way_of_storing(info, path)
    if info.file_size > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path} claims a manifest of {info.file_size} bytes, over the limit of {_MAX_MANIFEST_BYTES}"
        )
    with archive.open(info) as file:
        data = file.read(_MAX_MANIFEST_BYTES + 1)
    return read_manifest(data), hashlib.sha256(data).hexdigest()


def _check_members(archive: zipfile.ZipFile, manifest: Manifest, path: Path) -> None:
    infos = {info.filename: info for info in archive.infolist()}
    named = {subject.name for subject in manifest.subject}
    sizes = manifest.predicate.sizes
    odd = sorted((set(infos) ^ (named | {MANIFEST_NAME})) | (set(sizes) ^ named))
    if odd:
        raise BundleError(f"{path} and its manifest disagree about {odd[0]!r}; build or copy it again")
    if len(infos) != len(archive.infolist()) or len(named) != len(manifest.subject):
        raise BundleError(f"{path} has a member that stands twice; refused")
    for name in sorted(named):
        info = infos[name]
        if not _is_safe(name):
            raise BundleError(f"{path} has a member named {name!r}, which leaves its folder; refused")
        if sizes[name] != info.file_size:
            raise BundleError(f"{path}: {name} has {info.file_size} bytes, its manifest says {sizes[name]}")
        _check_way_of_storing(info, path)
    deflated = sum(info.file_size for info in infos.values() if info.compress_type != zipfile.ZIP_STORED)
    if deflated > _MAX_DEFLATED_BYTES:
        raise BundleError(f"{path} claims {deflated} bytes of compressed members; over the limit, refused")
    if sum(info.compress_size for info in infos.values()) > path.stat().st_size:
        raise BundleError(f"{path} claims more bytes than it has; refused")


def _check_way_of_storing(info: zipfile.ZipInfo, path: Path) -> None:
    if info.flag_bits & _ENCRYPTED_FLAG or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{path}: {info.filename!r} is encrypted or compressed in an unknown way; refused")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise BundleError(f"{path}: {info.filename!r} is stored but its sizes differ; damaged")


def _is_safe(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and "\\" not in name
        and name.isprintable()
        and all(part not in ("..", ".") for part in parts)
        and ":" not in parts[0]
        and str(PurePosixPath(name)) == name
    )


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether all members are there with the right size; their digests were checked when they were unpacked."""
    sizes: Iterable[tuple[str, int]] = manifest.predicate.sizes.items()
    try:
        return folder.is_dir() and all((folder / name).stat().st_size == size for name, size in sizes)
    except OSError:
        return False


def _extract(archive: zipfile.ZipFile, manifest: Manifest, folder: Path, path: Path, progress: Progress | None) -> None:
    total, done = sum(manifest.predicate.sizes.values()), 0
    for subject in manifest.subject:
        target = folder / subject.name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with archive.open(subject.name) as source, target.open("xb") as out:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            # Its size is all that later starts look at, and after a loss of power the right size may be full of zeros.
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != subject.digest.sha256:
            raise BundleError(f"{path}: {subject.name} is damaged, its digest differs; build or copy the bundle again")


@contextmanager
def _folder_for_unpacking(cache: Path, digest: str) -> Iterator[Path]:
    """A folder that is gone afterwards, unless it was moved; those that killed processes left behind go first.

    A folder belongs to whoever holds a lock on it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".{digest}.{os.getpid()}.{secrets.token_hex(6)}"
    with _turn(cache):  # or a folder could be taken for left behind between its making and its locking
        _remove_left_behind(cache)
        temporary.mkdir(mode=0o700)
        ours = _locked(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(ours)


@contextmanager
def _turn(cache: Path) -> Iterator[None]:
    """Of several processes one at a time changes what is in the cache."""
    with (cache / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _locked(folder: Path) -> int:
    """The descriptor that holds the folder's lock. Raises OSError if another process has it."""
    found = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(found)
        raise
    return found


def _remove_left_behind(cache: Path) -> None:
    for folder in cache.glob(".*.*.*"):
        with suppress(OSError):
            theirs = _locked(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(theirs)


def _move_into_place(temporary: Path, folder: Path, manifest: Manifest, cache: Path) -> None:
    """Of several processes that unpack the same bundle, or repair its folder, one moves at a time."""
    with _turn(cache):
        if not _is_whole(folder, manifest):
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
