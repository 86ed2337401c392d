"""The versions that canonical FlagIR is pinned to, and the operator domains it may use."""

OPSET = 23
"""The one opset of a canonical graph: the first with Attention, RMSNormalization and RotaryEmbedding."""

OLDEST_OPSET = 7
"""The oldest opset that can be imported."""

IR_VERSION = 11
"""The ONNX IR version of a canonical graph: the first with multi-device configurations."""

STANDARD_DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Operator domains of the ONNX standard that inference graphs use; everything else is a vendor's."""
