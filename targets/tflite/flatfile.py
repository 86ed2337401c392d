"""Programs as the bytes of one .tflite file: a subgraph and a signature each, equal constants stored once.

The same programs give the same bytes. Constants lie at multiples of 16 bytes, so that they can be used where they are
mapped.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flagsplit.errors import ConfigError, ModelError
from flagsplit.targets.tflite.program import Operator, Program, Tensor

_MOST_BYTES = (1 << 31) - (1 << 20)
_ALIGNED = 16
_VERSION = 3
_LAST_OLD_CODE = 127
_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "CONV_3D": "Conv3DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_ALL": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "PADV2": "PadV2Options",
    "TOPK_V2": "TopKV2Options",
    "REVERSE_V2": "ReverseV2Options",
    "SELECT_V2": "SelectV2Options",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "ATAN2": "ATan2Options",
    "BITWISE_XOR": "BitwiseXorOptions",
}
_TYPED = ("inDataType", "outDataType", "outputType")
"""Options that name an element type."""

_VERSIONS = {"BROADCAST_TO": 2}
"""Operators of which the first version has no kernel."""

_INT8_VERSIONS = {
    **dict.fromkeys(
        "ADD AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION DEPTH_TO_SPACE DEQUANTIZE GATHER LEAKY_RELU LOGISTIC "
        "MAX_POOL_2D MAXIMUM MEAN MINIMUM MUL PAD PADV2 QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RESIZE_BILINEAR "
        "RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX SPACE_TO_DEPTH STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE "
        "TRANSPOSE_CONV".split(),
        2,
    ),
    **dict.fromkeys("BROADCAST_TO CONV_2D DEPTHWISE_CONV_2D".split(), 3),
    "FULLY_CONNECTED": 4,
}
"""The first version of an operator that takes int8, by TensorFlow's op_version.cc, where it is not 1."""


