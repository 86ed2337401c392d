"""Comparisons, logic, and choosing by it."""

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Site
from flagsplit.targets.cloud.cuda.sdk import torch

_FUNCTIONS = {
    "And": "logical_and",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "Or": "logical_or",
    "Xor": "logical_xor",
}


def lower(site: Site) -> Kernel:
    """The comparison of the operator's name."""
    name = _FUNCTIONS[site.node.op_type]
    return lambda a, b: getattr(torch, name)(a, b)


def lower_where(_site: Site) -> Kernel:
    """a where it holds, else b."""
    return lambda condition, a, b: torch.where(condition, a, b)
