"""Conversions between element types."""

from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Site, as_dtype


def lower(site: Site) -> Kernel:
    """To the type of the output; a number that is not 0 is true."""
    site.dtype(0)
    to = site.out_dtype()

    def kernel(x: Any, *_: Any) -> Any:
        return x.to(as_dtype(to))

    return kernel
