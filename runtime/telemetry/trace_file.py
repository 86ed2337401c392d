"""The file that spans go to: written on a thread of its own, so that a slow disk does not hold requests up."""

import logging
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

from flagsplit.errors import ConfigError
from flagsplit.runtime.telemetry.otlp import encode, resource_of
from flagsplit.runtime.telemetry.settings import About
from flagsplit.runtime.telemetry.tracing import Span

_log = logging.getLogger(__name__)
_MOST_WAITING = 4096


class TraceFile:
    """Appends spans to a file.

    Args:
        path: the file; several processes may append to one.
        about: whose spans they are.

    Attributes:
        dropped: groups of spans that were left out because the disk was too slow or full.

    Raises:
        ConfigError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.dropped = 0
        self._resource = resource_of(about)
        self._waiting: queue.Queue[Sequence[Span] | None] = queue.Queue(_MOST_WAITING)
        try:
            self._file = path.open("ab", buffering=0)
            self._torn = _ends_torn(path)
        except OSError as error:
            raise ConfigError(f"cannot write traces to {path}: {error.strerror}; name another file") from None
        self._thread = threading.Thread(target=self._work, name="flagsplit-traces", daemon=True)
        self._thread.start()

    def write(self, spans: Sequence[Span]) -> None:
        """Write spans soon; does not wait."""
        try:
            self._waiting.put_nowait(spans)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits and close the file. A second call does nothing."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _work(self) -> None:
        with self._file as file:
            while (spans := self._waiting.get()) is not None:
                line = encode(self._resource, spans)
                if self._torn:
                    line = b"\n" + line  # or this one would be lost with the one that it hangs on
                try:
                    written = file.write(line) or 0
                except OSError as error:
                    self._lost(error.strerror or str(error))
                    continue
                self._torn = written < len(line)
                if self._torn:
                    self._lost("the disk took a part of a line")

    def _lost(self, why: str) -> None:
        if not self.dropped:
            _log.warning("traces are lost: %s", why)
        self.dropped += 1


def _ends_torn(path: Path) -> bool:
    """Whether the last line was not written to its end; of what is no file nothing can be said."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
