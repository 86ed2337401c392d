"""How many files a command may open that many clients connect to."""

import resource
from contextlib import suppress
from typing import Final

from flagsplit.errors import ConfigError

_WANTED: Final = 65_536
_LEAST: Final = 64
"""What listening and a few clients take. libzmq ends the process where it has no file for itself."""


def allow_many_open_files() -> None:
    """Raise the limit that shells set, which is for old programs, towards the one that the operator set.

    Each connection is a file. Where there are none left a worker takes nobody, and libzmq may end the process.

    Raises:
        ConfigError: the operator's limit is too low for any work.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if most < _LEAST:
        raise ConfigError(
            f"Too many open files: expected a limit of {_LEAST} or more, came {most}; raise it with ulimit -n, or "
            "LimitNOFILE of systemd"
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # some systems have a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
