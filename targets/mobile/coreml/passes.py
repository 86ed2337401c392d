"""coremltools' passes over a program, in the precision that was chosen, and which operation came from which node."""

from collections.abc import Callable
from typing import Any

import numpy as np

from flagsplit.targets.mobile.coreml.sdk import quiet

_FP16_CAST = "common::add_fp16_cast"
_LEFT_OUT = frozenset(("common::add_int16_cast", "common::fuse_elementwise_to_batchnorm"))
"""Passing 32-bit indices as 16-bit ones saves nothing here, and loses those that do not fit. And a product and a sum
made one batch normalization of variance 1 have its epsilon in their scale: 5e-6 off each, 2.5e-4 over Inception v2;
after a convolution other passes fold them."""


def run_passes(program: Any, in_fp16: Callable[[Any], bool] | None, *, fp16_io: bool) -> None:
    """Optimize a program and make it ready for writing.

    Args:
        program: from the lowering, changed in place.
        in_fp16: says of an operation whether it is computed in fp16; None keeps all in fp32.
        fp16_io: whether float inputs and outputs are passed as fp16.
    """
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    steps = [*PassPipeline.get_pipeline("default").passes, *PassPipeline.get_pipeline("backend_mlprogram").passes]
    with quiet(), np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if fp16_io:
            for function in program.functions.values():
                FP16ComputePrecision().transform_function_signatures(function)
        for step in steps:
            if step == _FP16_CAST:
                if in_fp16 is not None:
                    FP16ComputePrecision(op_selector=in_fp16)(program)
            elif step not in _LEFT_OUT:
                PASS_REGISTRY[step](program)


def forget_names() -> None:
    """Let the next program be named as if it was the first, so that equal models give equal bytes."""
    from coremltools.converters.mil import converter

    converter._reset_conversion_state()
