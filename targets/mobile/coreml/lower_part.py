"""One chip part as a program that is ready to be written: lowered, in its precision, optimized and compressed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from flagsplit.errors import BundleError, InputError, ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.border import program_names
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.compression import compress
from flagsplit.targets.mobile.coreml.lowering.program import build_program
from flagsplit.targets.mobile.coreml.lowering.registry import has_rule
from flagsplit.targets.mobile.coreml.masks import soften, soften_masks
from flagsplit.targets.mobile.coreml.moved import only_moved
from flagsplit.targets.mobile.coreml.passes import forget_names, run_passes
from flagsplit.targets.mobile.coreml.precision import fp16_selector, nodes_in_fp32, overflows
from flagsplit.targets.mobile.coreml.ranges import measure, random_inputs
from flagsplit.targets.mobile.coreml.sdk import import_sdk
from flagsplit.targets.mobile.coreml.states import hold_states
from flagsplit.targets.written_out import write_out


@dataclass(frozen=True)
class Decided:
    """What the values of a part decide; the same part at another size goes by it too.

    Attributes:
        in_fp32: nodes that stay in fp32 although fp16 was chosen, with the reason; "" stands for the whole part.
        unfit: inputs and outputs that fp16 cannot hold.
        softened: constants that were masks, and are such that fp16 can hold.
    """

    in_fp32: Mapping[str, str]
    unfit: Sequence[str] = ()
    softened: Sequence[str] = ()

    @property
    def ends_fit(self) -> bool:
        """Whether all inputs and outputs may be passed as fp16."""
        return not self.unfit and "" not in self.in_fp32


@dataclass(frozen=True, eq=False)
class LoweredPart:
    """A program and what was decided on the way.

    Attributes:
        program: of coremltools, with one function "main".
        names: of inputs and outputs of the part in the program.
        decided: from the part's values.
        moved: nodes that stay in fp32 since they compute nothing, with the reason.
    """

    program: Any
    names: Mapping[str, str]
    decided: Decided
    moved: Mapping[str, str]

    @property
    def in_fp32(self) -> Mapping[str, str]:
        """Nodes that stay in fp32 although fp16 was chosen, with the reason."""
        return {**self.moved, **self.decided.in_fp32}


def lower_part(
    part: ChipPart, choices: Choices, states: Mapping[str, str] | None = None, decided: Decided | None = None
) -> LoweredPart:
    """Make the program of a chip part.

    Args:
        part: it stays as it is. Without samples, random ones of a fixed seed tell the range of its values.
        choices: of the build.
        states: inputs that are to be states, each with the output that it becomes.
        decided: of the same part, where its values were looked at already.

    Raises:
        ModelError: a node cannot be lowered, the message names it; or a state is none.
        ConfigError: coremltools is not installed.
    """
    ct = import_sdk()
    model = part.model.clone()
    write_out(model, has_rule)
    if decided is None:
        decided = _decide(model, choices, part.samples)
    else:
        soften(model, decided.softened)
    names = program_names(model)
    forget_names()
    program = build_program(model, names, opset=getattr(ct.target, choices.deployment))
    lost = next((name for pair in (states or {}).items() for name in pair if name in decided.unfit), None)
    if lost is not None:
        raise ModelError(f"the state {lost!r} becomes larger than fp16 holds, which states are in; leave it out")
    hold_states(
        program, {names.get(before, before): names.get(after, after) for before, after in (states or {}).items()}
    )
    whole = choices.precision == "fp32" or "" in decided.in_fp32
    fp16_io = choices.io == "fp16" and decided.ends_fit
    moved = {} if whole or fp16_io or states else only_moved(model)
    selector = None if whole else fp16_selector(program, model, decided.in_fp32, moved)
    run_passes(program, selector, fp16_io=fp16_io)
    compress(program, choices.weights)
    return LoweredPart(program, names, decided, moved)


def _decide(model: ir.Model, choices: Choices, samples: Sequence[Mapping[str, Array]]) -> Decided:
    """What stays in fp32; masks are made fit for fp16 first, in place."""
    if choices.precision == "fp32" and choices.io == "fp32" and not choices.states:
        return Decided({})
    samples = samples or [random_inputs(model)]
    softened: tuple[str, ...] = ()
    try:
        if choices.precision != "fp32":
            softened = soften_masks(model, samples)
        ranges = measure(model, samples)
    except (BundleError, InputError) as error:
        return Decided({"": f"its range is not known, as it could not be run on samples: {error}"}, (), softened)
    ends = (*model.graph.inputs, *model.graph.outputs)
    unfit = tuple(value.name for value in ends if value.name in ranges and overflows(ranges[value.name]))
    if choices.precision == "fp32":
        return Decided({}, unfit)
    return Decided(nodes_in_fp32(model, ranges, careful=choices.precision == "mixed"), unfit, softened)
