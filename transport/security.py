"""Keys: who we are, which clients may use our workers, and which server key belongs to which address.

CURVE is on unless `NO_SECURITY` is written out. `KeyStore` is a folder of small text files with Z85 keys, safe to edit
by hand; changes count from the next handshake on. `Security` is what a channel gets. `zap.py` has the handshake's side.

    identity.secret      our secret key, readable by us only; made on first use
    identity.public      our public key, to hand to others
    authorized/*.public  client keys that may connect to us; our own always may. NAME.admin.public may send and retire
                         bundles too, NAME.worker.public is a worker's and may pass on requests of any session
    known_servers        lines "ADDRESS KEY": the key to expect at an address; anywhere else we expect our own
"""

import fcntl
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from flagsplit.errors import ConfigError
from flagsplit.transport.address import parse_address

_KEY_CHARS: Final = 40
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ADMIN, _WORKER = ".admin", ".worker"
_RIGHTS: Final = (_ADMIN, _WORKER)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NoSecurity:
    """Plain connections that anybody may open: for benchmarks and tests on one machine."""


NO_SECURITY: Final = NoSecurity()


@dataclass(frozen=True, slots=True)
class Security:
    """What a channel needs to encrypt and to tell friend from stranger. Keys are Z85 text of 40 characters."""

    public_key: str
    secret_key: str = field(repr=False)
    is_authorized: Callable[[str], bool]
    server_key_for: Callable[[str], str]


def check_key(key: str, what: str) -> str:
    """The key, if it is 40 characters of Z85. Raises ConfigError that says `what` it is."""
    try:
        valid = len(key) == _KEY_CHARS and len(z85.decode(key.encode("ascii"))) == 32
    except (ValueError, KeyError, UnicodeEncodeError):
        valid = False
    if not valid:
        raise ConfigError(f"{what}: expected a key of {_KEY_CHARS} Z85 characters, got {len(key)} characters")
    return key


def default_key_directory() -> Path:
    home = os.environ.get("FLAGSPLIT_HOME")
    return (Path(home) if home else Path.home() / ".config" / "flagsplit") / "keys"


