"""Functions of one number, element by element."""

from collections.abc import Callable
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, widened
from flagsplit.targets.cloud.cuda.sdk import torch

_BY_NAME: dict[str, Callable[[Any], Any]] = {
    "Abs": lambda x: torch.abs(x),
    "Ceil": lambda x: torch.ceil(x),
    "Floor": lambda x: torch.floor(x),
    "Identity": lambda x: x,
    "Neg": lambda x: torch.neg(x),
    "Not": lambda x: torch.logical_not(x),
    "Reciprocal": lambda x: torch.reciprocal(x),
    "Relu": lambda x: torch.relu(x),
    "Round": lambda x: torch.round(x),
    "Sigmoid": lambda x: torch.sigmoid(x),
    "Sign": lambda x: torch.sign(x),
    "Sqrt": lambda x: torch.sqrt(x),
    "Tanh": lambda x: torch.tanh(x),
}
_IN_FLOAT32: dict[str, Callable[[Any], Any]] = {
    "Acos": lambda x: torch.acos(x),
    "Acosh": lambda x: torch.acosh(x),
    "Asin": lambda x: torch.asin(x),
    "Asinh": lambda x: torch.asinh(x),
    "Atan": lambda x: torch.atan(x),
    "Atanh": lambda x: torch.atanh(x),
    "Cos": lambda x: torch.cos(x),
    "Cosh": lambda x: torch.cosh(x),
    "Erf": lambda x: torch.erf(x),
    "Exp": lambda x: torch.exp(x),
    "Log": lambda x: torch.log(x),
    "Sin": lambda x: torch.sin(x),
    "Sinh": lambda x: torch.sinh(x),
    "Tan": lambda x: torch.tan(x),
}


def lower(site: Site) -> Kernel:
    """The function of the operator's name."""
    name = site.node.op_type
    if name in _BY_NAME:
        return _BY_NAME[name]
    function = _IN_FLOAT32[name]
    return lambda x: function(widened(x) if x.is_floating_point() else x.double())


def lower_isinf(site: Site) -> Kernel:
    """Infinities of either sign, or of one."""
    up, down = site.integer("detect_positive", 1), site.integer("detect_negative", 1)

    def kernel(x: Any) -> Any:
        both = torch.isinf(x)
        if up and down:
            return both
        return both & ((x > 0) if up else (x < 0)) if up or down else torch.zeros_like(both)

    return kernel


def lower_isnan(_site: Site) -> Kernel:
    """What is no number."""
    return lambda x: torch.isnan(x)


def lower_dropout(site: Site) -> Kernel:
    """The input as it came: nothing is dropped but in training."""
    training = site.const(2)
    if site.given(2) and (training is None or bool(training.reshape(-1)[0])):
        raise Refused("it drops out at random in training mode only, which is not for inference")
    if len(site.node.outputs) > 1 and site.node.outputs[1].name:
        return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x, *_: x
