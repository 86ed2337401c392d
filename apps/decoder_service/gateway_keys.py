"""Bearer tokens of a file, and who a token belongs to.

Each line is `NAME TOKEN`; empty lines and what follows `#` are left out. The file must be readable by its owner only.
Changes of it count from the next request on. Of the tokens only hashes are kept.
"""

import hashlib
import hmac
import re
import stat
from pathlib import Path

from flagsplit.errors import ConfigError

_LEAST_CHARACTERS = 16
_LARGEST_FILE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")


class ApiKeys:
    """The tokens that a file has now.

    Args:
        path: of the file.

    Raises:
        ConfigError: the file is missing, others can read it, or a line of it is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._names: dict[bytes, str] = {}
        self._refresh()

    def client(self, token: str) -> str:
        """Whose token it is; "" if nobody's.

        Raises:
            ConfigError: the file has become unusable: nobody is let in.
        """
        self._refresh()
        given = _digest(token)
        found = ""
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"others may read the tokens in {self._path}; run chmod 600 {self._path}")
            if status.st_size > _LARGEST_FILE:
                raise ConfigError(f"expected at most {_LARGEST_FILE} bytes of tokens in {self._path}")
            text = self._path.read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read the tokens in {self._path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"expected lines of NAME TOKEN in {self._path}, came no text") from None
        self._names = _read(text, self._path)
        self._seen = seen


def _read(text: str, path: Path) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _TOKEN.fullmatch(words[1]):
            raise ConfigError(f"{path}, line {number}: expected NAME TOKEN, both without spaces")
        if len(words[1]) < _LEAST_CHARACTERS:
            raise ConfigError(f"{path}, line {number}: a token needs at least {_LEAST_CHARACTERS} characters")
        if found.setdefault(_digest(words[1]), words[0]) != words[0]:
            raise ConfigError(f"{path}, line {number}: the token belongs to someone else already")
    if not found:
        raise ConfigError(f"{path} has no tokens, so nobody could ask; add a line of NAME TOKEN")
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
