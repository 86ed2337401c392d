"""Lowerings, one operator or tight family a file. `MODULES` lists the files."""

MODULES = (
    "activations",
    "arithmetic",
    "conv",
    "determinant",
    "einsum",
    "fourier",
    "gathering",
    "grid_sample",
    "matmul",
    "normalization",
    "pool",
    "quantization",
    "recurrent",
    "reductions",
    "reshaping",
    "resize",
    "rotary_embedding",
    "slicing",
    "unary",
    "unpooling",
)
