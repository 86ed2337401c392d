"""The files of an artifact: ONNX models that stand alone, the script that compiles them with ATC, and how to run them.

Every value at the edge of a model is called by letters, digits and underscores: ATC's `--input_shape` has colons,
semicolons and commas of its own.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.targets.cloud.ascend.choices import PRECISION_MODES, Choices
from flagsplit.targets.segment_table import ChipCall, ChipTensor

SCRIPT, CONFIGURATION = "atc.sh", "ascend.json"
MOST_INLINE_BYTES = 1 << 30
"""Weights beyond that lie in a file beside their model: protobuf ends at 2 GiB."""

_SMALL_BYTES = 1024

_HEAD = """\
#!/bin/sh
# Compiles the parts of this tier for an Ascend, with the ATC of CANN {version} or later: one .om file each, into om/
# Parts take and give tensors as the model has them: no AIPP (--insert_op_conf) changes colors, sizes or means before.
set -eu
cd "$(dirname "$0")"
soc="${{SOC_VERSION:-{soc}}}" # what "npu-smi info" says of the board, as Ascend310P3
command -v atc >/dev/null 2>&1 || {{
    echo "atc is not on PATH: install the CANN toolkit and source its set_env.sh" >&2
    exit 127
}}
mkdir -p om
"""


def part_files(name: str, model: ir.Model) -> tuple[dict[str, bytes], ChipCall]:
    """A lowered part as a file that stands alone, or with one of weights beside it, and how it is called.

    Args:
        name: of the segment.
        model: what `lower` made; values at its edge are renamed in place.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    call = ChipCall(
        file=f"parts/{stem}.onnx",
        function="main",
        inputs=_renamed(model.graph.inputs, "in"),
        outputs=_renamed(model.graph.outputs, "out"),
    )
    weights = [value for value in model.graph.initializers.values() if value.const_value is not None]
    total = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    data = bytearray()
    for value in weights:
        tensor = value.const_value
        assert tensor is not None
        if total > MOST_INLINE_BYTES and tensor.nbytes > _SMALL_BYTES:
            value.const_value = _outside(f"{stem}.weights", tensor, len(data))
            data += tensor.tobytes()
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
    files = {call.file: flagir.to_bytes(model)}
    if data:
        files[f"parts/{stem}.weights"] = bytes(data)
    return files, call


def _outside(file: str, tensor: ir.TensorProtocol, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        file, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or ""
    )


def _renamed(values: Sequence[ir.Value], prefix: str) -> list[ChipTensor]:
    found = []
    for at, value in enumerate(values):
        assert value.name
        assert value.dtype is not None
        assert value.shape is not None
        name, value.name = value.name, f"{prefix}{at}_{re.sub(r'[^A-Za-z0-9_]', '_', value.name)[:64]}"
        shape = [int(dim) for dim in value.shape.numpy()]
        found.append(ChipTensor(name=name, dtype=value.dtype.numpy().name, shape=list(shape), called=value.name))
    return found


def script(calls: Mapping[str, ChipCall], choices: Choices) -> bytes:
    """`atc.sh`: compiles every part."""
    lines = [_HEAD.format(version=choices.release.version, soc=choices.soc)]
    for call in {call.file: call for call in calls.values()}.values():
        shapes = ";".join(f"{each.called}:{','.join(map(str, each.shape))}" for each in call.inputs)
        options = [f"--model={call.file}", "--framework=5", f"--output={_om(call)}", f"--input_shape={shapes}"]
        options.append(f"--precision_mode={PRECISION_MODES[choices.precision]}")
        lines.append(f'atc {shlex.join(options)} --soc_version="$soc"\n')
    return "".join(lines).encode()


def configuration(calls: Mapping[str, ChipCall], choices: Choices) -> bytes:
    """`ascend.json`: what was chosen, how ONNX Runtime's CANN provider is asked, and the tensors of each part."""
    parts = {
        segment: {
            "onnx": call.file,
            "om": f"{_om(call)}.om",
            "inputs": [each.model_dump(include={"name", "called", "dtype", "shape"}) for each in call.inputs],
            "outputs": [each.model_dump(include={"name", "called", "dtype", "shape"}) for each in call.outputs],
        }
        for segment, call in calls.items()
    }
    found = {
        "soc_version": choices.soc,
        "cann": choices.release.version,
        "opset": choices.release.opset,
        "precision_mode": PRECISION_MODES[choices.precision],
        "aipp": False,
        "provider": provider(choices.precision),
        "parts": parts,
    }
    return (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()


def provider(precision: str) -> dict[str, dict[str, str]]:
    """ONNX Runtime's provider, with its options as their page has them.

    https://onnxruntime.ai/docs/execution-providers/community-maintained/CANN-ExecutionProvider.html
    """
    options: dict[str, Any] = {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cann_graph": "1",
        "precision_mode": PRECISION_MODES[precision],
        "op_select_impl_mode": "high_precision",
    }
    return {"CANNExecutionProvider": options}


def _om(call: ChipCall) -> str:
    """ATC puts the ending itself."""
    return f"om/{call.file.removeprefix('parts/').removesuffix('.onnx')}"
