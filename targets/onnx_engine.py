"""ONNX Runtime on this host's CPU: how a model is opened and run, for every target that has it do a part.

With numerics "exact" the optimizer is kept from blocked layouts, whose rounding depends on where a graph is cut.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.interface import Array, Executable, Numerics, TensorSpec

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
"""NumPy names of the element types, by ONNX Runtime's."""

PAIRS_AS_THEY_ARE = {"session.disable_quant_qdq": "1"}
"""A setting: QuantizeLinear and DequantizeLinear are computed one by one, not fused with what lies between them."""

_WEIGHTS_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


def open_onnx(
    file: Path, weights: Path | None, numerics: Numerics, threads: int, settings: Mapping[str, str] | None = None
) -> Executable:
    """Open a model; its weights are mapped, not copied, until the engine packs them.

    Args:
        file: an ONNX file.
        weights: the file of its large weights, if there are any.
        numerics: see `Numerics`.
        threads: how many threads one run may use; 0 lets the engine choose.
        settings: more of the engine's session configuration, such as `PAIRS_AS_THEY_ARE`.

    Raises:
        BundleError: the engine cannot load it.
    """
    import onnxruntime as ort

    options = session_settings(weights, numerics, threads)
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"ONNX Runtime cannot load {file.name}: {_short(error)}; build the bundle again") from error
    return OrtExecutable(session)


def session_settings(weights: Path | None, numerics: Numerics, threads: int) -> Any:
    """The options of a session; see `open_onnx`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER_KEY, str(weights.parent))
    levels = ort.GraphOptimizationLevel
    exact = numerics == "exact"
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if exact else levels.ORT_ENABLE_ALL
    return options


class OrtExecutable:
    """An open ONNX Runtime session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = tuple(_spec(value) for value in session.get_inputs())
        self._outputs = tuple(_spec(value) for value in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._session.run(self._output_names, dict(tensors))
        except Exception as error:
            raise InputError(f"ONNX Runtime could not run the model on these inputs: {_short(error)}") from error
        return {name: np.asarray(array) for name, array in zip(self._output_names, results, strict=True)}

    def close(self) -> None:
        self._session = None


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in value.shape)
    return TensorSpec(value.name, DTYPES.get(value.type, value.type), shape)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
