"""Post-training quantization: a canonical model to int8, as QuantizeLinear and DequantizeLinear around its nodes.

`rules` says how int8 engines compute each operator, `observers` which range of an activation is held, `scheme` decides
for every node, `rewrite` writes that onto the graph, `probes` looks inside models that run, and `gated` does it all
with a gate on what it costs.
"""

from flagsplit.flagir.quantization.gated import (
    MIN_COSINE,
    MIN_TASK,
    NodeReport,
    Quantized,
    QuantizeOptions,
    Task,
    cosine,
    quantize,
)
from flagsplit.flagir.quantization.observers import OBSERVERS, ObserverName
from flagsplit.flagir.quantization.probes import Run, Sample

__all__ = [
    "MIN_COSINE",
    "MIN_TASK",
    "OBSERVERS",
    "NodeReport",
    "ObserverName",
    "QuantizeOptions",
    "Quantized",
    "Run",
    "Sample",
    "Task",
    "cosine",
    "quantize",
]
