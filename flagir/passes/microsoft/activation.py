"""The activation that ONNX Runtime fuses into the operator before it."""

import onnx_ir as ir

from flagsplit.flagir.passes.microsoft.site import Site

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Gelu": (),
    "Softplus": (),
    "Softsign": (),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


def activate(site: Site, value: ir.Value, name: str, parameters: tuple[float, ...]) -> ir.Value:
    """Write the activation `name` of `value`.

    Args:
        site: where to write.
        value: what is activated.
        name: the attribute `activation`; empty for none.
        parameters: its parameters, in the order of the operator's attributes; for Clip the bounds.
    """
    if not name:
        return value
    if name == "Clip" and len(parameters) == 2:
        return site.op("Clip", value, *(site.like(bound, value) for bound in parameters))
    wanted = _PARAMETERS.get(name)
    if wanted is None or len(parameters) < len(wanted):
        site.refuse(
            f"the activation {name!r} with {len(parameters)} parameters",
            f"expected Clip with 2 or one of {', '.join(_PARAMETERS)}; save the model with a lower optimization level",
        )
    return site.op(name, value, **dict(zip(wanted, parameters, strict=False)))
