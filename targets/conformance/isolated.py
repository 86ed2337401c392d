"""Cases in processes that may die: one that crashes or hangs costs its case, and a new one goes on.

`worker` is the program that runs there. A case reaches it as a folder on disk, the result comes back as JSON.
"""

import json
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from flagsplit.errors import ConfigError
from flagsplit.targets.conformance.cases import Case, CaseResult, write_case

_PROGRAM = (sys.executable, "-m", "flagsplit.targets.conformance.worker")
_END_S = 10.0
_FIRST_EXTRA_S = 60.0
"""A new process imports the SDK with its first case."""


def run_isolated(
    target: str,
    cases: Sequence[Case],
    choices: Mapping[str, str],
    *,
    jobs: int,
    done: Callable[[CaseResult], None],
) -> list[CaseResult]:
    """Run cases that apply, each in a process of its own or after others in one.

    Args:
        target: its name, as `naming.target_named` takes it.
        cases: what to compute.
        choices: the target's own choices of a build.
        jobs: how many processes at a time.
        done: told of each result, from another thread; in no certain order.

    Returns:
        One result per case, in their order.

    Raises:
        ConfigError: the target's SDK is not installed, there is no such target, or it does not have these choices.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for at in range(len(cases)):
        waiting.put(at)
    found: dict[int, CaseResult] = {}
    ending = threading.Event()

    def work(worker: _Worker) -> None:
        with worker:
            while not ending.is_set():
                try:
                    at = waiting.get_nowait()
                except queue.Empty:
                    return
                found[at] = worker.run(cases[at])
                done(found[at])

    setting = {"target": target, "choices": dict(choices), "path": sys.path}
    with tempfile.TemporaryDirectory(prefix="flagsplit-certify-") as scratch, ThreadPoolExecutor(max(1, jobs)) as pool:
        workers = [_Worker(setting, Path(scratch) / str(at)) for at in range(max(1, jobs))]
        try:
            for each in as_completed([pool.submit(work, worker) for worker in workers]):
                each.result()
        except BaseException:  # an interrupt too must not wait for the cases that are left
            ending.set()
            for worker in workers:
                worker.kill()
            raise
    return [found[at] for at in range(len(cases))]


class _Worker:
    """One process, started when it is needed and again after it died.

    Args:
        setting: what it is told first.
        folder: made here, for the case at hand and for what the process prints, whose last line tells why it died.
    """

    def __init__(self, setting: Mapping[str, Any], folder: Path) -> None:
        folder.mkdir()
        self._setting = setting
        self._errors = folder / "errors"
        self._case = folder / "case"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def kill(self) -> None:
        """Put an end to the process, from any thread; the case at hand ends as crashed."""
        process = self._process
        if process is not None:
            process.kill()

    def run(self, case: Case) -> CaseResult:
        """Run one case.

        Raises:
            ConfigError: the target's SDK is not installed, there is no such target, or it does not have these choices.
        """
        write_case(case, self._case)
        limit_s = case.limit_s
        if self._process is None:
            self._process = self._started()
            limit_s += _FIRST_EXTRA_S
        self._tell(str(self._case))
        line = self._line(limit_s)
        if not line:
            return CaseResult(case.name, "crashed", self._ended(case.limit_s, died=line is not None))
        answer = json.loads(line)
        if "misused" in answer:
            raise ConfigError(answer["misused"])
        return CaseResult(**answer)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._errors.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own program
                _PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self._process = process
        self._tell(self._setting)
        return process

    def _tell(self, what: Any) -> None:
        assert self._process is not None
        stream = _pipe(self._process.stdin)
        with suppress(BrokenPipeError):  # the missing answer says it
            stream.write(json.dumps(what).encode() + b"\n")
            stream.flush()

    def _line(self, limit_s: float) -> bytes | None:
        """One line; empty if the process ended, None if it took too long."""
        assert self._process is not None
        stream = _pipe(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            return stream.readline() if selector.select(limit_s) else None

    def _ended(self, limit_s: float, *, died: bool) -> str:
        """Put an end to it, and say how it ended."""
        assert self._process is not None
        if not died:
            self._process.kill()
        code = self._process.wait()
        self._stop()
        if not died:
            return f"it took over {limit_s:g} s"
        how = f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process left with code {code}"
        said = [line for line in self._errors.read_text(errors="replace").splitlines() if line.strip()]
        return f"{how}: {said[-1].strip()[:200]}" if said else how

    def _stop(self) -> None:
        if self._process is None:
            return
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()
        self._process = None


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
