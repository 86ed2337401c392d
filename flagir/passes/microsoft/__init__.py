"""ONNX Runtime's own operators, rewritten in the standard's: one family per file, listed here.

`set_apart` and `rewrite` are the passes. A rewrite gets a `Site`, writes standard nodes of the pinned opset there and
returns what stands for the node's outputs. What a rewrite does not take it refuses by name: nothing is approximated.
"""

from flagsplit.flagir.passes.microsoft import (
    attention,
    embed_layer_normalization,
    fused_conv,
    fused_gemm,
    fused_matmul,
    gelu,
    layer_normalization,
    matmul_integer,
    matmul_n_bits,
    multi_head_attention,
    q_gemm,
    q_linear,
    q_linear_conv,
    q_linear_pool,
    quantize,
    rotary_embedding,
    same,
)
from flagsplit.flagir.passes.microsoft.set_apart import MICROSOFT
from flagsplit.flagir.passes.microsoft.site import Rewrite

REWRITES: dict[tuple[str, str], Rewrite] = {
    (MICROSOFT, "Attention"): attention.attention,
    (MICROSOFT, "BiasGelu"): gelu.bias_gelu,
    (MICROSOFT, "DequantizeLinear"): quantize.dequantize_linear,
    (MICROSOFT, "DynamicQuantizeMatMul"): matmul_integer.dynamic_quantize_matmul,
    (MICROSOFT, "EmbedLayerNormalization"): embed_layer_normalization.embed_layer_normalization,
    (MICROSOFT, "FastGelu"): gelu.fast_gelu,
    (MICROSOFT, "FusedConv"): fused_conv.fused_conv,
    (MICROSOFT, "FusedGemm"): fused_gemm.fused_gemm,
    (MICROSOFT, "FusedMatMul"): fused_matmul.fused_matmul,
    (MICROSOFT, "GatherND"): same.same,
    (MICROSOFT, "Gelu"): gelu.gelu,
    (MICROSOFT, "LayerNormalization"): same.same,
    (MICROSOFT, "MatMulIntegerToFloat"): matmul_integer.matmul_integer_to_float,
    (MICROSOFT, "MatMulNBits"): matmul_n_bits.matmul_n_bits,
    (MICROSOFT, "MultiHeadAttention"): multi_head_attention.multi_head_attention,
    (MICROSOFT, "NhwcMaxPool"): q_linear_pool.max_pool,
    (MICROSOFT, "Pad"): same.pad,
    (MICROSOFT, "QAttention"): attention.q_attention,
    (MICROSOFT, "QGemm"): q_gemm.q_gemm,
    (MICROSOFT, "QLinearAdd"): q_linear.binary,
    (MICROSOFT, "QLinearAveragePool"): q_linear_pool.average_pool,
    (MICROSOFT, "QLinearConcat"): q_linear.concat,
    (MICROSOFT, "QLinearConv"): q_linear_conv.q_linear_conv,
    (MICROSOFT, "QLinearGlobalAveragePool"): q_linear_pool.global_average_pool,
    (MICROSOFT, "QLinearLeakyRelu"): q_linear.unary,
    (MICROSOFT, "QLinearMul"): q_linear.binary,
    (MICROSOFT, "QLinearSigmoid"): q_linear.unary,
    (MICROSOFT, "QLinearSoftmax"): q_linear.softmax,
    (MICROSOFT, "QLinearWhere"): q_linear.where,
    (MICROSOFT, "QuantizeLinear"): quantize.quantize_linear,
    (MICROSOFT, "QuickGelu"): gelu.quick_gelu,
    (MICROSOFT, "RotaryEmbedding"): rotary_embedding.rotary_embedding,
    (MICROSOFT, "SimplifiedLayerNormalization"): layer_normalization.simplified,
    (MICROSOFT, "SkipLayerNormalization"): layer_normalization.skip,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): layer_normalization.skip_simplified,
    (MICROSOFT, "TransposeMatMul"): fused_matmul.fused_matmul,
    (MICROSOFT, "Trilu"): same.same,
    (MICROSOFT, "Unique"): same.unique,
}
"""By domain and operator; what is not in this table is refused by name."""
