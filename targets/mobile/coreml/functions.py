"""Which functions of a package run a segment: one; one for each size, if it has to be; a twin that holds states."""

from collections.abc import Mapping

from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.mobile.coreml.border import chip_tensors, function_name
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.flexible import lower_each, lower_flexible
from flagsplit.targets.mobile.coreml.lower_part import LoweredPart, lower_part
from flagsplit.targets.mobile.coreml.package import PACKAGE, PackageWriter
from flagsplit.targets.mobile.coreml.reopen import SizesDifferError
from flagsplit.targets.segment_table import ChipCall, StatefulCall, StateTensor


class Functions:
    """The functions of one package, written as they are lowered.

    Args:
        writer: of the package.
        choices: of the build.

    Attributes:
        calls, sized, stateful: as `ChipArtifact` has them.
        in_fp32: by segment, the nodes that stay in fp32, with the reason.
        by_size: of segments that have a function for each size, why.
    """

    def __init__(self, writer: PackageWriter, choices: Choices) -> None:
        self.writer, self._choices = writer, choices
        self.calls: dict[str, ChipCall] = {}
        self.sized: dict[str, list[ChipCall]] = {}
        self.stateful: dict[str, StatefulCall] = {}
        self.in_fp32: dict[str, Mapping[str, str]] = {}
        self.by_size: dict[str, str] = {}

    def add(self, part: ChipPart, held: Mapping[str, str]) -> None:
        """Write what runs a part, and its twin if it holds states.

        Raises:
            ModelError: it cannot be lowered.
        """
        name = function_name(part.segment)
        try:
            lowered = lower_flexible(part, self._choices)
        except SizesDifferError as error:
            if self._choices.shapes != "enumerated":
                advice = (
                    "no function is of a range then; list sizes, --dim SYMBOL=SIZE,SIZE, for coreml.shapes=enumerated"
                )
                raise ModelError(f"{error}; {advice}") from error
            self.by_size[part.segment] = str(error)
            self._add_each(name, part)
            return
        self.calls[part.segment] = _call(name, part, lowered.names, self.writer.add(name, lowered.program))
        self._note(part, lowered)
        if held:
            twin = lower_part(part, self._choices, held, lowered.decided)
            name = f"{name}_stateful"
            declared = self.writer.add(name, twin.program)
            self.stateful[part.segment] = _stateful_call(name, part, twin.names, declared, held)

    def _add_each(self, name: str, part: ChipPart) -> None:
        """Write a function for each size."""
        sized = self.sized[part.segment] = []
        for at, (each, lowered) in enumerate(lower_each(part, self._choices)):
            called = f"{name}_size{at}" if at else name
            sized.append(_call(called, each, lowered.names, self.writer.add(called, lowered.program)))
            self._note(part, lowered)
        self.calls[part.segment] = sized[0]

    def _note(self, part: ChipPart, lowered: LoweredPart) -> None:
        if lowered.in_fp32:
            self.in_fp32[part.segment] = lowered.in_fp32


def _call(
    name: str, part: ChipPart, names: Mapping[str, str], passed: Mapping[str, tuple[str, tuple[int, ...]]]
) -> ChipCall:
    graph = part.model.graph
    return ChipCall(
        file=PACKAGE,
        function=name,
        inputs=chip_tensors(graph.inputs, names, passed, part.open_shapes),
        outputs=chip_tensors(graph.outputs, names, passed, part.open_shapes),
    )


def _stateful_call(
    name: str,
    part: ChipPart,
    names: Mapping[str, str],
    passed: Mapping[str, tuple[str, tuple[int, ...]]],
    held: Mapping[str, str],
) -> StatefulCall:
    graph = part.model.graph
    states = []
    for value in graph.inputs:
        before = value.name or ""
        if before in held:
            assert value.shape is not None
            shape = [int(size) for size in value.shape.numpy()] or [1]
            states.append(
                StateTensor(name=before, becomes=held[before], called=names[before], dtype="float16", shape=shape)
            )
    return StatefulCall(
        file=PACKAGE,
        function=name,
        inputs=chip_tensors([each for each in graph.inputs if each.name not in held], names, passed, {}),
        outputs=chip_tensors([each for each in graph.outputs if each.name not in held.values()], names, passed, {}),
        states=states,
    )
