"""Opens a `.mlpackage` folder: manifest, model description, functions, weights.

NAME.mlpackage/Manifest.json                          which item is the model
NAME.mlpackage/Data/com.apple.CoreML/model.mlmodel    protobuf: description and ML Program
NAME.mlpackage/Data/com.apple.CoreML/weights/…        what the program refers to as @model_path/weights/…
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.mobile.mil.arguments import State, Value
from flagsplit.targets.mobile.mil.executor import Executor
from flagsplit.targets.mobile.mil.features import read_features
from flagsplit.targets.mobile.mil.program import read_function
from flagsplit.targets.mobile.mil.proto import pb
from flagsplit.targets.mobile.mil.types import STORAGE, Array, FeatureSpec, StateType, TensorType
from flagsplit.targets.mobile.mil.weight_file import WeightFile

_MAX_MANIFEST_BYTES: Final = 1 << 20
_MAX_MODEL_BYTES: Final = 512 << 20
_MODEL_PATH: Final = "@model_path/"


def load_package(folder: Path) -> "Package":
    """Open a package.

    Args:
        folder: the `.mlpackage`.

    Raises:
        BundleError: it is damaged, or holds no ML Program.
        ConfigError: coremltools, which has the protobuf classes, is not installed.
    """
    model = _inside(folder, f"Data/{_model_item(folder)}")
    spec = pb().Model_pb2.Model()
    try:
        spec.ParseFromString(_read(model, _MAX_MODEL_BYTES))
    except BundleError:
        raise
    except Exception as error:
        # protobuf's implementations raise different classes.
        raise BundleError(f"{model.name} is no Core ML model: {error}; write the package again") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise BundleError(
            f"expected {folder.name} to hold an ML Program; it holds a model of type {kind or 'nothing'}; "
            "convert it with convert_to='mlprogram'"
        )
    return Package(spec, model.parent)


class Package:
    """An open package.

    Args:
        spec: the `Model` message.
        folder: where the model file lies; weight files are beside it.
    """

    def __init__(self, spec: Any, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._weights: dict[str, WeightFile] = {}
        self._loaded: dict[str, Function] = {}

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of its functions, in order of name."""
        return tuple(sorted(self._spec.mlProgram.functions))

    def function(self, name: str = "") -> "Function":
        """One function; without a name, the default one.

        Raises:
            BundleError: there is none of that name, it is damaged, or has an operation that the interpreter lacks.
        """
        wanted = name or self._spec.description.defaultFunctionName or "main"
        if wanted not in self.functions:
            raise BundleError(f"the package has no function {wanted!r}; it has {', '.join(self.functions) or 'none'}")
        if wanted not in self._loaded:
            self._loaded[wanted] = self._load(wanted)
        return self._loaded[wanted]

    def _load(self, name: str) -> "Function":
        body = read_function(self._spec.mlProgram.functions[name], name, self._open_weights)
        types = {value.name: value.type for value in body.inputs}
        executor = Executor(name, types, body.block, body.opset)
        return Function(name, executor, read_features(self._spec.description, name, body, executor))

    def _open_weights(self, name: str) -> WeightFile:
        if name not in self._weights:
            if not name.startswith(_MODEL_PATH):
                raise BundleError(f"expected weights at {_MODEL_PATH}…; the program names {name!r}; refused")
            self._weights[name] = WeightFile(_inside(self._folder, name.removeprefix(_MODEL_PATH)))
        return self._weights[name]


