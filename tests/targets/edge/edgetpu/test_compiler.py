"""Coral's compiler: logs as it writes them, and a program on PATH that stands in for it."""

import os
import stat
import sys
from pathlib import Path

import pytest

from flagsplit.errors import ModelError
from flagsplit.targets.edge.edgetpu.compiler import compile_files, installed, read_log

LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1379 ms.

Input model: m0.tflite
Input size: 4.41MiB
Output model: m0_edgetpu.tflite
Output size: 5.49MiB
On-chip memory used for caching model parameters: 1.92MiB
On-chip memory remaining for caching model parameters: 1.75KiB
Off-chip memory used for streaming uncached model parameters: 3.23MiB
Number of Edge TPU subgraphs: 1
Total number of operations: 6
Operation log: m0_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU.
Number of operations that will run on Edge TPU: 4
Number of operations that will run on CPU: 2

Operator                       Count      Status

CONV_2D                        3          Mapped to Edge TPU
MAX_POOL_2D                    1          Mapped to Edge TPU
GATHER                         1          Operation not supported
ADD                            1          More than one subgraph is not supported
Compilation child process completed within timeout period.
Compilation succeeded!
"""

STAND_IN = """#!{python}
import pathlib, sys
folder, source = sys.argv[sys.argv.index("-o") + 1], pathlib.Path(sys.argv[-1])
if b"refuse" in source.read_bytes():
    sys.exit("Internal compiler error. Aborting!")
(pathlib.Path(folder) / (source.stem + "_edgetpu.tflite")).write_bytes(source.read_bytes() + b"compiled")
print({log!r})
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program on PATH that does what Coral's compiler does with files and logs."""
    file = folder / "edgetpu_compiler"
    file.write_text(STAND_IN.format(python=sys.executable, log=LOG))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_log_is_read() -> None:
    log = read_log(LOG)
    assert log.version == "16.0.384591198"
    assert log.sizes == {
        "cached_bytes": int(1.92 * (1 << 20)),
        "remaining_bytes": int(1.75 * 1024),
        "streamed_bytes": int(3.23 * (1 << 20)),
    }
    assert log.counts == {"subgraphs": 1, "operators": 6}
    assert log.mapped == 4
    assert log.left == {"GATHER": "Operation not supported", "ADD": "More than one subgraph is not supported"}


def test_a_log_of_something_else_says_nothing() -> None:
    log = read_log("Segmentation fault")
    assert (log.version, log.sizes, log.counts, log.statuses, log.mapped) == ("", {}, {}, (), 0)


def test_files_are_compiled_where_the_compiler_is_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not installed()
    stand_in(tmp_path, monkeypatch)
    assert installed()
    (first, log), (second, _) = compile_files([b"one", b"two"])
    assert (first, second) == (b"onecompiled", b"twocompiled")
    assert log == read_log(LOG)


def test_a_compiler_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="Internal compiler error"):
        compile_files([b"refuse"])
