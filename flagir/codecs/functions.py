"""The bodies of the codec functions, in ONNX text and standard operators of the pinned opset.

`EncodeU8` and `EncodeU4` see their input as a matrix: the axes before `axis` make its rows, and each row has a range of
its own, widened to hold 0. A row's step is `(high - low) / levels`, its zero point the code of 0, so that 0 is exact
and every number within the range comes back within half a step. NaN becomes 0. The ends of a range are at most 2^127
in magnitude, and what lies beyond them, infinities included, becomes the end.

Numbers that are not finite are looked for with one sum over all of the input, at a tenth of the cost of cleaning every
input; the branch that cleans differs in nothing else. `CountNotFinite` is no codec: it looks in the same way and
counts.
"""

import functools

import onnx
import onnx_ir as ir

from flagsplit.flagir.opset import OPSET

DOMAIN = "flagir"
DOMAIN_VERSION = 1
COUNT = "CountNotFinite"

_LIMIT = float(2.0**127)
_SMALLEST_STEP = float(2.0**-126)
"""The smallest normal float: rows of zeros, and ranges too small to divide, get it as their step."""

_QUANTIZE = """
    low{n} = ReduceMin <keepdims = 0> ({x}, one_axis)
    high{n} = ReduceMax <keepdims = 0> ({x}, one_axis)
    bottom{n} = Clip (low{n}, least, zero)
    top{n} = Clip (high{n}, zero, most)
    above{n} = Div (top{n}, levels)
    below{n} = Div (bottom{n}, levels)
    step{n} = Sub (above{n}, below{n})
    scale{n} = Max (step{n}, smallest)
    offset{n} = Div (below{n}, scale{n})
    levels_below{n} = Mul (offset{n}, levels)
    negated{n} = Neg (levels_below{n})
    rounded{n} = Round (negated{n})
    zero_point{n} = Cast <to = 2> (rounded{n})
    codes{n} = QuantizeLinear <axis = 0> ({x}, scale{n}, zero_point{n})
"""
_CLEAN = """
    bad = IsNaN (rows)
    clean = Where (bad, zero, rows)
"""

_ROWS = f"""
    rows = Flatten <axis: int = @axis> (x)
    one_axis = Constant <value = int64[1] {{1}}> ()
    zero = Constant <value = float {{0.0}}> ()
    least = Constant <value = float {{{-_LIMIT!r}}}> ()
    most = Constant <value = float {{{_LIMIT!r}}}> ()
    smallest = Constant <value = float {{{_SMALLEST_STEP!r}}}> ()
    levels = Constant <value = float {{LEVELS}}> ()
    total = ReduceSum <keepdims = 0> (rows)
    difference = Sub (total, total)
    broken = IsNaN (difference)
    codes, row_scale, row_zero_point = If (broken) <
        then_branch = cleaned () => (uint8[?, ?] codes1, float[?] scale1, uint8[?] zero_point1) {{
            {_CLEAN}{_QUANTIZE.format(n=1, x="clean")} }},
        else_branch = as_it_is () => (uint8[?, ?] codes2, float[?] scale2, uint8[?] zero_point2) {{
            {_QUANTIZE.format(n=2, x="rows")} }}
    >
    shape_of_rows = Shape <start = 0, end: int = @axis> (x)
    scale = Reshape <allowzero = 1> (row_scale, shape_of_rows)
    zero_point = Reshape <allowzero = 1> (row_zero_point, shape_of_rows)
    shape_of_x = Shape (x)
"""

_DEQUANTIZE = """
    count = Shape <start = 0, end = 1> (rows)
    row_scale = Reshape <allowzero = 1> (scale, count)
    row_zero_point = Reshape <allowzero = 1> (zero_point, count)
    numbers = DequantizeLinear <axis = 0> (rows, row_scale, row_zero_point)
"""

_TEXTS = {
    "EncodeFp16": "EncodeFp16 (x) => (payload) { payload = Cast <to = 10> (x) }",
    "DecodeFp16": "DecodeFp16 (payload) => (y) { y = Cast <to = 1> (payload) }",
    "EncodeU8": f"""EncodeU8 <axis> (x) => (payload, scale, zero_point) {{ {_ROWS.replace("LEVELS", "255.0")}
    payload = Reshape <allowzero = 1> (codes, shape_of_x)
}}""",
    "DecodeU8": f"""DecodeU8 <axis> (payload, scale, zero_point) => (y) {{
    rows = Flatten <axis: int = @axis> (payload)
    {_DEQUANTIZE}
    shape = Shape (payload)
    y = Reshape <allowzero = 1> (numbers, shape)
}}""",
    # Byte i holds code i and, in its upper half, code i of the last ceil(n/2): nothing is strided and nothing padded.
    "EncodeU4": f"""EncodeU4 <axis> (x) => (payload, scale, zero_point, shape) {{ {_ROWS.replace("LEVELS", "15.0")}
    shape = Identity (shape_of_x)
    first = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    two = Constant <value = int64[1] {{2}}> ()
    four = Constant <value = uint8 {{4}}> ()
    lowest = Constant <value = uint8 {{0}}> ()
    highest = Constant <value = uint8 {{15}}> ()
    held = Clip (codes, lowest, highest)
    size = Size (x)
    n = Reshape (size, one)
    more = Add (n, one)
    half = Div (more, two)
    start = Sub (n, half)
    line = Reshape <allowzero = 1> (held, n)
    front = Slice (line, first, half)
    back = Slice (line, start, n)
    raised = BitShift <direction = "LEFT"> (back, four)
    payload = BitwiseOr (front, raised)
}}""",
    "DecodeU4": f"""DecodeU4 <axis> (payload, scale, zero_point, shape) => (y) {{
    one = Constant <value = int64[1] {{1}}> ()
    four = Constant <value = uint8 {{4}}> ()
    mask = Constant <value = uint8 {{15}}> ()
    n = ReduceProd <keepdims = 1> (shape)
    half = Shape (payload)
    twice = Add (half, half)
    repeated = Sub (twice, n)
    front = BitwiseAnd (payload, mask)
    lowered = BitShift <direction = "RIGHT"> (payload, four)
    back = Slice (lowered, repeated, half)
    line = Concat <axis = 0> (front, back)
    codes = Reshape <allowzero = 1> (line, shape)
    rows = Flatten <axis: int = @axis> (codes)
    {_DEQUANTIZE}
    y = Reshape <allowzero = 1> (numbers, shape)
}}""",
    COUNT: f"""{COUNT} (x) => (count) {{
    total = ReduceSum <keepdims = 0> (x)
    difference = Sub (total, total)
    broken = IsNaN (difference)
    count = If (broken) <
        then_branch = counted () => (int64 found) {{
            zeros = Sub (x, x)
            odd = IsNaN (zeros)
            ones = Cast <to = 7> (odd)
            found = ReduceSum <keepdims = 0> (ones)
        }},
        else_branch = as_it_is () => (int64 none) {{ none = Constant <value = int64 {{0}}> () }}
    >
}}""",
}


def function(name: str) -> ir.Function:
    """One of the functions, which the caller may put into a model."""
    return _template(name).clone()


@functools.cache
def _template(name: str) -> ir.Function:
    text = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {_TEXTS[name]}'
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))
