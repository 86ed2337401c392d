"""Checking where a result shall go, before any work is done for it, and a place for what is unfinished."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flagsplit.errors import ConfigError

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_output(path: Path, *sources: Path | None) -> None:
    """Refuse what cannot become a file, or is one that is still needed.

    Results appear by a rename, which would take the place of a device such as /dev/null for everybody on this host.

    Args:
        path: where the result shall go.
        sources: the files that it is made from.

    Raises:
        ConfigError: the path is a folder, a device or a pipe, lies in a folder that does not exist, or is a source.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"expected a file to write, {path} is a folder; give the name of a file in it with -o")
        if path.exists() and not path.is_file():
            raise ConfigError(f"expected a file to write, {path} is a device or a pipe; give another name with -o")
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
        check_apart(path, *sources)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another name with -o") from None


def check_apart(path: Path, *sources: Path | None) -> None:
    """Refuse to write to a file that is read.

    Raises:
        ConfigError: the path is one of the sources.
    """
    for source in sources:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(f"{path} would be read and written; give what is written another name")


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
