"""Writing an `.mlpackage` with many functions: equal weights stored once, and the same bytes for the same programs.

A package is a folder: `Manifest.json`, the model's protobuf, and one weight file that all functions refer to. What
coremltools itself saves has random identifiers and an unordered protobuf, and its way to several functions loads every
program again; this one writes each function as it comes, after which its program can be freed.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "segments.mlpackage"

_MODEL = "com.apple.CoreML/model.mlmodel"
_WEIGHTS_FOLDER = "com.apple.CoreML/weights"
_WEIGHTS = f"{_WEIGHTS_FOLDER}/weight.bin"
_WEIGHTS_REFERENCE = "@model_path/weights/weight.bin"
_IDENTIFIERS = uuid.UUID("6f2f0f5e-3a3e-5d1c-9a55-1c0d7b1f5e2a")


class PackageWriter:
    """One package in the making. Needs coremltools.

    Args:
        folder: an empty one for the weights while they are collected.
        version: specification version of Core ML that the package is of.
    """

    def __init__(self, folder: Path, version: int) -> None:
        from coremltools import proto
        from coremltools.libmilstoragepython import _BlobStorageWriter

        self._folder = folder
        self._version = version
        self._blob = _BlobStorageWriter(str(folder / "weight.bin"))
        self._offsets: dict[bytes, int] = {}
        self._model = proto.Model_pb2.Model(specificationVersion=version)
        self._model.mlProgram.version = 1

    def add(self, name: str, program: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Add the function "main" of a program whose passes have all run, under a name of its own.

        Args:
            name: of letters, digits and underscores.
            program: a program of coremltools; it can be dropped afterwards.

        Returns:
            NumPy name of the element type, and the shape, of each input and output, as the package declares them.
        """
        from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter

        exporter = MILProtoExporter(program, str(self._folder), self._version)
        exporter.create_file_value = self._stored
        made = exporter.export()
        for block in made.functions["main"].block_specializations.values():
            _share_constants(block)
        describing = CoreMLProtoExporter(program, made, "", "", None, "mlprogram", "milinternal", self._version)
        function = program.functions["main"]
        described = self._model.description.functions.add(name=name)
        inputs = describing.get_func_input(function)
        described.input.extend(each for each in inputs if each.type.WhichOneof("Type") != "stateType")
        described.state.extend(each for each in inputs if each.type.WhichOneof("Type") == "stateType")
        described.output.extend(describing.get_func_output(function))
        self._model.mlProgram.functions[name].CopyFrom(made.functions["main"])
        if not self._model.description.defaultFunctionName:
            self._model.description.defaultFunctionName = name
        return {each.name: _declared(each) for each in (*described.input, *described.output)}

    def _stored(self, var: Any) -> Any:
        """Where a constant is in the weight file, written there unless equal bytes already are."""
        from coremltools.converters.mil.backend.mil import helper

        digest = hashlib.blake2b(str(var.dtype.__name__).encode(), digest_size=32)
        digest.update(var.val.tobytes())
        offset = self._offsets.get(digest.digest())
        if offset is None:
            offset = helper._get_offset_by_writing_data(var, self._blob)
            self._offsets[digest.digest()] = offset
        primitive = var.sym_type.get_primitive() if hasattr(var.sym_type, "get_primitive") else var.sym_type
        kind = helper.types_to_proto_primitive(primitive)
        return helper.create_file_value_tensor(_WEIGHTS_REFERENCE, offset, var.val.shape, kind)

    def files(self) -> dict[str, bytes]:
        """The package's files by path, `PACKAGE` included; the writer cannot be used afterwards."""
        self._blob = None
        weights = self._folder / "weight.bin"
        model = self._model.SerializeToString(deterministic=True)
        files = {_MODEL: model, _WEIGHTS: weights.read_bytes() if weights.exists() else b""}
        weights.unlink(missing_ok=True)
        return {f"{PACKAGE}/Manifest.json": _manifest(files)} | {
            f"{PACKAGE}/Data/{path}": data for path, data in files.items()
        }


def _share_constants(block: Any) -> None:
    """Keep one of equal constants of a function: most of a program are strides and modes, said again and again."""
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    dropped = []
    for at, operation in enumerate(block.operations):
        if operation.type == "const":
            name = operation.outputs[0].name
            known = first.setdefault(operation.attributes["val"].SerializeToString(deterministic=True), name)
            if known != name and name not in block.outputs:
                same[name] = known
                dropped.append(at)
        _rename_inputs(operation, same)
    for at in reversed(dropped):
        del block.operations[at]


def _rename_inputs(operation: Any, names: Mapping[str, str]) -> None:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.name in names:
                binding.name = names[binding.name]
    for block in operation.blocks:
        for inner in block.operations:
            _rename_inputs(inner, names)
        block.outputs[:] = [names.get(name, name) for name in block.outputs]


def _declared(feature: Any) -> tuple[str, tuple[int, ...]]:
    from coremltools import proto

    array = feature.type.multiArrayType
    kind = proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType)
    return kind.lower(), tuple(int(size) for size in array.shape)


def _manifest(files: dict[str, bytes]) -> bytes:
    """The list of contents; identifiers come from the content, where coremltools has random ones."""
    items = {
        _MODEL: ("model.mlmodel", "CoreML Model Specification", files[_MODEL]),
        _WEIGHTS_FOLDER: ("weights", "CoreML Model Weights", files[_WEIGHTS]),
    }
    entries = {
        _identifier(path, data): {"author": "com.apple.CoreML", "description": text, "name": name, "path": path}
        for path, (name, text, data) in items.items()
    }
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _identifier(_MODEL, files[_MODEL]),
    }
    return json.dumps(content, indent=4).encode() + b"\n"


def _identifier(path: str, data: bytes) -> str:
    return str(uuid.uuid5(_IDENTIFIERS, f"{path} {hashlib.sha256(data).hexdigest()}")).upper()
