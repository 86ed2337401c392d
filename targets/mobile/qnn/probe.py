"""Making the support table: each operator alone is compiled for a system on a chip, run on the emulator and compared.

    python -m flagsplit.targets.mobile.qnn.probe > targets/mobile/qnn/support.json

takes some minutes for each system on a chip. With `--keep` the table goes to the user's cache, where `table.py` finds
it for the version of onnxruntime-qnn that made it. What compiles and then gives wrong numbers is not supported either.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.qnn.compiler import FALLBACK, readable, reasons_in, where
from flagsplit.targets.mobile.qnn.prepare import INPUTS_PASSED_AS, prepare
from flagsplit.targets.mobile.qnn.probe_models import Probe, build, dtypes_of, feeds_of, probes
from flagsplit.targets.mobile.qnn.process import SdkDiedError, SdkProcess, SdkRefusedError, installed_version
from flagsplit.targets.mobile.qnn.socs import Soc, socs
from flagsplit.targets.mobile.qnn.table import OPSET, kept_file

_OTHER_RANKS = (2, 4)
"""At which types other than float32 are probed, if the operator has them."""

_TOLERANCE = 0.02
"""Of the largest number of an answer: some roundings of fp16."""


class Prober:
    """Probes for one system on a chip. To be used in a `with` statement."""

    def __init__(self, soc: Soc) -> None:
        self._soc = soc
        self._sdk = SdkProcess()
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *_: object) -> None:
        self._sdk.close()
        self._folder.cleanup()

    def probe(self, probe: Probe, rank: int, dtype: str, variant: Mapping[str, Any] | None = None) -> str:
        """Why an operator is not supported; "" if it is."""
        try:
            model = build(probe, rank, dtype, variant)
            expected = _expected(probe, model)
        except Exception as error:  # noqa: BLE001 ONNX Runtime raises anything
            if "NOT_IMPLEMENTED" in str(error):
                return "unchecked: ONNX Runtime has no kernel to compare with"
            return f"unchecked: {readable(str(error))}"
        source, made = Path(self._folder.name) / "probe.onnx", Path(self._folder.name) / "made.onnx"
        source.write_bytes(flagir.to_bytes(prepare(ir.serde.deserialize_model(model))))
        request = {"do": "compile", "source": str(source), "made": str(made), **where(self._soc)}
        try:
            made.unlink(missing_ok=True)
            self._sdk.ask(request)
            self._sdk.ask({"do": "open", "file": str(made), **where(self._soc)})
            feeds = {name: _as_passed(array) for name, array in feeds_of(probe, model).items()}
            _, found = self._sdk.ask({"do": "run"}, feeds)
        except SdkRefusedError as error:
            return self._reason(request, str(error))
        except SdkDiedError:
            self._sdk.close()
            self._sdk = SdkProcess()
            return "the compiler or the emulator ends its process"
        return _difference(expected, found)

    def _reason(self, request: Mapping[str, Any], message: str) -> str:
        if FALLBACK not in message:
            return readable(message)
        before = self._sdk.log_size()
        try:
            self._sdk.ask({**request, "explain": True})
        except SdkRefusedError:
            found = reasons_in(self._sdk.log(before).splitlines())
            return next(iter(found.values()), "not supported by the compiler")
        return "not supported by the compiler"


def probe_all(soc: Soc, wanted: Sequence[Probe]) -> dict[str, Any]:
    """The rows of the support table for some operators, by name."""
    rows: dict[str, Any] = {}
    with Prober(soc) as prober:
        for probe in wanted:
            row: dict[str, Any] = {"types": {}}
            for dtype in dtypes_of(probe):
                ranks = [r for r in probe.ranks if dtype == "float32" or r in _OTHER_RANKS] or [probe.ranks[-1]]
                row["types"][dtype] = _cell({rank: prober.probe(probe, rank, dtype) for rank in ranks})
            rank = 4 if 4 in probe.ranks else probe.ranks[-1]
            for variant in probe.variants:
                row.setdefault("variants", []).append([variant, prober.probe(probe, rank, "float32", variant)])
            rows[probe.operator] = row
            print(probe.operator, row, file=sys.stderr)
    return rows


def table(rows: Mapping[str, Mapping[str, Any]], version: str) -> dict[str, Any]:
    """The support table: systems on a chip with equal rows share them.

    Args:
        rows: of `probe_all`, by system on a chip.
        version: of onnxruntime-qnn.
    """
    groups: list[dict[str, Any]] = []
    for soc, found in rows.items():
        same = next((group for group in groups if group["operators"] == found), None)
        if same is None:
            groups.append({"socs": [soc], "operators": found})
        else:
            same["socs"].append(soc)
    return {"version": version, "opset": OPSET, "tables": groups}


def _cell(reasons: Mapping[int, str]) -> dict[str, Any]:
    """Ranks that are supported, and of the others why not."""
    no: dict[str, list[int]] = {}
    for rank, reason in reasons.items():
        if reason:
            no.setdefault(reason, []).append(rank)
    return {"yes": [rank for rank, reason in reasons.items() if not reason], **({"no": no} if no else {})}


def _as_passed(array: Array) -> Array:
    return array.astype(INPUTS_PASSED_AS.get(array.dtype.name, array.dtype.name), copy=False)


def _expected(probe: Probe, model: onnx.ModelProto) -> dict[str, Array]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds_of(probe, model)), strict=True))


def _difference(expected: Mapping[str, Array], found: Mapping[str, Array]) -> str:
    for name, array in expected.items():
        came = found[name].astype(np.int64) if array.dtype == np.int64 else found[name]
        if came.dtype != array.dtype or came.shape != array.shape:
            return f"gives {came.dtype} {list(came.shape)} in place of {array.dtype} {list(array.shape)}"
        exact = array.astype(np.float64)
        most = np.abs(exact).max(initial=1.0)
        off = np.abs(came.astype(np.float64) - exact).max(initial=0.0)
        if not off <= (_TOLERANCE * most if array.dtype.kind == "f" else 0):
            return f"gives wrong numbers on the emulator: off by {off:.2g} where the largest is {most:.2g}"
    return ""


def main() -> None:
    """Probe the systems on a chip that are named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("soc", nargs="*", choices=[*socs(), []], help="which; all if none is named")
    parser.add_argument("--keep", action="store_true", help="keep the table in the cache, for the version installed")
    options = parser.parse_args()
    chosen = options.soc or list(socs())
    version = installed_version()
    made = dumps(table({name: probe_all(socs()[name], probes()) for name in chosen}, version or ""))
    if options.keep:
        file = kept_file(version)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(made, encoding="utf-8")
    else:
        sys.stdout.write(made)


def dumps(made: Mapping[str, Any]) -> str:
    """A table as JSON, one operator a line."""
    text = []
    for group in made["tables"]:
        rows = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(group["operators"].items())
        )
        text.append(f'{{"socs": {json.dumps(group["socs"])}, "operators": {{\n{rows}\n}}}}')
    head = {key: value for key, value in made.items() if key != "tables"}
    return json.dumps(head)[:-1] + ', "tables": [' + ",\n".join(text) + "]}\n"


if __name__ == "__main__":
    main()
