"""A reference interpreter for Core ML's ML Programs: it runs a saved `.mlpackage` on any host.

It reads the protobuf and the weight file as they lie on disk and follows the documentation of the MIL operators. It
shares no code with whatever wrote the package, so its answer says what the file means. What Apple's compiler and
engines make of the file, in speed and in rounding, it does not say.

    package.py ── opens a package, names its functions       program.py ── the protobuf, checked, as plain data
    weight_file.py ── weights/weight.bin                     types.py, constants.py ── types and stored values
    executor.py ── runs a function, checks every result      ops/ ── one file for each family of operators

Precision: values of type fp16 are held as float32 that are exact in fp16. An operator computes in float32 and its
result is rounded to fp16 once; an operator on fp32 computes in float32.
"""

from flagsplit.targets.mobile.mil.package import Function, Package, load_package
from flagsplit.targets.mobile.mil.types import FeatureSpec

__all__ = ["FeatureSpec", "Function", "Package", "load_package"]
