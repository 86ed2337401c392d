"""Coral's Edge TPU: an int8 .tflite file for each segment, or for each part of it where several chips share it."""

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from pydantic import TypeAdapter, ValidationError

from flagsplit.errors import BundleError, ConfigError, ModelError
from flagsplit.targets.chip_parts import ChipPart, SplitSegment
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget, PartsInTurn
from flagsplit.targets.edge.edgetpu import compiler, report
from flagsplit.targets.edge.edgetpu.ends import channels_last_at_ends
from flagsplit.targets.edge.edgetpu.forms import lowered
from flagsplit.targets.edge.edgetpu.mapping import mapping_of
from flagsplit.targets.edge.edgetpu.pipeline import divided
from flagsplit.targets.edge.edgetpu.verdicts import verdict_of
from flagsplit.targets.interface import (
    REPORT,
    CompileOptions,
    Executable,
    LoadOptions,
    SupportVerdict,
    TargetDescription,
)
from flagsplit.targets.segment_table import ChipCall, ChipTensor
from flagsplit.targets.tflite import engine, flatfile
from flagsplit.targets.tflite.program import Program, Tensor

DELEGATE = "libedgetpu.so.1"
DEVICES = tuple(str(count) for count in range(1, 9))
_PRECISIONS = ("int8",)
_PIPELINE = "pipeline."
_CALLS: TypeAdapter[list[ChipCall]] = TypeAdapter(list[ChipCall])


