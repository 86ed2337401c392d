"""Work in processes that may die: one that crashes, hangs or eats the memory costs its task, not the run.

A worker is a program that answers each line on standard input with one line, as `serve` does. Tasks and answers are
JSON.
"""

import json
import os
import queue
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_START_S = 60.0
_MEMORY_LIMIT_BYTES = 6 << 30
_CLEAR_PEAK = "5"


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The worker's side: answer tasks until standard input ends. What libraries print goes to standard error."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        _reset_peak()
        before = _peak_mb()
        found = answer(json.loads(line))
        print(json.dumps({"rose_mb": _peak_mb() - before, **found}), file=replies, flush=True)


def run_all(
    program: Sequence[str], tasks: Mapping[str, dict[str, Any]], *, workers: int, limit_s: float
) -> dict[str, dict[str, Any]]:
    """The answer to each task.

    Args:
        program: the worker's command line.
        tasks: by name.
        workers: how many processes.
        limit_s: how long one task may take.

    Returns:
        By name, in the order of `tasks`: what the worker answered, with `took_s` and `rose_mb`, by how much the
        resident memory rose; or `crashed`, with the signal or "over ... s".
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in tasks:
        waiting.put(name)
    found: dict[str, dict[str, Any]] = {}

    def work() -> None:
        worker = _Worker(program)
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                break
            started = time.perf_counter()
            found[name] = worker.ask(tasks[name], limit_s)
            found[name]["took_s"] = time.perf_counter() - started
        worker.stop()

    threads = [threading.Thread(target=work) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: found[name] for name in tasks}


class _Worker:
    """One process, started when it is first needed and again after it died."""

    def __init__(self, program: Sequence[str]) -> None:
        self._program = list(program)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, task: dict[str, Any], limit_s: float) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own program
                self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if self._line(_START_S) is None:
                raise RuntimeError(f"the worker does not start: {' '.join(self._program)}")
        try:
            _pipe(self._process.stdin).write(json.dumps(task).encode() + b"\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            pass
        line = self._line(limit_s)
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if line is None:
            self._process.kill()
        code = self._process.wait()
        self.stop()
        return {"crashed": f"over {limit_s:g} s" if line is None else f"exit code {code}"}

    def stop(self) -> None:
        if self._process is not None:
            _pipe(self._process.stdin).close()
            self._process.wait()
            _pipe(self._process.stdout).close()
            self._process = None

    def _line(self, limit_s: float) -> bytes | None:
        """One line; empty if the process ended, None if it took too long."""
        assert self._process is not None
        stream = _pipe(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            return stream.readline() if selector.select(limit_s) else None


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _reset_peak() -> None:
    """Linux keeps a resettable peak; elsewhere the peak is that of the process so far."""
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError:
        return


def _peak_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
