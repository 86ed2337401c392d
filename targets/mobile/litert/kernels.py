"""What LiteRT's CPU kernels take."""

from flagsplit.targets.mobile.litert.program import Operator


def refusal_of(operator: Operator) -> str:
    """Why no kernel takes an operator; "" if one does."""
    return ""
