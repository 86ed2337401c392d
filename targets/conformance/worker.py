"""The process that runs cases, one after another; it may die of one. `isolated` is the side that starts it.

The first line on standard input tells which target; each further line is a folder with a case. Every line is answered
by one line on what was standard output: libraries that print get standard error instead.
"""

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer lines until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setting = json.loads(sys.stdin.readline())
    sys.path[:] = setting["path"]
    for line in sys.stdin:
        print(json.dumps(_answer(setting, Path(json.loads(line)))), file=replies, flush=True)


def _answer(setting: dict[str, Any], folder: Path) -> dict[str, Any]:
    from flagsplit.errors import ConfigError, PolicyError
    from flagsplit.targets.conformance.cases import read_case
    from flagsplit.targets.conformance.naming import target_named
    from flagsplit.targets.conformance.one_case import run_case

    try:
        target = target_named(setting["target"])
        return asdict(run_case(target, read_case(folder), setting["choices"]))
    except (ConfigError, PolicyError) as error:
        return {"misused": str(error)}


if __name__ == "__main__":
    main()