class EdgetpuTarget(ChipTarget):
    """The Edge TPU where its library is; else the same int8 file on this host's CPU, which emulates it."""

    quantized_ends = True

    def describe(self) -> TargetDescription:
        """What it takes, and whether `load` runs it or emulates it."""
        return TargetDescription(
            name="edgetpu",
            version=_version(),
            dtypes=("float32", "int8", "uint8"),
            max_rank=5,
            static_shapes=True,
            runs_here=_runs_here(),
            source="published operator lists and logs of Coral's compiler, each rule with its own; run on no Edge TPU",
            confidence="medium",
            extra="edgetpu",
            choices={"devices": DEVICES, "precision": _PRECISIONS},
            carries_nan=False,
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Lowers the node with what computes on with it, and checks that against the table; needs no SDK."""
        return verdict_of(node)

    def at_ends(self, split: SplitSegment) -> SplitSegment:
        """The host permutes to channels last and back, too."""
        return channels_last_at_ends(split)

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """A file for each part; what Coral's compiler makes of it where that is on PATH.

        Raises:
            ModelError: an operator is not mapped, or the compiler failed.
        """
        flatfile.schema()
        devices = int(_devices(options))
        files: dict[str, bytes | Path] = {}
        told: dict[str, str] = {"devices": str(devices), "precision": _PRECISIONS[0]}
        calls, mappings, logs = {}, {}, {}
        for part in parts:
            whole = lowered(part)
            programs = divided(whole, devices) if devices > 1 else [whole]
            mappings[part.segment] = [mapping_of(each) for each in programs]
            _refuse_unmapped(part, whole)
            made = [flatfile.to_bytes({"main": each}) for each in programs]
            calls[part.segment], inner = _calls(part, whole, programs)
            if len(programs) > 1:
                told[f"{_PIPELINE}{part.segment}"] = _CALLS.dump_json(inner, exclude_defaults=True).decode()
            names = [each.file for each in inner]
            files.update(zip(names, made, strict=True))
            if compiler.installed():
                compiled = compiler.compile_files(made)
                logs[part.segment] = [log for _, log in compiled]
                files.update({compiled_name(name): data for name, (data, _) in zip(names, compiled, strict=True)})
                told["compiler"] = logs[part.segment][0].version
        if parts:
            files[report.NAME] = report.to_json(mappings, logs)
            told[REPORT] = report.NAME
        return ChipArtifact(files, calls, told)

    def load_part(self, file: Path, call: ChipCall, options: Mapping[str, str], host: LoadOptions) -> Executable:
        """Open a segment, its parts in turn; on the Edge TPU if its library is here and it was compiled for that."""
        inner = [call]
        for key, value in options.items():
            if key == f"{_PIPELINE}{call.function}":
                inner = _read_calls(value)
        opened = [_open(file.with_name(each.file), each, host) for each in inner]
        if len(opened) == 1:
            return opened[0]
        return PartsInTurn(opened, [each.to_spec() for each in call.inputs], [each.to_spec() for each in call.outputs])


def compiled_name(name: str) -> str:
    """The name that Coral's compiler gives its output."""
    return f"{name.removesuffix('.tflite')}_edgetpu.tflite"


def _open(file: Path, call: ChipCall, host: LoadOptions) -> Executable:
    call = call.model_copy(update={"function": "main"})
    compiled = file.with_name(compiled_name(file.name))
    if compiled.is_file() and _has_delegate():
        return engine.open_signature(compiled, call, host.threads, DELEGATE)
    return engine.open_signature(file, call, host.threads)


def _refuse_unmapped(part: ChipPart, program: Program) -> None:
    stopped = mapping_of(program).stopped
    if stopped is None:
        return
    refusal = stopped.refusal
    raise ModelError(
        f"segment {part.segment}: {refusal.reason} ({refusal.source}), operator {stopped.at + 1} of "
        f"{len(program.operators)}; all after it would run on the CPU. `flagsplit why` tells of each node"
    )


def _calls(part: ChipPart, whole: Program, programs: Sequence[Program]) -> tuple[ChipCall, list[ChipCall]]:
    """How a segment is called, and how each of its parts is."""
    graph = part.model.graph
    names = {
        tensor: (value.name or "", value.dtype)
        for value, tensor in zip((*graph.inputs, *graph.outputs), (*whole.inputs, *whole.outputs), strict=True)
    }

    def told(tensors: Sequence[Tensor], letter: str) -> list[ChipTensor]:
        return [_tensor(each, names, f"{letter}{at}") for at, each in enumerate(tensors)]

    for program in programs[:-1]:
        for each in program.outputs:
            names.setdefault(each, (f"between.{len(names)}", None))
    files = [f"{part.segment}.tflite"]
    if len(programs) > 1:
        files = [f"{part.segment}.{at}.tflite" for at in range(len(programs))]
    inner = [
        ChipCall(file=file, function="main", inputs=told(each.inputs, "x"), outputs=told(each.outputs, "y"))
        for file, each in zip(files, programs, strict=True)
    ]
    call = ChipCall(
        file=files[0], function=part.segment, inputs=told(whole.inputs, "x"), outputs=told(whole.outputs, "y")
    )
    return call, inner


def _tensor(x: Tensor, names: Mapping[Tensor, tuple[str, ir.DataType | None]], called: str) -> ChipTensor:
    name, kind = names[x]
    dtype = x.dtype if kind is None else kind.numpy().name
    passed_as = "" if dtype == x.dtype else x.dtype
    return ChipTensor(name=name, dtype=dtype, shape=list(x.shape), called=called, passed_as=passed_as)


def _read_calls(text: str) -> list[ChipCall]:
    try:
        return _CALLS.validate_json(text)
    except ValidationError as error:
        raise BundleError(
            f"the artifact's parts are damaged: {error.errors()[0]['msg']}; build the bundle again"
        ) from None


def _devices(options: CompileOptions) -> str:
    if unknown := sorted(set(options.choices) - {"devices", "precision"}):
        raise ConfigError(f"the edgetpu target has the choices devices and precision, came {unknown[0]!r}")
    if (precision := options.choices.get("precision", _PRECISIONS[0])) not in _PRECISIONS:
        raise ConfigError(f"the edgetpu target computes in int8, came a precision of {precision!r}")
    chosen = options.choices.get("devices", DEVICES[0])
    if chosen not in DEVICES:
        raise ConfigError(f"expected devices from 1 to {len(DEVICES)} for the edgetpu target, came {chosen!r}")
    return chosen


@lru_cache(maxsize=1)
def _has_delegate() -> bool:
    try:
        ctypes.CDLL(DELEGATE)
    except OSError:
        return False
    return True


def _runs_here() -> Literal["yes", "emulated", "no"]:
    if not engine.installed():
        return "no"
    return "yes" if _has_delegate() else "emulated"


def _version() -> str:
    found = find_spec("ai_edge_litert")
    return metadata.version("ai-edge-litert") if found is not None else ""
