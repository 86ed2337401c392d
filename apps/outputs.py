"""Checking where a result shall go, before any work is done for it."""

from pathlib import Path

from flagsplit.errors import ConfigError


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
