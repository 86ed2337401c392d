"""Softmax and its kin along one axis."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Site
from flagsplit.targets.cloud.cuda.sdk import torch


def lower(site: Site) -> Kernel:
    """e^x over its sum."""
    axis = site.axis("axis", -1, site.rank(0))
    return lambda x: torch.softmax(x, axis)


def lower_log(site: Site) -> Kernel:
    """The logarithm of softmax."""
    axis = site.axis("axis", -1, site.rank(0))
    return lambda x: torch.log_softmax(x, axis)


def lower_hard(site: Site) -> Kernel:
    """1 where the first largest is, else 0."""
    axis = site.axis("axis", -1, site.rank(0))

    def kernel(x: Any) -> Any:
        return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1)

    return kernel
