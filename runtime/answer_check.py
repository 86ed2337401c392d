"""Whether what a worker sends home as an answer is of the kind that the bundle declares, before any of it is taken in.

Values cannot be checked, only that they are such as the model makes: a worker that errs or lies about them must not
hand an application arrays that it cannot have asked for.
"""

from collections.abc import Mapping, Sequence

from flagsplit.errors import ProtocolError
from flagsplit.runtime.manifest import Tensor
from flagsplit.transport.messages import TensorHeader


def check_answer(declared: Sequence[Tensor], answers: Mapping[str, str], headers: Sequence[TensorHeader]) -> None:
    """Compare announced tensors with the graph outputs that they stand for; other tensors are none of its business.

    Args:
        declared: the graph outputs. An open dimension may have any size: models name them too loosely to compare
            a symbol with that of an input.
        answers: by graph output, the value that is it under the plan that is followed.
        headers: what is announced.

    Raises:
        ProtocolError: a dtype, rank or fixed size differs.
    """
    by_value = {answers.get(tensor.name, tensor.name): tensor for tensor in declared}
    for header in headers:
        tensor = by_value.get(header.name)
        if tensor is None:
            continue
        if tensor.dtype != header.dtype or not _fits(tensor.shape, header.shape):
            expected, came = f"{tensor.dtype} {_text(tensor.shape)}", f"{header.dtype} {_text(header.shape)}"
            raise ProtocolError(f"output {tensor.name!r}: expected {expected}, came {came}")


def _fits(declared: Sequence[int | str], came: Sequence[int]) -> bool:
    if len(declared) != len(came):
        return False
    return all(isinstance(size, str) or size == other for size, other in zip(declared, came, strict=True))


def _text(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
