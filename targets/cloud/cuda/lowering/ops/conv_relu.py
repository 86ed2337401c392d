"""relu(conv(x) + bias), also with a residual added: as cuDNN's one kernel, or as parts that the compiler fuses."""

from functools import cache
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.ops.conv import lower as lower_conv
from flagsplit.targets.cloud.cuda.lowering.ops.windows import windows_of
from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Site
from flagsplit.targets.cloud.cuda.sdk import torch

_SCHEMA = "(Tensor x, Tensor weights, Tensor bias, Tensor? rest, int[] strides, int[] pads, int[] dilations) -> Tensor"


def lower(site: Site) -> Kernel:
    """By the style of the site."""
    window, groups = windows_of(site, site.shape(1)[2:], site.shape(0)[2:]), site.integer("group", 1)
    if site.style.cudnn and window.even and groups == 1:
        at = list(window.strides), list(window.low), list(window.dilations)
        return lambda x, weights, bias, rest=None: _cudnn()(x, weights, bias, rest, *at)
    conv = lower_conv(site)

    def kernel(x: Any, weights: Any, bias: Any, rest: Any = None) -> Any:
        made = conv(x, weights, bias)
        return torch.relu(made if rest is None else made + rest)

    return kernel


@cache
def _cudnn() -> Any:
    """The operator, registered with PyTorch, whose compiler leaves it as it is."""

    def run(x: Any, weights: Any, bias: Any, rest: Any, strides: Any, pads: Any, dilations: Any) -> Any:
        if rest is None:
            return torch.cudnn_convolution_relu(x, weights, bias, strides, pads, dilations, 1)
        return torch.cudnn_convolution_add_relu(x, weights, rest, 1.0, bias, strides, pads, dilations, 1)

    def shaped(x: Any, weights: Any, bias: Any, _rest: Any, strides: Any, pads: Any, dilations: Any) -> Any:
        return torch.nn.functional.conv2d(x, weights, bias, strides, pads, dilations)

    operator = torch.library.custom_op("flagsplit::conv_relu", run, mutates_args=(), schema=_SCHEMA)
    operator.register_fake(shaped)
    return operator
