"""Qualcomm's SDK in a process of its own, because it ends its process on a damaged binary.

There are two more reasons: the names in a binary count what the process compiled before, so that only a fresh process
makes the same bytes each time; and what the compiler took of memory is free afterwards.
"""

import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from typing import IO, Any

from flagsplit.errors import ConfigError
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.qnn.frames import BrokenPipeContentError, receive, send

_MOST_LOG_BYTES = 8 << 20


class SdkDiedError(Exception):
    """The process with the SDK ended; the message says by what."""


class SdkRefusedError(Exception):
    """The SDK did not do what it was asked for; the message is the SDK's."""


class SdkProcess:
    """A process that answers requests of `sdk.py`, one at a time. To be used in a `with` statement, or closed.

    Raises:
        ConfigError: the SDK is not installed, or does not run here.
    """

    def __init__(self) -> None:
        if find_spec("onnxruntime_qnn") is None:
            raise ConfigError(
                "the qnn target needs onnxruntime-qnn, which is not installed; pip install 'flagsplit[qnn]' "
                "(there are packages for Linux on x86-64 and for Windows)"
            )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flagsplit.targets.mobile.qnn.sdk"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        )
        self._end = weakref.finalize(self, _end, self._process, self._log)
        try:
            self._answer()
        except SdkDiedError as error:
            self.close()
            raise ConfigError(f"onnxruntime-qnn does not start: {error}; install it again") from None

    def __enter__(self) -> "SdkProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, message: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Send a request and wait for the answer.

        Raises:
            SdkDiedError, SdkRefusedError: see there.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # why it ended comes out below
            send(self._process.stdin, message, arrays or {})
        answer, made = self._answer()
        if "failed" in answer:
            raise SdkRefusedError(str(answer["failed"]))
        return answer, made

    def log_size(self) -> int:
        """How many bytes the SDK has printed."""
        return os.fstat(self._log.fileno()).st_size

    def log(self, start: int = 0) -> str:
        """What the SDK printed from there on, the end of it if it is much."""
        # Positioned by pread: the process writes at the offset that it shares with this file.
        size = os.fstat(self._log.fileno()).st_size
        start = max(start, size - _MOST_LOG_BYTES)
        return os.pread(self._log.fileno(), size - start, start).decode(errors="replace")

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._end()

    def _answer(self) -> tuple[dict[str, Any], dict[str, Array]]:
        assert self._process.stdout is not None
        try:
            return receive(self._process.stdout)
        except (BrokenPipeContentError, ValueError, KeyError, TypeError) as error:
            self._process.kill()
            code = self._process.wait()
            last = (self.log().strip().splitlines() or [str(error)])[-1]
            raise SdkDiedError(f"the SDK's process ended with {code} ({last[:200]})") from None


def installed_version() -> str | None:
    """The version of onnxruntime-qnn here; None if it is not installed."""
    try:
        return metadata.version("onnxruntime-qnn")
    except metadata.PackageNotFoundError:
        return None


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, log):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