def schema() -> Any:
    """The schema's generated classes.

    Raises:
        ConfigError: LiteRT's package is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise ConfigError(
            "the litert target needs ai-edge-litert, which is not installed; pip install 'flagsplit[litert]'"
        ) from None
    return schema_py_generated


def to_bytes(programs: Mapping[str, Program]) -> bytes:
    """One file that holds programs by the names of their signatures.

    Raises:
        ModelError: it would be 2 GiB or more, which the format has no place for.
        ConfigError: LiteRT's package is not installed.
    """
    import flatbuffers

    writer = _Writer(schema())
    model = writer.model(programs)
    if writer.stored_bytes >= _MOST_BYTES:
        raise ModelError(
            f"the weights of the phone's segments take {writer.stored_bytes >> 20} MiB, a .tflite file holds 2 GiB; "
            "choose weights of fp16 or int8, or split the model elsewhere"
        )
    builder = flatbuffers.Builder(writer.stored_bytes + (1 << 20))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Writer:
    """Objects of the schema for programs."""

    def __init__(self, found: Any) -> None:
        self._schema = found
        self._buffers: list[Any] = [found.BufferT()]
        self._codes: dict[tuple[str, int], int] = {}
        self._stored: dict[bytes, int] = {}
        self.stored_bytes = 0

    def model(self, programs: Mapping[str, Program]) -> Any:
        made = self._schema.ModelT()
        made.version = _VERSION
        made.description = b"flagsplit"
        made.subgraphs, made.signatureDefs = [], []
        for at, (name, program) in enumerate(programs.items()):
            graph, places = self._subgraph(program)
            graph.name = name.encode()
            made.subgraphs.append(graph)
            made.signatureDefs.append(self._signature(name, at, program, places))
        made.buffers = self._buffers
        made.operatorCodes = [self._operator_code(*each) for each in self._codes]
        return made

    def _operator_code(self, code: str, version: int) -> Any:
        made = self._schema.OperatorCodeT()
        number = getattr(self._schema.BuiltinOperator, code)
        made.builtinCode, made.deprecatedBuiltinCode = number, min(number, _LAST_OLD_CODE)
        made.version = version
        return made

    def _signature(self, name: str, at: int, program: Program, places: Mapping[Tensor, int]) -> Any:
        made = self._schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = name.encode(), at
        made.inputs = [self._named(f"x{n}", places[each]) for n, each in enumerate(program.inputs)]
        made.outputs = [self._named(f"y{n}", places[each]) for n, each in enumerate(program.outputs)]
        return made

    def _named(self, name: str, place: int) -> Any:
        made = self._schema.TensorMapT()
        made.name, made.tensorIndex = name.encode(), place
        return made

    def _subgraph(self, program: Program) -> tuple[Any, dict[Tensor, int]]:
        made = self._schema.SubGraphT()
        places: dict[Tensor, int] = {}
        made.tensors = []
        constants: dict[tuple[Any, ...], int] = {}

        def place(tensor: Tensor | None) -> int:
            if tensor is None:
                return -1
            if tensor not in places:
                table = self._tensor(tensor)
                key = _identity(tensor, table.buffer)
                if key is not None and key in constants:
                    places[tensor] = constants[key]
                    return places[tensor]
                places[tensor] = len(made.tensors)
                table.name = b"%d" % places[tensor]
                made.tensors.append(table)
                if key is not None:
                    constants[key] = places[tensor]
            return places[tensor]

        made.inputs = np.array([place(each) for each in program.inputs], np.int32)
        made.operators = [self._operator(each, place) for each in program.operators]
        made.outputs = np.array([place(each) for each in program.outputs], np.int32)
        return made, places

    def _tensor(self, tensor: Tensor) -> Any:
        made = self._schema.TensorT()
        made.shape = np.array(tensor.shape, np.int32)
        made.type = self._type(tensor.dtype)
        made.hasRank = True
        made.buffer = 0 if tensor.data is None else self._buffer(tensor)
        if tensor.scales is not None:
            made.quantization = self._schema.QuantizationParametersT()
            made.quantization.scale = tensor.scales.astype(np.float32)
            made.quantization.zeroPoint = np.full(tensor.scales.size, tensor.zero, np.int64)
            made.quantization.quantizedDimension = tensor.axis
        return made

    def _buffer(self, tensor: Tensor) -> int:
        assert tensor.data is not None
        data = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)
        digest = hashlib.sha256(data.data).digest()
        if digest not in self._stored:
            self._stored[digest] = len(self._buffers)
            self._buffers.append(_aligned_buffer(self._schema, data))
            self.stored_bytes += data.size + _ALIGNED
        return self._stored[digest]

    def _type(self, name: str) -> int:
        return int(getattr(self._schema.TensorType, name.upper()))

    def _operator(self, operator: Operator, place: Any) -> Any:
        made = self._schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault((operator.code, _version(operator)), len(self._codes))
        made.inputs = np.array([place(each) for each in operator.inputs], np.int32)
        made.outputs = np.array([place(each) for each in operator.outputs], np.int32)
        name = _OPTIONS.get(operator.code, "".join(part.capitalize() for part in operator.code.split("_")) + "Options")
        table = getattr(self._schema, f"{name}T", None)
        if table is None:
            return made
        options = table()
        for key, value in operator.options.items():
            setattr(options, key, self._type(value) if key in _TYPED else value)
        made.builtinOptions, made.builtinOptionsType = options, getattr(self._schema.BuiltinOptions, name)
        return made


def _version(operator: Operator) -> int:
    small = any(each is not None and each.dtype == "int8" for each in operator.inputs)
    if operator.options.get("halfPixelCenters"):
        return 3
    versions = _INT8_VERSIONS if small else _VERSIONS
    return versions.get(operator.code, 1)


def _identity(tensor: Tensor, buffer: int) -> tuple[Any, ...] | None:
    """What equal constants have in common."""
    if tensor.data is None:
        return None
    scales = b"" if tensor.scales is None else tensor.scales.astype(np.float32).tobytes()
    return (buffer, tensor.dtype, tensor.shape, tensor.axis, tensor.zero, scales)


def _aligned_buffer(found: Any, data: Any) -> Any:
    class AlignedBuffer(found.BufferT):  # type: ignore[misc]
        """Writes its content once, at a multiple of 16 bytes, as the schema demands; the generated class does not."""

        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated class calls it so
            builder.StartVector(1, data.size, _ALIGNED)
            builder.head -= data.size
            builder.Bytes[builder.head : builder.head + data.size] = data.data
            vector = builder.EndVector()
            found.BufferStart(builder)
            found.BufferAddData(builder, vector)
            return found.BufferEnd(builder)

    return AlignedBuffer()
