"""Results kept in a file as they come, so that a run that was interrupted goes on where it was.

The first line says of which target, version, choices and tests they are, each further one is a result.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from flagsplit.errors import ConfigError
from flagsplit.targets.conformance.cases import CaseResult
from flagsplit.targets.interface import TargetDescription


class KeptResults:
    """The results in a file, and those that are added to it.

    Args:
        file: made if it is not there. A last line that was not written to its end is left out.
        about: the target.
        choices: of the build.

    Attributes:
        found: by name of the case, what was there.

    Raises:
        ConfigError: the file is of another target, version, choice or version of the tests, or no such file.
    """

    def __init__(self, file: Path, about: TargetDescription, choices: Mapping[str, str]) -> None:
        import onnx

        self._file, self._lock = file, threading.Lock()
        of = {"target": about.name, "version": about.version, "choices": dict(choices), "onnx": onnx.__version__}
        self.found: dict[str, CaseResult] = {}
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
            whole = [json.loads(line) for line in lines if line.endswith("\n")]
            if whole and whole[0] != of:
                raise ConfigError(f"{file} has results of {whole[0]}, not of {of}; name another file, or delete it")
            self.found = {each["name"]: CaseResult(**each) for each in whole[1:]}
            text = "".join(json.dumps(each) + "\n" for each in [of, *map(asdict, self.found.values())])
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot keep results in {file}: {error.strerror}; choose another place") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"expected a file of results, {file} is something else: {error}") from None

    def add(self, result: CaseResult) -> None:
        """Keep one more; from any thread."""
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
