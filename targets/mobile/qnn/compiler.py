"""From prepared models to context binaries, and why the compiler refused one.

A compiled model is an ONNX file with a single EPContext node that holds the binary, or names the file of it beside
where several models share their weights.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ModelError
from flagsplit.targets.mobile.qnn.process import SdkDiedError, SdkProcess, SdkRefusedError
from flagsplit.targets.mobile.qnn.socs import Soc

FALLBACK = "assigned to the default CPU EP"
"""In the message of a compiler that did not take every node."""

_NODE = re.compile(r"\s*Operator type: (\S+) Node name: (.*) Node index: \d+")
_REASON = re.compile(r"\s*REASON : (.*)")
_CODES = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : )?\w+ : ")
_EMPTY_WORDS = ("Failed to add node", "CreateQnnNode failed")
_MOST_NAMED = 8


def compile_apart(models: Mapping[str, ir.Model], soc: Soc) -> dict[str, bytes]:
    """Compile each model to a file of its own, the binary inside.

    Args:
        models: prepared models by segment.
        soc: what for.

    Returns:
        Content by file name; the file of a segment is `file_of(segment)`.

    Raises:
        ModelError: the compiler does not take all of a model; the message names the nodes.
        ConfigError: the SDK is not installed.
    """
    files: dict[str, bytes] = {}
    for segment, model in models.items():
        files.update(_compile({segment: model}, soc, shared=False))
    return files


def compile_shared(models: Mapping[str, ir.Model], soc: Soc) -> dict[str, bytes]:
    """Compile models to small files and one binary beside them that has each weight once; see `compile_apart`."""
    return _compile(models, soc, shared=True) if models else {}


def file_of(segment: str) -> str:
    """The file of a segment among those made."""
    return f"{segment}.onnx"


def _compile(models: Mapping[str, ir.Model], soc: Soc, *, shared: bool) -> dict[str, bytes]:
    with TemporaryDirectory() as name, SdkProcess() as sdk:
        folder = Path(name)
        made = folder / "made"
        made.mkdir()
        for at, (segment, model) in enumerate(models.items()):
            source = folder / "source.onnx"
            source.write_bytes(_to_bytes(model))
            request = {"do": "compile", "source": str(source), "made": str(made / file_of(segment)), **where(soc)}
            request |= {"shared": shared, "last": at == len(models) - 1}
            try:
                sdk.ask(request)
            except SdkDiedError as error:
                raise ModelError(f"Qualcomm's compiler did not get through segment {segment}: {error}") from None
            except SdkRefusedError as error:
                raise ModelError(_why(segment, str(error), request)) from None
            _check_whole(segment, made / file_of(segment))
        return {file.name: file.read_bytes() for file in sorted(made.iterdir())}


def where(soc: Soc) -> dict[str, int]:
    """A system on a chip, in the words of the SDK's process."""
    return {"soc": soc.model, "architecture": soc.architecture}


def _to_bytes(model: ir.Model) -> bytes:
    try:
        return flagir.to_bytes(model)
    except ValueError as error:
        raise ModelError(f"a segment is too large for the qnn target (2 GB): {error}; cut it in several") from None


def _check_whole(segment: str, file: Path) -> None:
    nodes = onnx.load_model(file, load_external_data=False).graph.node
    others = [f"{node.name} ({node.op_type})" for node in nodes if node.op_type != "EPContext"]
    if others:
        raise ModelError(f"segment {segment}: {some(others)} would run on the CPU beside the NPU; cut elsewhere")
    if len(nodes) != 1:
        raise ModelError(f"segment {segment} fell into {len(nodes)} parts on the NPU; expected one")


def _why(segment: str, message: str, request: Mapping[str, Any]) -> str:
    """Why the compiler refused a model: it is asked again, to say what it thinks of each node."""
    if FALLBACK in message:
        reasons = explain(request)
        if reasons:
            told = [f"{name or 'a node'} ({kind}): {reason}" for (name, kind), reason in reasons.items()]
            return f"segment {segment}: the Snapdragon's NPU does not take {some(told)}"
    return f"segment {segment}: Qualcomm's compiler refused it: {readable(message)}"


def explain(request: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Why the compiler does not take a model: the reason for each node, by name and operator."""
    with SdkProcess() as sdk:
        try:
            sdk.ask({**request, "shared": False, "explain": True})
        except SdkRefusedError:
            return reasons_in(sdk.log().splitlines())
        except SdkDiedError:
            return {}
    return {}


def reasons_in(lines: Iterable[str]) -> dict[tuple[str, str], str]:
    """The reasons in what the SDK prints when it is talkative; the first for each node."""
    found: dict[tuple[str, str], str] = {}
    node: tuple[str, str] | None = None
    for line in lines:
        if match := _NODE.match(line):
            node = (match[2].strip(), match[1])
        elif (match := _REASON.match(line)) and node is not None:
            found.setdefault(node, readable(match[1]))
            node = None
        elif "Validation FAILED" not in line:
            node = None
    return found


def readable(message: str) -> str:
    """The first sentence of what the SDK says, without its codes; where that says nothing, what it means."""
    plain = _CODES.sub("", " ".join(message.split()))
    first = re.split(r"\.(?=\s|$|[A-Z])", plain)[0]
    return "the compiler's check of its types and shapes failed" if first in _EMPTY_WORDS else first[:160]


def some(names: Sequence[str]) -> str:
    """Names in a message: not too many."""
    more = len(names) - _MOST_NAMED
    return "; ".join(names[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
