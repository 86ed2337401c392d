"""Model files that are damaged or hostile, half-way valid, each from its number: for `flagir_fuzz.py`.

They are made from small models by mutations of the bytes of the protobuf, and of its structure: names, operators,
attributes, sizes, external data, nesting, functions.
"""

import random
from collections.abc import Callable

import onnx
from google.protobuf.message import DecodeError

BYTES_CASES, STRUCTURE_CASES = 5_000, 2_000
HEAD = '<ir_version: 9, opset_import: ["" : 17{}]>'
TEXTS = (
    """{} g (float[N, 3, 8, 8] x) => (float[N, 4] y) <float[4, 3, 3, 3] w, float[4] b, float[4, 4] v> {
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
        m = MatMul (f, v) y = Softmax (m) }""",
    """{} g (float[N, 4] x, bool c) => (float[N, 4] y) {
        y = If (c) <then_branch = t () => (float[N, 4] a) { a = Relu (x) },
                    else_branch = e () => (float[N, 4] b) { s = Neg (x) b = Tanh (s) }> }""",
    """{} g (float[4] x) => (float[4] y, float[3, 4] z) <int64 n = {3}, bool t = {1}> {
        y, z = Loop (n, t, x) <body = b (int64 i, bool k, float[4] s) => (bool k2, float[4] s2, float[4] o) {
            k2 = Identity (k) s2 = Add (s, x) o = Mul (s, s) }> }""",
    """{} g (float[2, 6] x) => (float[2, 6] y) <int64[2] s = {3, 4}, int64[2] w = {4, 2}> {
        r = Reshape (x, s) q = Shape (x) a, b = Split <axis = 1> (x, w) c = Concat <axis = 1> (b, a)
        z = Reshape (r, q) y = Add (c, z) }""",
    """{} g (float[5, 2, 3] x) => (float[5, 1, 2, 4] y) <float[1, 16, 3] w, float[1, 16, 4] r> {
        y = LSTM <hidden_size = 4> (x, w, r) }""",
    """{} g (float[2, 3] x) => (float[2, 3] y) { s = SequenceConstruct (x, x) i = Constant <value_int = 1> ()
        y = SequenceAt (s, i) }""",
    """{} g (float[2, 3] x) => (float[2, 3] y) <float s = {0.1}, uint8 z = {0}> {
        q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }""",
    """{} g (float[3, 4] s, float[5, 4] x) => (float[3, 4] y, float[5, 4] z) {
        t = ReduceSum <keepdims = 0> (x) y = Add (s, t) u = ConstantOfShape (h) z = Expand (u, h)
        h = Shape (x) }""",
)
FUNCTION = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    g (float[2] x) => (float[2] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }"""
"""What is not in topological order in the last text is meant: it must be sorted."""

OPERATORS = tuple(
    "Add Conv MatMul Gemm Reshape Transpose Concat Slice Gather Expand Tile Pad Resize Range ConstantOfShape OneHot If "
    "Loop Scan LSTM Softmax ReduceSum TopK NonZero Einsum Attention Split Unsqueeze Squeeze Cast Identity Constant "
    "SequenceAt Optional BatchNormalization MaxPool ConvTranspose GridSample DFT STFT StringNormalizer Nonsense".split()
)
ATTRIBUTES = ("axis", "kernel_shape", "group", "to", "perm", "value", "hidden_size", "pads", "body", "equation")
SIZES = (-1, 0, 1, 2, 3, 7, 255, 1 << 16, 1 << 31, 1 << 33, 1 << 40, (1 << 63) - 1, -(1 << 63))
LOCATIONS = ("../secret", "/etc/passwd", "", "a/../../secret", "no\0name", "link/secret", ".", "weights", "x" * 5000)
NAMES = ("", "x", "y", "nobody", "\u202e", "a" * 100_000, "../x", "0", "\n")


def base_models() -> list[onnx.ModelProto]:
    """The models that are mutated, of which one has its weights outside."""
    models = [onnx.parser.parse_model(text.replace("{}", HEAD.format(""), 1)) for text in TEXTS]
    models.append(onnx.parser.parse_model(FUNCTION))
    for model in models:
        _give_weights(model)
    outside = onnx.ModelProto()
    outside.CopyFrom(models[0])
    for tensor in outside.graph.initializer:
        _move_outside(tensor, "weights", 0)
    return [*models, outside]


def _give_weights(model: onnx.ModelProto) -> None:
    """In the text form an initializer without data reads as the type of an intermediate value."""
    known = {info.name for info in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    made = {name for node in model.graph.node for name in node.output}
    for info in list(model.graph.value_info):
        if info.name not in known | made:
            dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            tensor = onnx.TensorProto(name=info.name, data_type=onnx.TensorProto.FLOAT, dims=dims)
            tensor.raw_data = bytes(4 * _elements(tensor))
            model.graph.initializer.append(tensor)
            model.graph.value_info.remove(info)


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def _move_outside(tensor: onnx.TensorProto, location: str, offset: int) -> None:
    length = 4 * max(0, min(_elements(tensor), 1 << 62))
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


# Mutations of the bytes.


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes of the bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(found) + 1)
        size = rng.choice((1, 1, 1, 2, 4, 16, 64, 256))
        kind = rng.randrange(8)
        if kind == 0:
            for place in range(at, min(at + size, len(found))):
                found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[at : at + size] = b""
        elif kind == 2:
            found[at:at] = rng.randbytes(size)
        elif kind == 3:
            found[at:at] = found[at : at + size] * rng.choice((1, 2, 100))
        elif kind == 4:
            found[at : at + 1] = rng.choice((b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x07", b"\x80" * 9, b"\x00"))
        elif kind == 5:
            found = found[:at] or found
        elif kind == 6:
            other = rng.randrange(len(found) + 1)
            found[at : at + size] = found[other : other + size]
        elif len(found) > at:
            found[at] = rng.randrange(256)
        found = found or bytearray(b"\0")
    return bytes(found)


# Mutations of the structure. Each changes a model in place.


def _graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    found, todo = [], [model.graph]
    while todo:
        graph = todo.pop()
        found.append(graph)
        todo.extend(a.g for node in graph.node for a in node.attribute if a.HasField("g"))
    return found


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    graph = rng.choice([graph for graph in _graphs(model) if graph.node] or [model.graph])
    return rng.choice(graph.node) if graph.node else graph.node.add()


def _any_name(model: onnx.ModelProto, rng: random.Random) -> str:
    names = [name for graph in _graphs(model) for node in graph.node for name in (*node.input, *node.output)]
    return rng.choice([*names, *NAMES])


def rename_input(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = _any_name(model, rng)


def rename_output(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = _any_name(model, rng)


def drop_or_repeat(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(_graphs(model))
    field = rng.choice((graph.node, graph.input, graph.output, graph.initializer, graph.value_info))
    if field and rng.random() < 0.5:
        del field[rng.randrange(len(field))]
    elif field:
        field.add().CopyFrom(rng.choice(field))


def change_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(OPERATORS)
    if rng.random() < 0.1:
        node.domain = rng.choice(("ai.onnx.ml", "com.microsoft", "flagir", "local", "\0"))


def change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    name = rng.choice(ATTRIBUTES)
    attribute = rng.choice(node.attribute) if node.attribute and rng.random() < 0.7 else node.attribute.add(name=name)
    kind = rng.randrange(6)
    if kind == 0:
        attribute.type = rng.randrange(16)
    elif kind == 1:
        attribute.i, attribute.type = rng.choice(SIZES), onnx.AttributeProto.INT
    elif kind == 2:
        attribute.ints[:] = [rng.choice(SIZES) for _ in range(rng.choice((0, 1, 2, 4, 1000)))]
        attribute.type = onnx.AttributeProto.INTS
    elif kind == 3:
        attribute.s, attribute.type = rng.choice(NAMES).encode(), onnx.AttributeProto.STRING
    elif kind == 4:
        attribute.ref_attr_name = rng.choice(NAMES)
    else:
        inner = onnx.GraphProto()
        inner.CopyFrom(rng.choice(_graphs(model)))  # a message cannot be copied into a part of itself
        attribute.g.CopyFrom(inner)
        attribute.type = onnx.AttributeProto.GRAPH


def change_tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    tensors = list(model.graph.initializer) or [model.graph.initializer.add(name="x")]
    tensor = rng.choice(tensors)
    kind = rng.randrange(5)
    if kind == 0:
        tensor.dims[:] = [rng.choice(SIZES) for _ in range(rng.randrange(5))]
    elif kind == 1:
        tensor.data_type = rng.randrange(32)
    elif kind == 2:
        tensor.raw_data = rng.randbytes(rng.choice((0, 1, 7, 64)))
    elif kind == 3:
        tensor.int64_data[:] = [rng.choice(SIZES) for _ in range(rng.randrange(9))]
    else:
        tensor.name = _any_name(model, rng)


def change_external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(list(model.graph.initializer) or [model.graph.initializer.add(name="x", data_type=1, dims=[4])])
    _move_outside(tensor, rng.choice(LOCATIONS), rng.choice((0, 0, 1, -1, 1 << 40, -(1 << 40))))
    if rng.random() < 0.3:
        tensor.external_data[rng.randrange(3)].value = rng.choice(("-1", "nan", "1e9", "", "9" * 30, "0x10"))


def change_type(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(_graphs(model))
    infos = [*graph.input, *graph.output, *graph.value_info] or [graph.value_info.add(name="x")]
    info = rng.choice(infos)
    kind = info.type.tensor_type
    choice = rng.randrange(5)
    if choice == 0:
        kind.elem_type = rng.randrange(32)
    elif choice == 1:
        kind.shape.dim.add(dim_value=rng.choice(SIZES))
    elif choice == 2:
        kind.shape.dim.add(dim_param=rng.choice(NAMES))
    elif choice == 3:
        kind.ClearField("shape")
    else:
        info.type.Clear()


def change_versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.8:
        model.opset_import[0].version = rng.choice((-1, 0, 1, 6, 7, 9, 11, 13, 18, 23, 24, 28, 29, 1000, 1 << 40))
    else:
        model.ir_version = rng.choice((-1, 0, 1, 3, 8, 11, 14, 100, 1 << 40))
    if rng.random() < 0.2:
        model.metadata_props.add(key="flagir.version", value=rng.choice(("1.0", "1.9", "2.0", "x", "", "9" * 99)))


def nest(model: onnx.ModelProto, rng: random.Random) -> None:
    """Branches in branches, up to and beyond what protobuf reads."""
    inner = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["d0"])], "d", [], [_info("d0")])
    for depth in range(1, rng.choice((3, 10, 20, 24))):
        branches = {"then_branch": inner, "else_branch": inner} if depth < 8 else {"then_branch": inner}
        node = onnx.helper.make_node("If", ["condition"], [f"d{depth}"], **branches)
        inner = onnx.helper.make_graph([node], "d", [], [_info(f"d{depth}")])
    model.graph.node.extend(inner.node)
    model.graph.input.append(onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    model.graph.output.append(inner.output[0])


def _info(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"])


def call_in_circles(model: onnx.ModelProto, rng: random.Random) -> None:
    """Functions that call each other, themselves, or twice each the next one."""
    count = rng.choice((1, 2, 25))
    for at in range(count):
        following = f"f{(at + 1) % count if rng.random() < 0.5 else at + 1}"
        nodes = [onnx.helper.make_node(following, ["a"], [name], domain="local") for name in ("b", "c")]
        imports = [onnx.helper.make_opsetid("local", 1), onnx.helper.make_opsetid("", 17)]
        model.functions.append(onnx.helper.make_function("local", f"f{at}", ["a"], ["b"], nodes, imports))
    model.graph.node.append(onnx.helper.make_node("f0", ["x"], ["called"], domain="local"))
    model.graph.output.append(_info("called"))
    if all(each.domain != "local" for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("local", 1))


def blow_up(model: onnx.ModelProto, rng: random.Random) -> None:
    """Constants from which little text makes large tensors."""
    size = rng.choice((1 << 20, 1 << 28, 1 << 33, 1 << 40))
    constants = {"big": [size], "shape": [1 << 15, 1 << 15, size >> 20], "one": [1], "many": [size] * 3}
    for name, data in constants.items():
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(data)], data))
    op, inputs = rng.choice(
        (
            ("ConstantOfShape", ["shape"]),
            ("Expand", ["one", "shape"]),
            ("Tile", ["many", "many"]),
            ("Tile", ["one", "big"]),
            ("Pad", ["one", "many"]),
            ("OneHot", ["many", "big", "many"]),
            ("RandomNormal", []),
        )
    )
    attributes = {"shape": [size, size]} if op == "RandomNormal" else {}
    node = onnx.helper.make_node(op, inputs, ["blown"], **attributes)
    model.graph.node.append(node)
    if rng.random() < 0.5:
        scalars = [onnx.helper.make_tensor(n, onnx.TensorProto.INT64, [], [v]) for n, v in (("s0", 0), ("s1", size))]
        model.graph.initializer.extend([*scalars, onnx.helper.make_tensor("s2", onnx.TensorProto.INT64, [], [1])])
        model.graph.node.append(onnx.helper.make_node("Range", ["s0", "s1", "s2"], ["ranged"]))
    model.graph.output.append(onnx.ValueInfoProto(name="blown"))


def stack_up(model: onnx.ModelProto, rng: random.Random) -> None:
    """Many of something small: nodes, dimensions, attributes, plans, entries."""
    count = rng.choice((1_000, 3_000))
    kind = rng.randrange(5)
    if kind == 0:
        for at in range(count):
            name = "x" if at == 0 else f"s{at - 1}"
            model.graph.node.append(onnx.helper.make_node("Relu", [name], [f"s{at}"]))
    elif kind == 1:
        model.graph.input[0].type.tensor_type.shape.dim.extend(
            onnx.TensorShapeProto.Dimension(dim_value=2) for _ in range(count)
        )
    elif kind == 2:
        _node(model, rng).attribute.extend(onnx.AttributeProto(name=f"a{at}", type=2, i=at) for at in range(count))
    elif kind == 3:
        for at in range(count):
            model.configuration.add(name=f"p{at % 7}", num_devices=-1, device=["phone"])
        _node(model, rng).device_configurations.add(configuration_id="p1", pipeline_stage=-5)
    else:
        _node(model, rng).input.extend("x" for _ in range(count))


STRUCTURE: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    rename_input,
    rename_output,
    drop_or_repeat,
    change_operator,
    change_attribute,
    change_tensor,
    change_external,
    change_type,
    change_versions,
)
HEAVY: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (nest, call_in_circles, blow_up, stack_up)


def mutate_structure(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """One to four changes of the structure; in every sixth model, one that is hostile."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    chosen = [rng.choice(STRUCTURE) for _ in range(rng.randint(1, 4))]
    if rng.random() < 1 / 6:
        chosen.insert(0, rng.choice(HEAVY))
    for mutate in chosen:
        try:
            mutate(found, rng)
        except (ValueError, TypeError, DecodeError):  # protobuf refuses to hold what the mutation wanted
            continue
    return found


def nested_bytes(data: bytes, depth: int) -> bytes:
    """A model with a branch in a branch and so on, deeper than protobuf itself would write."""
    graph = b""
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        graph = _field(1, _field(4, b"If") + _field(1, b"x") + _field(2, b"y") + _field(5, attribute))
    return data + _field(7, graph)


def _field(number: int, body: bytes) -> bytes:
    size, head = len(body), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + body


def case(number: int, models: list[onnx.ModelProto]) -> bytes:
    """The file of a case; the first `BYTES_CASES` are mutations of the bytes."""
    rng = random.Random(number)
    model = rng.choice(models)
    if number < BYTES_CASES:
        return mutate_bytes(model.SerializeToString(), rng)
    if rng.random() < 1 / 100:
        return nested_bytes(model.SerializeToString(), rng.choice((10, 30, 100, 10_000)))
    return mutate_structure(model, rng).SerializeToString()
