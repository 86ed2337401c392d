"""Tensors that stay on the device from one run to the next, such as the keys and values of a decoder.

Core ML holds a state in fp16 (iOS 18); a run reads it and leaves it changed, so it crosses no border. In the model a
state is an input and an output of equal type and shape: what it was, and what it becomes.

A function with states gives another answer each time, so nothing that may be sent again can be run by one: requests of
flagsplit's runtime never are. It is for an app that runs a whole loop on the device, and stands beside the function
without states, whose weights it shares.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from flagsplit.errors import ConfigError, ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.mobile.coreml.sdk import quiet

AUTO = "auto"
"""Has states found by their names: `past…` becomes `present…`."""

_NAMES = (("past_key_values", "present"), ("past_key_values", "present_key_values"), ("past", "present"))


def states_of(parts: Sequence[ChipPart], chosen: str) -> list[dict[str, str]]:
    """The states that each part can hold: those of which it has both ends.

    Args:
        parts: of a tier.
        chosen: `INPUT:OUTPUT` with commas between, or `AUTO`; "" for none.

    Returns:
        For each part, the outputs by the inputs that become them.

    Raises:
        ModelError: no part has a state that was named, or `AUTO` finds none in any.
        ConfigError: a text names no pair.
    """
    if not chosen:
        return [{} for _ in parts]
    if chosen == AUTO:
        found = [_by_name(part) for part in parts]
        if not any(found):
            raise ModelError(
                "coreml.states=auto finds no input past… and output present… of one shape and a float type in one "
                "segment; name them, INPUT:OUTPUT, or export a cache of a fixed length"
            )
        return found
    found = [{} for _ in parts]
    for text in chosen.split(","):
        pairs = [(text[:at], text[at + 1 :]) for at, sign in enumerate(text) if sign == ":" and 0 < at < len(text) - 1]
        if not pairs:
            raise ConfigError(f"--choice coreml.states expects INPUT:OUTPUT,... or {AUTO}, came {text!r}")
        holders = [
            (at, pair)
            for at, part in enumerate(parts)
            for pair in pairs
            if pair[0] in _ends(part)[0] and pair[1] in _ends(part)[1]
        ]
        if not holders:
            raise ModelError(f"no segment has both ends of the state {text!r}; keep them on one tier, or leave it out")
        for at, (before, after) in holders:
            found[at][before] = after
    return found


def _ends(part: ChipPart) -> tuple[dict[str, ir.Value], dict[str, ir.Value]]:
    graph = part.model.graph
    return {value.name or "": value for value in graph.inputs}, {value.name or "": value for value in graph.outputs}


def _by_name(part: ChipPart) -> dict[str, str]:
    takes, gives = _ends(part)
    found: dict[str, str] = {}
    for name, value in takes.items():
        wanted = [name.replace(old, new, 1) for old, new in _NAMES if name.startswith(old)]
        after = next((each for each in wanted if each in gives), "")
        kind = (value.dtype, value.shape)
        if (
            after
            and kind == (gives[after].dtype, gives[after].shape)
            and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        ):
            found[name] = after
    return found


def hold_states(program: Any, states: Mapping[str, str]) -> None:
    """Turn inputs of a program into states, and outputs into what they become, in place.

    Args:
        program: from the lowering, before its passes, with one function "main".
        states: name of the output by name of the input, as the program calls them.

    Raises:
        ModelError: they are not of one floating-point type and shape, or no output is left.
    """
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    if not states:
        return
    function = program.functions["main"]
    outputs = {var.name: var for var in function.outputs}
    for before, after in states.items():
        taken, given = function.inputs.get(before), outputs.get(after)
        if taken is None or given is None:
            raise ModelError(
                f"a state needs an input {before!r} and an output {after!r}; the program lacks one of them"
            )
        if taken.sym_type != given.sym_type or not types.is_float(taken.dtype):
            raise ModelError(
                f"the state {before!r} becomes {after!r}; expected two float tensors of one shape (a cache that "
                "grows is no state: export the model with one of a fixed length)"
            )
    if len(outputs) == len(states):
        raise ModelError("all outputs are states; a function of Core ML gives at least one output")
    with quiet(), function:
        for before, after in states.items():
            taken, given = function.inputs[before], outputs[after]
            placeholder = Builder.state_tensor_placeholder(taken.shape, types.fp16)
            placeholder.set_name(before)
            held = placeholder.outputs[0]
            function._input_dict[before] = held
            first = function.operations[0]
            read = Builder.read_state(input=held, name=f"{before}_read", before_op=first)
            if taken.dtype != types.fp16:
                read = Builder.cast(x=read, dtype="fp32", name=f"{before}_fp32", before_op=first)
            function.replace_uses_of_var_after_op(anchor_op=None, old_var=taken, new_var=read)
        left = [var for name, var in outputs.items() if name not in states.values()]
        for before, after in states.items():
            new = outputs[after]
            if new.dtype != types.fp16:
                new = Builder.cast(x=new, dtype="fp16", name=f"{after}_fp16")
            Builder.coreml_update_state(state=function.inputs[before], value=new, name=f"{after}_kept")
        function.set_outputs(left)
