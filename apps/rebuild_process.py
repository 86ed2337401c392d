"""A bundle built again in a process of its own, at low priority, so that the session that wants it goes on meanwhile.

Planning and compiling hold Python's interpreter for long stretches; in the session's process each would delay answers.
The process is `python -m flagsplit.apps.rebuild_process BUNDLE CACHE OUTPUT`: it reads the SLA from standard input,
writes one JSON object, and leaves nothing behind but the output.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from flagsplit import errors
from flagsplit.apps.rebuild import rebuild
from flagsplit.errors import FlagsplitError, InternalError, PeerError
from flagsplit.runtime.background import in_background
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.splitter.sla import SLA, parse_sla


def rebuild_elsewhere(bundle: Bundle, sla: SLA, output: Path) -> tuple[str, ...]:
    """As `flagsplit.apps.rebuild.rebuild`, in another process; blocks the calling thread alone.

    Returns:
        What was assumed.

    Raises:
        PeerError: the process ended without a word.
    """
    command = [sys.executable, "-m", __name__, str(bundle.path), str(bundle.folder.parents[1]), str(output)]
    # On a thread of low priority, which the process inherits: its imports alone take as long as many requests.
    done = in_background(_run, command, sla.model_dump_json().encode())
    try:
        said = json.loads(done.stdout)
        if said["error"]:
            raise _error(said["error"], said["message"])
        return tuple(map(str, said["notes"]))
    except (ValueError, KeyError, TypeError):
        why = done.stderr.decode(errors="replace").strip()[-1000:] or f"exit code {done.returncode}"
        raise PeerError(f"the process that builds the bundle again ended early: {why}") from None


def _run(command: list[str], sla: bytes) -> "subprocess.CompletedProcess[bytes]":
    # One thread for linear algebra: the other cores are for those who serve.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(  # noqa: S603 - our own interpreter and module
        command, input=sla, capture_output=True, check=False, env=environment
    )


def _error(name: str, message: str) -> FlagsplitError:
    kind = getattr(errors, name, InternalError)
    return kind(message) if issubclass(kind, FlagsplitError) else InternalError(message)


def main(bundle: str, cache: str, output: str) -> None:
    """What the other process does."""
    try:
        sla = parse_sla(sys.stdin.buffer.read())
        notes = rebuild(open_bundle(Path(bundle), Path(cache)), sla, Path(output)).notes
        open_bundle(Path(output), Path(cache))  # unpacks it here, so that the session finds it unpacked
        said: dict[str, object] = {"error": "", "notes": notes}
    except FlagsplitError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
