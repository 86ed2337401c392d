"""Runs compiled parts in whichever interpreter its environment has; that may lack what the tests need.

Takes the names of folders on standard input, one a line. Each holds `segments.tflite`, `call.json` and `inputs.npz`,
and gets `outputs.npz`. Writes a line of JSON when a part starts and when it has answered or failed, then
with the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.errors import FlagsplitError
from flagsplit.targets.segment_table import ChipCall
from flagsplit.targets.tflite import engine


def run(folder: Path) -> None:
    """Answer one part: its values by their place, since names of values can be anything."""
    call = ChipCall.model_validate_json((folder / "call.json").read_text())
    with np.load(folder / "inputs.npz") as given:
        inputs = {spec.name: given[f"x{at}"] for at, spec in enumerate(call.inputs)}
    loaded = engine.open_signature(folder / "segments.tflite", call, threads=1)
    came = loaded.run(inputs)
    loaded.close()
    made: dict[str, Any] = {f"y{at}": came[spec.name] for at, spec in enumerate(call.outputs)}
    np.savez(folder / "outputs.npz", **made)


def main() -> None:
    for line in sys.stdin.read().splitlines():
        print(json.dumps({"starts": line}), flush=True)
        try:
            run(Path(line))
        except FlagsplitError as error:
            print(json.dumps({"name": line, "why": str(error)}), flush=True)
        else:
            print(json.dumps({"name": line, "why": ""}), flush=True)


if __name__ == "__main__":
    main()
