"""Tensors that stay on the device from one run to the next, such as the keys and values of a decoder.

Core ML holds a state in fp16 (iOS 18); a run reads it and leaves it changed, so it crosses no border. In the model a
state is an input and an output of equal type and shape: what it was, and what it becomes.
"""

from collections.abc import Mapping
from typing import Any

from flagsplit.errors import ModelError
from flagsplit.targets.mobile.coreml.sdk import quiet


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
            raise ModelError(f"the state {before!r} becomes {after!r}; expected two float tensors of one shape")
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
            read = Builder.cast(x=read, dtype="fp32", name=f"{before}_fp32", before_op=first)
            function.replace_uses_of_var_after_op(anchor_op=None, old_var=taken, new_var=read)
        left = [var for name, var in outputs.items() if name not in states.values()]
        for before, after in states.items():
            new = Builder.cast(x=outputs[after], dtype="fp16", name=f"{after}_fp16")
            Builder.coreml_update_state(state=function.inputs[before], value=new, name=f"{after}_kept")
        function.set_outputs(left)