class KeyStore:
    """The key folder, made with a new identity on first use. Raises ConfigError when others could read or change it."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or default_key_directory()
        try:
            for folder in (self.directory, self._authorized):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _refuse_writable_by_others(folder)
            self._secret_key = self._load_or_make_secret()
            self.public_key = zmq.curve_public(self._secret_key.encode()).decode()
            public_file = self.directory / "identity.public"
            if not public_file.exists() or _text_of(public_file) != self.public_key:
                _write_atomically(public_file, self.public_key + "\n", mode=0o644)
        except OSError as exc:
            raise ConfigError(f"key folder {self.directory}: {exc.strerror}; FLAGSPLIT_HOME chooses another") from exc
        self.authorized()

    @property
    def _authorized(self) -> Path:
        return self.directory / "authorized"

    @property
    def _known_servers(self) -> Path:
        return self.directory / "known_servers"

    def security(self) -> Security:
        return Security(self.public_key, self._secret_key, self.is_authorized, self.server_key_for)

    def authorize(self, name: str, public_key: str, *, admin: bool = False, worker: bool = False) -> None:
        """Let the owner of `public_key` use our workers, under a `name` for people; what was said of the name is over.

        Args:
            name: what to call the client.
            public_key: its key.
            admin: whether it may send and retire bundles too.
            worker: whether it is a worker, which passes on requests of any session.
        """
        check_key(public_key, f"client {name}")
        if not _FILE_NAME.fullmatch(name) or name.endswith(_RIGHTS):
            raise ConfigError(
                f"client name {name!r}: expected up to 64 letters, digits and . _ @ -, "
                f"not ending in {' or '.join(_RIGHTS)}"
            )
        file = self._authorized / f"{name}{_ADMIN if admin else ''}{_WORKER if worker else ''}.public"
        _write_atomically(file, public_key + "\n", mode=0o644)
        for other in self._files_of(name):
            if other != file:
                other.unlink(missing_ok=True)

    def revoke(self, name: str) -> None:
        """Refuse a client from its next connection on. Raises ConfigError when there is none of that name."""
        files = self._files_of(name)
        if not files:
            names = ", ".join(self.authorized()) or "none"
            raise ConfigError(f"no authorized client is called {name!r}; there are: {names}")
        for file in files:
            file.unlink(missing_ok=True)

    def authorized(self) -> dict[str, str]:
        """Keys of the clients that may connect, by name, without our own. Raises ConfigError on a damaged file."""
        files = sorted(self._authorized.glob("*.public"))
        return {_name_of(file): check_key(_text_of(file), str(file)) for file in files}

    def admins(self) -> list[str]:
        """Names of the authorized clients that may send and retire bundles; our own key always may."""
        return self._names_with(_ADMIN)

    def workers(self) -> list[str]:
        """Names of the authorized clients that are workers; whoever has our own key may be one."""
        return self._names_with(_WORKER)

    def is_authorized(self, public_key: str) -> bool:
        """Asked at each handshake, from another thread: reads the folder anew, so that a change needs no restart."""
        return self._has(public_key)

    def is_admin(self, public_key: str) -> bool:
        """Whether the owner of a key may send and retire bundles; a change needs no restart."""
        return self._has(public_key, _ADMIN)

    def is_worker(self, public_key: str) -> bool:
        """Whether the owner of a key may pass on requests of any session; a change needs no restart."""
        return self._has(public_key, _WORKER)

    def _names_with(self, right: str) -> list[str]:
        files = sorted(self._authorized.glob("*.public"))
        return sorted({_name_of(file) for file in files if right in _rights_of(file)})

    def _has(self, public_key: str, right: str = "") -> bool:
        if public_key == self.public_key:
            return True
        for file in self._authorized.glob("*.public"):
            try:
                if right in _rights_of(file) and _text_of(file) == public_key:
                    return True
            except (OSError, ConfigError):
                _log.warning("cannot read the client key %s; it is not authorized", file)
        return False

    def trust(self, address: str, server_key: str) -> None:
        """Expect `server_key` at `address` from now on."""
        check_key(server_key, f"server key of {address}")
        with self._locked():
            known = self.known_servers() | {str(parse_address(address)): server_key}
            text = "".join(f"{known_address} {key}\n" for known_address, key in sorted(known.items()))
            _write_atomically(self._known_servers, text, mode=0o644)

    def known_servers(self) -> dict[str, str]:
        """Server keys by address. Raises ConfigError on a damaged line."""
        try:
            lines = _text_of(self._known_servers).splitlines()
        except FileNotFoundError:
            return {}
        known = {}
        for number, line in enumerate(lines, start=1):
            address, _, key = line.strip().rpartition(" ")
            if address:
                known[address.strip()] = check_key(key, f"{self._known_servers}, line {number}")
        return known

    def server_key_for(self, address: str) -> str:
        """The key to expect at an address: our own, unless `trust` said otherwise."""
        return self.known_servers().get(str(parse_address(address)), self.public_key)

    def _files_of(self, name: str) -> list[Path]:
        return [file for file in self._authorized.glob("*.public") if _name_of(file) == name]

    def _load_or_make_secret(self) -> str:
        file = self.directory / "identity.secret"
        if not file.exists():
            public, secret = zmq.curve_keypair()
            while public.startswith(b"-"):  # which other programs' command lines would take for an option
                public, secret = zmq.curve_keypair()
            # Linked into place only if there is none: two first starts at the same moment end up with one identity.
            _write_atomically(file, secret.decode() + "\n", mode=0o600, replace=False)
        facts = file.stat()
        if stat.S_IMODE(facts.st_mode) & 0o077:
            mode = stat.S_IMODE(facts.st_mode)
            raise ConfigError(f"{file} can be read by others (mode {mode:04o}): run chmod 600 {file}")
        return check_key(_text_of(file), str(file))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _name_of(file: Path) -> str:
    name = file.name.removesuffix(".public")
    while name.endswith(_RIGHTS):
        name = name.rpartition(".")[0]
    return name


def _rights_of(file: Path) -> str:
    return file.name.removesuffix(".public").removeprefix(_name_of(file))


def _text_of(file: Path) -> str:
    """What a file says; what is no text is no key either, and is refused as such. Raises ConfigError."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ConfigError(f"cannot read {file}: {exc.strerror}") from exc


def _refuse_writable_by_others(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise ConfigError(f"{folder} can be changed by others (mode {mode:04o}): run chmod go-w {folder}")


def _write_atomically(file: Path, text: str, *, mode: int, replace: bool = True) -> None:
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            Path(temporary).replace(file)
        else:
            try:
                file.hardlink_to(temporary)
            except FileExistsError:
                return
    finally:
        Path(temporary).unlink(missing_ok=True)
