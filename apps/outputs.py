"""Checking where a result shall go, before any work is done for it, and a place for what is unfinished."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flagsplit.errors import ConfigError

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_output(path: Path) -> None:
    """Refuse what cannot become a file.

    Results appear by a rename, which would take the place of a device such as /dev/null for everybody on this host.

    Raises:
        ConfigError: the path is a folder, a device or a pipe, or lies in a folder that does not exist.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"expected a file to write, {path} is a folder; give the name of a file in it with -o")
        if path.exists() and not path.is_file():
            raise ConfigError(f"expected a file to write, {path} is a device or a pipe; give another name with -o")
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another name with -o") from None


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """A folder for unfinished files, on the file system of the output.

    Raises:
        ConfigError: it cannot be made, or there is no room for what is written to it.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=".flagsplit-build-", dir=output.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}; choose another place with -o") from None
    with made as scratch:
        try:
            yield Path(scratch)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise ConfigError(f"cannot write {output}: {error.strerror}; choose another place with -o") from error
