"""One chip part as a program that is ready to be written: lowered, in its precision, optimized and compressed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.border import program_names
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.compression import compress
from flagsplit.targets.mobile.coreml.lowering.program import build_program
from flagsplit.targets.mobile.coreml.lowering.registry import has_rule
from flagsplit.targets.mobile.coreml.masks import soften_masks
from flagsplit.targets.mobile.coreml.moved import only_moved
from flagsplit.targets.mobile.coreml.passes import forget_names, run_passes
from flagsplit.targets.mobile.coreml.precision import fp16_selector, nodes_in_fp32, overflows
from flagsplit.targets.mobile.coreml.ranges import measure, random_inputs
from flagsplit.targets.mobile.coreml.sdk import import_sdk
from flagsplit.targets.mobile.coreml.states import hold_states
from flagsplit.targets.written_out import write_out


@dataclass(frozen=True, eq=False)
class LoweredPart:
    """A program and what was decided on the way.

    Attributes:
        program: of coremltools, with one function "main".
        names: of inputs and outputs of the part in the program.
        in_fp32: nodes that stay in fp32 although fp16 was chosen, with the reason; "" stands for the whole part.
    """

    program: Any
    names: Mapping[str, str]
    in_fp32: Mapping[str, str]


def lower_part(part: ChipPart, choices: Choices, states: Mapping[str, str] | None = None) -> LoweredPart:
    """Make the program of a chip part.

    Args:
        part: it stays as it is. Without samples, random ones of a fixed seed tell the range of its values.
        choices: of the build.
        states: inputs that are to be states, each with the output that it becomes.

    Raises:
        ModelError: a node cannot be lowered, the message names it; or a state is none.
        ConfigError: coremltools is not installed.
    """
    ct = import_sdk()
    model = part.model.clone()
    write_out(model, has_rule)
    in_fp32, ends_fit = _in_fp32(model, choices, part.samples)
    names = program_names(model)
    forget_names()
    program = build_program(model, names, opset=getattr(ct.target, choices.deployment))
    hold_states(
        program, {names.get(before, before): names.get(after, after) for before, after in (states or {}).items()}
    )
    whole = choices.precision == "fp32" or "" in in_fp32
    fp16_io = choices.io == "fp16" and ends_fit
    moved = {} if whole or fp16_io or states else only_moved(model)
    selector = None if whole else fp16_selector(program, model, in_fp32, moved)
    run_passes(program, selector, fp16_io=fp16_io)
    compress(program, choices.weights)
    return LoweredPart(program, names, {**moved, **in_fp32})


def _in_fp32(model: ir.Model, choices: Choices, samples: Sequence[Mapping[str, Array]]) -> tuple[dict[str, str], bool]:
    """What stays in fp32, and whether inputs and outputs fit fp16; masks are made fit for fp16 first."""
    if choices.precision == "fp32" and choices.io == "fp32":
        return {}, False
    samples = samples or [random_inputs(model)]
    try:
        if choices.precision != "fp32":
            soften_masks(model, samples)
        ranges = measure(model, samples)
    except (BundleError, InputError) as error:
        return {"": f"its range is not known, as it could not be run on samples: {error}"}, False
    ends = (*model.graph.inputs, *model.graph.outputs)
    ends_fit = not any(overflows(ranges[value.name or ""]) for value in ends if value.name in ranges)
    if choices.precision == "fp32":
        return {}, ends_fit
    return nodes_in_fp32(model, ranges, careful=choices.precision == "mixed"), ends_fit
