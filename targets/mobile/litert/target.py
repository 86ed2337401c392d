"""LiteRT (TensorFlow Lite): all chip parts of a tier as one .tflite file with a signature for each."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from flagsplit.errors import ConfigError, InternalError
from flagsplit.flagir.quantization import MIN_COSINE
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget
from flagsplit.targets.int8_parts import int8_parts
from flagsplit.targets.interface import CompileOptions, Executable, LoadOptions, SupportVerdict, TargetDescription
from flagsplit.targets.mobile.litert.delegates import DELEGATES_NAME, to_json
from flagsplit.targets.mobile.litert.error_gate import check_error, largest_error
from flagsplit.targets.segment_table import ChipCall, ChipTensor
from flagsplit.targets.tflite import engine, flatfile
from flagsplit.targets.tflite.int8 import computes_in_int8
from flagsplit.targets.tflite.lower import refusal
from flagsplit.targets.tflite.passes import program_of
from flagsplit.targets.tflite.program import Program, Tensor
from flagsplit.targets.tflite.weights import with_weights

FILE = "segments.tflite"
WEIGHTS = ("fp32", "fp16", "int8")
"""How weights are stored; what is computed stays float32."""

PRECISIONS = ("fp32", "int8")
"""What a float model is computed in; one that `flagsplit quantize` made is int8 where it says so anyway."""


class LitertTarget(ChipTarget):
    """LiteRT, on a phone's CPU or with its delegates; here on the host's CPU."""

    def describe(self) -> TargetDescription:
        """Runs wherever a LiteRT or TensorFlow Lite interpreter is installed."""
        return TargetDescription(
            name="litert",
            version=_version(),
            dtypes=("bool", "float16", "float32", "int32", "int64", "int8", "uint8"),
            max_rank=6,
            static_shapes=True,
            runs_here="yes" if engine.installed() else "no",
            source="LiteRT's CPU kernels, each tried in version 2.3.0",
            confidence="high",
            extra="litert",
            choices={"weights": WEIGHTS, "precision": PRECISIONS},
            free_choices={
                "min_cosine": "a number up to 1, which int8 has to reach at the ends of a segment and of the model"
            },
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Lowers the node to find out; needs no SDK."""
        reason = refusal(node)
        return SupportVerdict(not reason, reason)

    def wants_rest(self, options: CompileOptions) -> bool:
        """Parts that become int8 are judged by the model's answers, too."""
        return options.choices.get("precision", PRECISIONS[0]) == "int8"

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """One file, equal weights in it once.

        Of the options, `weights_error` is what smaller weights cost, and `precision` says int8 where the model does.
        """
        flatfile.schema()
        kind = _weights(options)
        told: dict[str, str] = {}
        if options.choices.get("precision", PRECISIONS[0]) == "int8":
            parts, told = _in_int8(parts, options)
        plain = {part.segment: program_of(part) for part in parts}
        if not plain:
            return ChipArtifact({}, {}, {"weights": kind})
        calls = {part.segment: _call(part, plain[part.segment]) for part in parts}
        programs = {name: with_weights(program, kind) for name, program in plain.items()}
        data, said = flatfile.to_bytes(programs), {"weights": kind, **told}
        if any(computes_in_int8(program) for program in plain.values()):
            said["precision"] = "int8"
        if kind != WEIGHTS[0]:
            error = largest_error(flatfile.to_bytes(plain), data, parts, calls)
            if error is not None:
                check_error(error, kind, options.real_samples)
                said["weights_error"] = f"{error:.2e}"
        return ChipArtifact({FILE: data, DELEGATES_NAME: to_json(programs)}, calls, said)

    def load_part(
        self,
        file: Path,
        call: ChipCall,
        options: Mapping[str, str],  # noqa: ARG002 - the file says it all
        host: LoadOptions,
    ) -> Executable:
        """Open an interpreter on one signature."""
        return engine.open_signature(file, call, host.threads)


def _weights(options: CompileOptions) -> str:
    kind = options.choices.get("weights", WEIGHTS[0])
    if unknown := sorted(set(options.choices) - {"weights", "precision", "min_cosine"}):
        raise ConfigError(f"the litert target has the choices weights, precision and min_cosine, came {unknown[0]!r}")
    if (precision := options.choices.get("precision", PRECISIONS[0])) not in PRECISIONS:
        raise ConfigError(f"expected a precision of {', '.join(PRECISIONS)} for the litert target, came {precision!r}")
    if kind not in WEIGHTS:
        raise ConfigError(f"expected weights of {', '.join(WEIGHTS)} for the litert target, came {kind!r}")
    return kind


def _in_int8(parts: Sequence[ChipPart], options: CompileOptions) -> tuple[Sequence[ChipPart], dict[str, str]]:
    text = options.choices.get("min_cosine", str(MIN_COSINE))
    try:
        least = float(text)
    except ValueError:
        least = float("nan")
    if not -1 <= least <= 1:
        raise ConfigError(f"expected min_cosine of the litert target as a number up to 1, came {text!r}")
    made = int8_parts(parts, real_samples=options.real_samples, min_cosine=least, target="litert")
    return made.parts, made.told


def _version() -> str:
    for package in ("ai-edge-litert", "tflite-runtime"):
        if find_spec(package.replace("-", "_")) is not None:
            return metadata.version(package)
    return ""


def _call(part: ChipPart, program: Program) -> ChipCall:
    graph = part.model.graph
    inputs = [
        _tensor(value, f"x{at}", carried)
        for at, (value, carried) in enumerate(zip(graph.inputs, program.inputs, strict=True))
    ]
    outputs = [
        _tensor(value, f"y{at}", carried)
        for at, (value, carried) in enumerate(zip(graph.outputs, program.outputs, strict=True))
    ]
    return ChipCall(file=FILE, function=part.segment, inputs=inputs, outputs=outputs)


def _tensor(value: ir.Value, called: str, carried: Tensor) -> ChipTensor:
    if value.dtype is None or value.shape is None:
        raise InternalError(f"value {value.name!r} has no type; please report this")
    dtype = value.dtype.numpy().name
    if tuple(value.shape) != carried.shape:
        raise InternalError(
            f"{value.name!r} has shape {value.shape}, its TFLite tensor {carried.shape}; please report this"
        )
    return ChipTensor(
        name=value.name or "",
        dtype=dtype,
        shape=list(carried.shape),
        called=called,
        passed_as="" if dtype == carried.dtype else carried.dtype,
    )
