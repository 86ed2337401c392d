"""One case through one target: canonical form, support, compile, store, load, run, compare.

The node tests hand over as inputs what models hold as constants: shapes, axes, paddings, weights. So a case that a
target refuses as it is written is tried again with those inputs as constants: first integers and bools of at most one
dimension, then all but the first input. The result says which it took.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ConfigError, FlagsplitError, InternalError, ModelError
from flagsplit.flagir import Segment
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.chip_parts import fixed_sizes, split_segments
from flagsplit.targets.conformance.cases import Case, CaseResult, Constants
from flagsplit.targets.conformance.tolerance import difference, precision_of
from flagsplit.targets.interface import Array, CompileOptions, LoadOptions, StoredArtifact, Target

_HOST = LoadOptions(threads=1)


class _RefusedError(Exception):
    """The target does not take the case."""

    def __init__(self, why: str, disagreement: str = "") -> None:
        super().__init__(why)
        self.disagreement = disagreement


class _SkippedError(Exception):
    """The case does not apply."""


@dataclass(frozen=True, eq=False)
class _Ready:
    """A case in canonical form: the model on disk, and what of it is to be compiled."""

    model: ir.Model
    segment: Segment
    inputs: Mapping[str, Array]
    options: CompileOptions


def run_case(target: Target, case: Case, choices: Mapping[str, str] | None = None) -> CaseResult:
    """Run a case in this process.

    Args:
        target: any target.
        case: what to compute.
        choices: the target's own choices of a build.

    Raises:
        ConfigError: the target's SDK is not installed, or it does not have these choices.
    """
    if case.skip:
        return CaseResult(case.name, "skipped", case.skip)
    result, disagreement = CaseResult(case.name, "refused"), ""
    for constants, names in _ways(case):
        try:
            found = _attempt(target, case, names, choices or {})
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a target raises is a finding
            found = _result_of(case, error)
        if constants != "none" and found.status == "skipped":
            break
        disagreement = disagreement or found.disagreement
        result = replace(found, constants=constants, disagreement=disagreement)
        if found.status != "refused":
            break
    return result


def check_case(target: Target, case: Case, choices: Mapping[str, str] | None = None) -> CaseResult:
    """Run a case in this process, for test suites.

    Returns:
        The result, which is "passed", "refused" or "skipped".

    Raises:
        AssertionError: the answer is wrong, or the target broke.
        ConfigError: the target's SDK is not installed, or it does not have these choices.
    """
    result = run_case(target, case, choices)
    if result.status in ("failed", "crashed"):
        raise AssertionError(f"{result.name} {result.status}: {result.why}")
    return result


def _ways(case: Case) -> list[tuple[Constants, frozenset[str]]]:
    """The inputs that are constants, in the order in which they are tried; none twice."""
    sizes = frozenset(name for name, array in case.inputs.items() if array.dtype.kind in "ib" and array.ndim <= 1)
    first = next(iter(case.inputs), "")
    ways: list[tuple[Constants, frozenset[str]]] = [
        ("none", frozenset()),
        ("sizes", sizes - {first}),
        ("all but the first", frozenset(case.inputs) - {first}),
    ]
    tried: dict[frozenset[str], Constants] = {}
    for constants, names in ways if case.source == "node" else ways[:1]:
        tried.setdefault(names, constants)
    return [(constants, names) for names, constants in tried.items()]


def _result_of(case: Case, error: Exception) -> CaseResult:
    text = _short(error)
    if isinstance(error, _RefusedError):
        return CaseResult(case.name, "refused", text, disagreement=error.disagreement)
    if isinstance(error, _SkippedError):
        return CaseResult(case.name, "skipped", text)
    if isinstance(error, FlagsplitError) and not isinstance(error, InternalError):
        return CaseResult(case.name, "failed", f"it compiled, but then: {text}")
    return CaseResult(case.name, "crashed", f"{type(error).__name__}: {text}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _attempt(target: Target, case: Case, constants: frozenset[str], choices: Mapping[str, str]) -> CaseResult:
    with tempfile.TemporaryDirectory(prefix="flagsplit-case-") as scratch:
        folder = Path(scratch)
        ready = _prepare(case, constants, folder, choices)
        idle = _check_support(target, ready)
        if not target.describe().carries_nan and _has_nan(case):
            raise _RefusedError("its numbers have NaN, which the target does not carry")
        try:
            artifact = target.compile(ready.model, [ready.segment], ready.options)
        except ModelError as error:
            raise _RefusedError(str(error), "" if idle else str(error)) from error
        except (ConfigError, InternalError):
            raise
        except FlagsplitError as error:
            return CaseResult(case.name, "failed", f"compile raised {type(error).__name__}: {_short(error)}")
        stored = artifact.store(folder / "artifact", folder / flagir.WEIGHTS_NAME)
        wrong = _run(target, stored, ready, case, choices)
    if wrong:
        return CaseResult(case.name, "failed", wrong)
    if idle:
        raise _SkippedError("nothing is left for the target: all of it is constant, or an input as it came")
    return CaseResult(case.name, "passed")


def _prepare(case: Case, constants: frozenset[str], folder: Path, choices: Mapping[str, str]) -> _Ready:
    try:
        if isinstance(case.model, Path):
            model = flagir.read_model(case.model)
        else:
            model = ir.serde.deserialize_model(case.model)
        _freeze(model, case, constants)
        flagir.canonicalize(model)
        flagir.check(model)
    except ModelError as error:
        raise _SkippedError(f"not a FlagIR model: {error}") from error
    flagir.save(model, folder)
    segment = segment_of(model, case.nodes or [node.name or "" for node in model.graph])
    inputs = {name: array for name, array in case.inputs.items() if name in segment.inputs}
    asked = case.sample or case.inputs
    sample = {value.name: asked[value.name] for value in model.graph.inputs if value.name is not None}
    options = CompileOptions(
        dims=_dims(model, sample),
        choices=choices,
        samples=(sample,),
        real_samples=True,
        weights=folder / flagir.WEIGHTS_NAME,
    )
    return _Ready(model, segment, inputs, options)


def _freeze(model: ir.Model, case: Case, constants: frozenset[str]) -> None:
    """Make constants of some inputs."""
    for value in list(model.graph.inputs):
        name = value.name or ""
        if name not in constants:
            continue
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(case.inputs[name], name=name)
        model.graph.register_initializer(value)


def _dims(model: ir.Model, sample: Mapping[str, Array]) -> dict[str, int]:
    """What the arrays say about the symbols."""
    return {
        dim.value: size
        for value in model.graph.inputs
        if value.name is not None and value.shape is not None
        for dim, size in zip(value.shape, sample[value.name].shape, strict=True)
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }


def _check_support(target: Target, ready: _Ready) -> bool:
    """Raise `_RefusedError` if the target says no; whether nothing is left for it."""
    about = target.describe()
    quantized_ends = getattr(target, "quantized_ends", False)
    nodes, edge = _asked(ready, fixed=about.static_shapes, quantized_ends=quantized_ends)
    for node in nodes:
        verdict = target.supports(node)
        if not verdict.supported:
            raise _RefusedError(f"{node.op_type}: {verdict.reason or 'no reason given'}")
    for value in edge:
        if value.dtype is not None and value.dtype.numpy().name not in about.dtypes:
            raise _RefusedError(f"its segments take and give no {value.dtype.numpy().name}")
        if value.shape is not None and len(value.shape) > about.max_rank:
            raise _RefusedError(f"its segments take and give tensors of at most {about.max_rank} dimensions")
    return all(node.op_type == "Identity" and not node.domain for node in nodes)


def _has_nan(case: Case) -> bool:
    arrays = (*case.inputs.values(), *case.outputs.values())
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in arrays)


def _asked(ready: _Ready, *, fixed: bool, quantized_ends: bool) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that the target itself has to take, and the values at their edge."""
    if fixed:
        try:
            (split,) = split_segments(
                ready.model,
                [ready.segment],
                fixed_sizes(ready.model, ready.options.dims, [ready.segment]),
                quantized_ends,
            )
        except ModelError as error:
            raise _RefusedError(str(error)) from error
        if split.chip is None:
            return [], []
        graph = split.chip.model.graph
        return list(graph), [*graph.inputs, *graph.outputs]
    wanted, names = set(ready.segment.nodes), {*ready.segment.inputs, *ready.segment.outputs}
    made = (value for node in ready.model.graph for value in node.outputs)
    edge = [value for value in (*ready.model.graph.inputs, *made) if value.name in names]
    return [node for node in ready.model.graph if node.name in wanted], edge


def _run(target: Target, stored: StoredArtifact, ready: _Ready, case: Case, choices: Mapping[str, str]) -> str:
    """How the answers are wrong; "" if they are not."""
    executable = target.load(stored, ready.segment.id, _HOST)
    try:
        given = {name: array.copy() for name, array in ready.inputs.items()}
        came = executable.run(given)
    finally:
        executable.close()
    for name, array in ready.inputs.items():
        if not np.array_equal(given[name], array, equal_nan=array.dtype.kind == "f"):
            return f"run changed its input {name!r}"
    precision = precision_of(target.describe(), choices)
    for name, expected in case.outputs.items():
        if name not in came:
            return f"output {name!r} is missing"
        if case.random:
            expected = np.zeros_like(expected)
            array = np.zeros_like(came[name])
        else:
            array = np.asarray(came[name])
        wrong = difference(expected, array, precision, (case.name, *case.operators), case.source)
        if wrong:
            return f"output {name!r}: {wrong}"
    return ""
