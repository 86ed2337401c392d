"""A segment that holds states from run to run: what an app does that runs a loop on the device, done here.

It is no `Executable`, since the same inputs give another answer each time: flagsplit's runtime does not run it.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from flagsplit.errors import BundleError
from flagsplit.targets.chip_call import CallExecutable
from flagsplit.targets.interface import Array, Executable, LoadOptions, StoredArtifact
from flagsplit.targets.mobile.coreml.executable import HAS_CORE_ML, open_core_ml
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.targets.segment_table import TABLE_NAME, StatefulCall, read_table

_Run = Callable[[dict[str, Array]], Mapping[str, Array]]


class StatefulSegment:
    """A segment whose states stay, zeros at first. Make it with `open_stateful`; close it when done.

    Args:
        call: how the chip's part is called.
        start: makes states, and gives what runs the part on them.
        before, after: what the host runs, in this order around it.
    """

    def __init__(
        self,
        call: StatefulCall,
        start: Callable[[], _Run],
        before: list[Executable],
        after: list[Executable],
    ) -> None:
        self._call, self._start = call, start
        self._before, self._after = before, after
        self.reset()

    @property
    def states(self) -> dict[str, str]:
        """By name of the value that is held, that of the value which it becomes."""
        return {state.name: state.becomes for state in self._call.states}

    def reset(self) -> None:
        """Begin anew: all states are zeros."""
        self._chip = CallExecutable(self._call, self._start(), "Core ML")

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run once, and leave the states changed.

        Args:
            tensors: the inputs of the segment but for its states.

        Returns:
            Its outputs but for what the states become.

        Raises:
            InputError: the engine refused the tensors.
        """
        values = dict(tensors)
        made: dict[str, Array] = {}
        for part in (*self._before, self._chip, *self._after):
            came = part.run({spec.name: values[spec.name] for spec in part.inputs if spec.name in values})
            values.update(came)
            made.update(came)
        return made

    def close(self) -> None:
        """Free what it holds."""
        for part in (*self._before, self._chip, *self._after):
            part.close()


def open_stateful(artifact: StoredArtifact, segment: str, host: LoadOptions) -> StatefulSegment:
    """Load the twin of a segment that holds states: with Core ML on macOS, elsewhere with the reference interpreter.

    Args:
        artifact: of a build with `--choice coreml.states`.
        segment: id of one of its segments.
        host: choices of this host.

    Raises:
        BundleError: the segment has no states, or cannot be loaded.
        ConfigError: on macOS, coremltools is not installed.
    """
    calls = read_table(artifact.folder / TABLE_NAME).segments.get(segment)
    if calls is None or calls.stateful is None:
        raise BundleError(f"segment {segment!r} holds no states; build it with --choice coreml.states=INPUT:OUTPUT")
    package = artifact.inside(calls.stateful.file)
    start = _with_core_ml(package, calls.stateful) if HAS_CORE_ML else _emulated(package, calls.stateful)
    with ExitStack() as opened:
        parts: list[list[Executable]] = []
        for names in (calls.before, calls.after):
            parts.append([])
            for name in names:
                part = open_onnx(artifact.inside(name), artifact.weights, "exact", host.threads)
                opened.callback(part.close)
                parts[-1].append(part)
        made = StatefulSegment(calls.stateful, start, *parts)
        opened.pop_all()
    return made


def _emulated(package: Path, call: StatefulCall) -> Callable[[], _Run]:
    from flagsplit.targets.mobile.mil import load_package

    function = load_package(package).function(call.function)
    if {state.called for state in call.states} != {spec.name for spec in function.states}:
        raise BundleError(f"{package.name} is not the one of {TABLE_NAME}: {call.function!r} differs; get it again")

    def start() -> _Run:
        state = function.new_state()
        return lambda tensors: function.run(tensors, state)

    return start


def _with_core_ml(package: Path, call: StatefulCall) -> Callable[[], _Run]:
    model = open_core_ml(package, call)

    def start() -> _Run:
        state = model.make_state()
        return lambda tensors: {k: np.asarray(v) for k, v in model.predict(tensors, state=state).items()}

    return start
