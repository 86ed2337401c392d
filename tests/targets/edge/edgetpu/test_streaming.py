"""Weights that the SRAM has no place for count as bytes moved; a graph that fits moves nothing."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from flagsplit import flagir
from flagsplit.targets.edge.edgetpu.facts import LINK_BYTES_PER_S, ON_CHIP_BYTES_PER_S, SRAM_BYTES
from flagsplit.targets.edge.edgetpu.target import EdgetpuTarget

_TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[1,{rows}] x) => (float[1,{columns}] y) <float s = {{0.02}}, int8 z = {{0}}> {{
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) f = DequantizeLinear(w, s) m = MatMul(d, f) r = Relu(m)
    p = QuantizeLinear(r, s, z) y = DequantizeLinear(p, s, z)
}}"""


def _dense(rows: int, columns: int) -> ir.Model:
    proto = onnx.parser.parse_model(_TEXT.format(rows=rows, columns=columns))
    weights = np.ones((rows, columns), np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model = ir.serde.deserialize_model(proto)
    flagir.canonicalize(model)
    return model


def _product(model: ir.Model) -> ir.Node:
    (node,) = (each for each in model.graph if each.op_type == "MatMul")
    return node


def test_what_fits_moves_nothing() -> None:
    verdict = EdgetpuTarget().supports(_product(_dense(1024, 64)))
    assert verdict.supported
    assert not verdict.extra_bytes
    assert verdict.reason == ""


def test_what_does_not_streams_and_counts_once_at_the_end_of_the_block() -> None:
    node = _product(_dense(4096, 4096))
    verdict = EdgetpuTarget().supports(node)
    assert verdict.supported
    assert "8.40 MiB of its weights stream" in verdict.reason
    seconds = (4096 * 4096 - SRAM_BYTES) / LINK_BYTES_PER_S
    assert set(verdict.extra_bytes) == {"m", "r", "p"}
    for moved in verdict.extra_bytes.values():
        assert moved / ON_CHIP_BYTES_PER_S == pytest.approx(seconds)
