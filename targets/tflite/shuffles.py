"""Channel shuffles: a reshape that parts the channels, a transpose of the parts, and a reshape back are one GATHER.

It works in any layout, so that `layout` moves no transposes around it.
"""

import numpy as np

from flagsplit.targets.tflite.program import Operator, Program, Tensor


def gather_shuffles(program: Program) -> Program:
    """The same program with a GATHER for each channel shuffle; what made the shuffle is left, without a reader."""
    maker = {output: operator for operator in program.operators for output in operator.outputs}
    operators = [_gathered(operator, maker) or operator for operator in program.operators]
    return Program(program.inputs, program.outputs, operators)


def _gathered(last: Operator, maker: dict[Tensor, Operator]) -> Operator | None:
    turn = _before(last, "RESHAPE", "TRANSPOSE", maker)
    first = _before(turn, "TRANSPOSE", "RESHAPE", maker)
    if turn is None or first is None or first.inputs[0] is None or turn.inputs[1] is None:
        return None
    x, parts, out = first.inputs[0], first.outputs[0].shape, last.outputs[0]
    swapped = (0, 2, 1, *range(3, len(parts)))
    if turn.inputs[1].data is None or tuple(turn.inputs[1].data) != swapped or x.data is not None:
        return None
    if x.rank < 3 or x.shape != out.shape or x.shape != (parts[0], parts[1] * parts[2], *parts[3:]):
        return None
    order = np.arange(x.shape[1], dtype=np.int32).reshape(parts[1], parts[2]).T.reshape(-1)
    return Operator("GATHER", (x, Tensor(order.shape, "int32", order)), (out,), {"axis": 1, "batchDims": 0})


def _before(operator: Operator | None, code: str, wanted: str, maker: dict[Tensor, Operator]) -> Operator | None:
    """What makes the first input of an operator of a code, if it is of the wanted code."""
    if operator is None or operator.code != code or operator.inputs[0] is None:
        return None
    found = maker.get(operator.inputs[0])
    return found if found is not None and found.code == wanted else None
