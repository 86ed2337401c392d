"""Coral's `edgetpu_compiler`, where it is on PATH, and what its log says."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flagsplit.errors import ModelError

PROGRAM = "edgetpu_compiler"
MAPPED_STATUS = "Mapped to Edge TPU"
_TIMEOUT_S = 180
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = r"([\d.]+)\s*(B|KiB|MiB|GiB)\b"
_FIELDS = {
    "cached_bytes": rf"On-chip memory used for caching model parameters:\s*{_SIZE}",
    "remaining_bytes": rf"On-chip memory remaining for caching model parameters:\s*{_SIZE}",
    "streamed_bytes": rf"Off-chip memory used for streaming uncached model parameters:\s*{_SIZE}",
}
_COUNTS = {
    "subgraphs": r"Number of Edge TPU subgraphs:\s*(\d+)",
    "operators": r"Total number of operations:\s*(\d+)",
}
_ROW = re.compile(r"^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_VERSION = re.compile(r"Edge TPU Compiler version (\S+)")


@dataclass(frozen=True)
class Log:
    """What a log says.

    Attributes:
        version: of the compiler.
        sizes: cached_bytes, remaining_bytes and streamed_bytes, as far as they are told.
        counts: subgraphs and operators, as far as they are told.
        statuses: operator, how many, and what became of them.
    """

    version: str
    sizes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    statuses: tuple[tuple[str, int, str], ...] = ()

    @property
    def mapped(self) -> int:
        """How many operators run on the Edge TPU."""
        return sum(count for _, count, status in self.statuses if status == MAPPED_STATUS)

    @property
    def left(self) -> dict[str, str]:
        """The operators that do not, with the reason."""
        return {code: status for code, _, status in self.statuses if status != MAPPED_STATUS}


def read_log(text: str) -> Log:
    """Read what the compiler prints, or writes beside its output."""
    version = _VERSION.search(text)
    sizes = {name: _bytes(*found.groups()) for name, each in _FIELDS.items() if (found := re.search(each, text))}
    counts = {name: int(found[1]) for name, each in _COUNTS.items() if (found := re.search(each, text))}
    rows = tuple((code, int(count), status) for code, count, status in _ROW.findall(text))
    return Log(version[1] if version else "", sizes, counts, rows)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def installed() -> bool:
    """Whether the compiler is on PATH."""
    return shutil.which(PROGRAM) is not None


def compile_files(files: Sequence[bytes]) -> list[tuple[bytes, Log]]:
    """Compile .tflite files, each for a chip of its own.

    Returns:
        For each the file with what is mapped as one custom operator, and the log.

    Raises:
        ModelError: the compiler failed; the message has what it said.
    """
    program = shutil.which(PROGRAM)
    assert program is not None
    made = []
    with tempfile.TemporaryDirectory(prefix="flagsplit-edgetpu-") as folder:
        for at, data in enumerate(files):
            source = Path(folder) / f"m{at}.tflite"
            source.write_bytes(data)
            try:
                done = subprocess.run(  # noqa: S603 - a program of the user's PATH, with our own arguments
                    [program, "-s", "-o", folder, str(source)],
                    capture_output=True,
                    text=True,
                    timeout=_TIMEOUT_S,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ModelError(f"{PROGRAM} did not run: {error}") from error
            said = done.stdout + done.stderr
            output = Path(folder) / f"m{at}_edgetpu.tflite"
            if done.returncode or not output.is_file():
                raise ModelError(f"{PROGRAM} could not compile a segment: {' '.join(said.split())[-500:]}")
            log = output.with_suffix(".log")
            made.append(
                (
                    output.read_bytes(),
                    read_log(said + (log.read_text() if log.is_file() and not _ROW.search(said) else "")),
                )
            )
    return made