class Function:
    """One function of a package, ready to run.

    Args:
        name: its name.
        executor: runs its body.
        features: its inputs, outputs and states.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        features: tuple[tuple[FeatureSpec, ...], tuple[FeatureSpec, ...], tuple[FeatureSpec, ...]],
    ) -> None:
        self.name = name
        self._executor = executor
        self.inputs, self.outputs, self.states = features

    def new_state(self) -> dict[str, Array]:
        """States as they are before the first run: zeros."""
        return {spec.name: np.zeros([size or 0 for size in spec.shape], np.dtype(spec.dtype)) for spec in self.states}

    def run(self, inputs: Mapping[str, Array], state: dict[str, Array] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: one array for each input, of its dtype and shape; not changed.
            state: from `new_state`; replaced by what the run leaves. Without it a run starts from zeros.

        Returns:
            One array per output. The probabilities of a classifier come in the order of its classes.

        Raises:
            InputError: the inputs are not those of the function.
            BundleError: the program is damaged.
        """
        given = {spec.name for spec in self.inputs}
        if inputs.keys() != given:
            raise InputError(f"expected the inputs {sorted(given)}; got {sorted(inputs)}")
        values: dict[str, Value] = {spec.name: self._input(spec, inputs[spec.name]) for spec in self.inputs}
        before = self.new_state() if state is None else state
        cells = {spec.name: State(self._input(spec, before[spec.name])) for spec in self.states}
        results = self._executor.run({**values, **cells})
        outputs = {spec.name: _public(result, spec) for spec, result in zip(self.outputs, results, strict=True)}
        if state is not None:
            for spec in self.states:
                state[spec.name] = _public(cells[spec.name].value, spec)
        return outputs

    def _input(self, spec: FeatureSpec, array: Array) -> Array:
        declared = self._executor.type_of(spec.name)
        kind = declared.wrapped if isinstance(declared, StateType) else declared
        assert isinstance(kind, TensorType)
        allowed = not spec.choices or array.shape in spec.choices
        in_range = not spec.ranges or (
            len(spec.ranges) == array.ndim
            and all(
                low <= size and (high < 0 or size <= high)
                for size, (low, high) in zip(array.shape, spec.ranges, strict=True)
            )
        )
        if array.dtype != np.dtype(kind.dtype) or not kind.fits(array.shape) or not allowed or not in_range:
            raise InputError(f"expected {spec.name!r} to be {_told(spec)}; got {array.dtype}{list(array.shape)}")
        return array.astype(STORAGE[kind.dtype]) if kind.dtype == "float16" else array


def _told(spec: FeatureSpec) -> str:
    if spec.choices:
        return f"{spec.dtype} of a shape out of {[list(shape) for shape in spec.choices]}"
    if spec.ranges:
        return f"{spec.dtype} with sizes in {[list(item) for item in spec.ranges]}"
    return f"{spec.dtype}{[size if size is not None else '?' for size in spec.shape]}"


def _public(value: Value, spec: FeatureSpec) -> Array:
    if not isinstance(value, np.ndarray):
        raise BundleError(f"the output {spec.name!r} is not a tensor; the interpreter gives tensors only")
    dtype = value.dtype if spec.dtype == "string" else np.float16 if spec.dtype == "float16" else STORAGE[spec.dtype]
    # A copy, so that nobody changes a constant or an input through an output.
    return np.array(value, dtype=dtype)


def _model_item(folder: Path) -> str:
    """The path of the root model inside `Data`, as the manifest states it."""
    try:
        manifest = json.loads(_read(_inside(folder, "Manifest.json"), _MAX_MANIFEST_BYTES))
        path = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"the manifest of {folder.name} names no model: {type(error).__name__} {error}; write the package again"
        ) from error
    if not isinstance(path, str):
        raise BundleError(f"expected the manifest of {folder.name} to name a path; it names {path!r}")
    return path


def _inside(folder: Path, name: str) -> Path:
    """A file in `folder`, never outside it."""
    parts = PurePosixPath(name)
    try:
        found = (folder / parts).resolve()
        inside = found.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"the package names the file {name!r}, which cannot be: {error}; refused") from error
    if parts.is_absolute() or not inside:
        raise BundleError(f"the package names {name!r}, which lies outside {folder.name}; refused")
    return found


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > limit_bytes:
            raise BundleError(f"{path.name} has {size_bytes} bytes; at most {limit_bytes} are allowed")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {error}; check the path, or write the package again") from error
