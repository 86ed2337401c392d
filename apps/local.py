"""Workers of this host: started as processes on loopback, told apart from the real thing by nothing.

A worker started here reads its standard input and ends when that closes, so none outlives the process that started it,
however that one ends.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from flagsplit.errors import PeerError
from flagsplit.transport.messages import PeerAddress

_START_S = 60.0


@dataclass(frozen=True)
class LocalWorker:
    """A worker process.

    Attributes:
        tier: the tier that it serves.
        address: where it listens.
        process: the process.
    """

    tier: str
    address: PeerAddress
    process: "subprocess.Popen[bytes]"


class LocalWorkers:
    """Worker processes on loopback, one for each tier. Use it in a `with` statement.

    Args:
        bundles: path of the bundle, or paths of several that each worker serves.
        tiers: names of the tiers to serve.
        threads: threads of each worker's engine.
        slowdowns: by tier, how many times as slow it is made to be, to emulate another device.
        keys: the key folder; the user's own by default.
        run_targets: by tier, which of its artifacts runs; ONNX Runtime's by default.

    Raises:
        PeerError: a worker did not start; the message carries what it said.
    """

    def __init__(
        self,
        bundles: Path | Sequence[Path],
        tiers: Sequence[str],
        *,
        threads: int = 1,
        slowdowns: Mapping[str, float] | None = None,
        keys: Path | None = None,
        run_targets: Mapping[str, str] | None = None,
    ) -> None:
        paths = (bundles,) if isinstance(bundles, Path) else tuple(bundles)
        self.workers: dict[str, LocalWorker] = {}
        starting: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        try:
            for tier in tiers:
                errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, after the worker had its say
                slowdown = (slowdowns or {}).get(tier, 1.0)
                told = {"--threads": str(threads), "--slowdown": str(slowdown)}
                if tier in (run_targets or {}):
                    told["--target"] = (run_targets or {})[tier]
                if keys is not None:
                    told["--keys"] = str(keys)
                starting[tier] = _start(paths, tier, told, errors), errors
            for tier, (process, log) in starting.items():
                self.workers[tier] = LocalWorker(tier, PeerAddress(_address_of(process, tier, log)), process)
        except BaseException:
            for process, _ in starting.values():
                _end(process)
            raise
        finally:
            for _, log in starting.values():
                log.close()

    @property
    def addresses(self) -> dict[str, PeerAddress]:
        """Where each tier listens."""
        return {tier: worker.address for tier, worker in self.workers.items()}

    def close(self) -> None:
        """End all workers. A second call does nothing."""
        for worker in self.workers.values():
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in self.workers.values():
            _end(worker.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start(bundles: Sequence[Path], tier: str, told: Mapping[str, str], errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [
        *(sys.executable, "-m", "flagsplit.apps.cli", "serve", *map(str, bundles), "--tier", tier),
        *("--listen", "tcp://127.0.0.1:0", "--until-stdin-closes", "--json"),
        *(word for option in told.items() for word in option),
    ]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )


def _address_of(process: "subprocess.Popen[bytes]", tier: str, errors: IO[bytes]) -> str:
    """Read the line in which a worker says where it listens."""
    deadline = time.monotonic() + _START_S
    said = b""
    if process.stdout is None:
        raise PeerError(f"the worker for tier {tier} has no output")
    waiting = select.poll()  # `select` takes no descriptors beyond 1023, which applications with many files have
    waiting.register(process.stdout, select.POLLIN)
    while b"\n" not in said:
        ready = waiting.poll(1e3 * max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not chunk:
            _end(process)
            errors.seek(0)
            why = errors.read(4096).decode(errors="replace").strip()
            raise PeerError(f"the worker for tier {tier} did not start: {why or f'no word within {_START_S:g} s'}")
        said += chunk
    return str(json.loads(said.split(b"\n")[0])["address"])


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
