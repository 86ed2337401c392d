"""Standard input, output and error as commands rely on them: they are there, and no character is an error."""

import os
import sys
from typing import Final, TextIO

_NAMES: Final = ("stdin", "stdout", "stderr")


def prepare_standard_streams() -> None:
    """Open those that were closed, and let them say what their encoding has no character for in another way."""
    for number, name in enumerate(_NAMES):
        # Otherwise the next file or socket gets the number, and is read and printed to.
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115 - for good
    _replace_unknown(sys.stdout, "replace")
    _replace_unknown(sys.stderr, "backslashreplace")


def can_say(text: str) -> bool:
    """Whether standard output has all of the characters: names of files may have none, and some encodings few."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _replace_unknown(stream: TextIO, how: str) -> None:
    if hasattr(stream, "reconfigure"):  # programs and tests may have put something else there
        stream.reconfigure(errors=how)
