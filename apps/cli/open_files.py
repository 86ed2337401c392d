"""How many files a command may open that many clients connect to."""

import resource
from contextlib import suppress
from typing import Final

_WANTED: Final = 65_536


def allow_many_open_files() -> None:
    """Raise the limit that shells set, which is for old programs, towards the one that the operator set.

    Each connection is a file. Where there are none left a worker takes nobody, and libzmq may end the process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # some systems have a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
