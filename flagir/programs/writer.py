"""Writing a graph node by node, with weights taken by name out of a dict."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.canonical import canonicalize
from flagsplit.flagir.opset import IR_VERSION, OPSET

Array = npt.NDArray[np.float32]
Weights = Mapping[str, npt.NDArray[Any]]

REAL, WHOLE = ir.DataType.FLOAT, ir.DataType.INT64


def declared(value: ir.Value, dims: ir.Shape | Sequence[int | str]) -> ir.Value:
    """The same value, with a shape of floats that inference cannot find by itself."""
    value.type, value.shape = ir.TensorType(REAL), ir.Shape(list(dims))
    return value


class GraphWriter:
    """A graph that grows; `model` finishes it."""

    def __init__(self, name: str, weights: Weights) -> None:
        self._name = name
        self._weights = weights
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> ir.Value:
        """An input of the graph."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))
        self._inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any) -> ir.Value:
        """The result of an operator; `name` is that of the value, which the graph's readers see."""
        return self.ops(op_type, *inputs, outputs=1, names=[name], **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        names: Sequence[str | None] = (),
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """The results of an operator that has several."""
        node = ir.node(op_type, list(inputs), attributes, num_outputs=outputs)
        for index, value in enumerate(node.outputs):
            named = names[index] if index < len(names) else None
            value.name = named or f"{op_type.lower()}_{len(self._nodes)}{f'_{index}' if index else ''}"
        node.name = f"{node.outputs[0].name}/{op_type}"
        self._nodes.append(node)
        return node.outputs

    def constant(self, array: npt.ArrayLike, dtype: npt.DTypeLike, name: str | None = None) -> ir.Value:
        """A constant; without a name equal ones are one."""
        data = np.ascontiguousarray(np.asarray(array, dtype))
        data = data.reshape(np.asarray(array).shape)
        key = name or f"const/{data.dtype.name}{list(data.shape)}={data.reshape(-1).tolist()}".replace(" ", "")
        if key not in self._initializers:
            value = ir.Value(name=key, const_value=ir.Tensor(data, name=key))
            value.dtype, value.shape = ir.DataType.from_numpy(data.dtype), ir.Shape(data.shape)
            self._initializers[key] = value
        return self._initializers[key]

    def numbers(self, *numbers: int) -> ir.Value:
        """A constant vector of int64."""
        return self.constant(numbers, np.int64)

    def has(self, name: str) -> bool:
        """Whether there is such a weight."""
        return name in self._weights

    def array(self, name: str, shape: Sequence[int | None]) -> Array:
        """A weight in float32.

        Raises:
            ModelError: it is missing, or of another shape.
        """
        found = self._weights.get(name)
        if found is None:
            raise ModelError(f"expected the weight {name!r} {list(shape)}, it is missing")
        fits = len(found.shape) == len(shape)
        fits = fits and all(want in (None, has) for has, want in zip(found.shape, shape, strict=True))
        if not fits:
            raise ModelError(f"expected the weight {name!r} to be {list(shape)}, came {list(found.shape)}")
        return np.asarray(found, np.float32)

    def weight(self, name: str, shape: Sequence[int | None]) -> ir.Value:
        """A weight as it is, under its own name."""
        return self.constant(self.array(name, shape), np.float32, name)

    def linear(
        self, rows: ir.Value, names: Sequence[str], inputs: int, outputs: Sequence[int], scales: Sequence[float] = ()
    ) -> ir.Value:
        """`rows @ weight.T + bias` of one or several layers in one product, their results side by side.

        Args:
            rows: [.., inputs].
            names: of the layers; each has `.weight` [outputs, inputs] and may have `.bias` [outputs].
            inputs: elements that each takes.
            outputs: elements that each gives.
            scales: what each result is multiplied by; empty is 1.
        """
        pairs = list(zip(names, outputs, scales or [1.0] * len(names), strict=True))
        matrices = [self.array(f"{name}.weight", (size, inputs)).T * np.float32(scale) for name, size, scale in pairs]
        joined = "+".join(names)
        product = self.op("MatMul", rows, self.constant(np.concatenate(matrices, 1), np.float32, f"{joined}.weight"))
        if not any(self.has(f"{name}.bias") for name in names):
            return product
        biases = [
            self.array(f"{name}.bias", (size,)) * np.float32(scale) if self.has(f"{name}.bias") else np.zeros(size)
            for name, size, scale in pairs
        ]
        return self.op("Add", product, self.constant(np.concatenate(biases), np.float32, f"{joined}.bias"))

    def inline(self, model: ir.Model, prefix: str, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """The outputs of a whole model, by name, with `inputs` in place of those of its inputs that something reads.

        Its names get the prefix; its weights are shared, not copied.
        """
        graph = model.graph.clone()
        for value in list(graph.inputs):
            if value.uses() or value.is_graph_output():
                value.replace_all_uses_with(inputs[value.name or ""], replace_graph_outputs=True)
        outputs = dict(zip([value.name or "" for value in model.graph.outputs], graph.outputs, strict=True))
        graph.outputs.clear()
        for value in list(graph.initializers.values()):
            value.const_value = copy(value.const_value)  # renaming a value renames its tensor
            value.name = f"{prefix}.{value.name}"
        nodes = list(graph)
        graph.remove(nodes)
        for node in nodes:
            node.name = f"{prefix}.{node.name}"
            for value in node.outputs:
                value.name = f"{prefix}.{value.name}"
        self._nodes += nodes
        for value in list(graph.initializers.values()):
            del graph.initializers[value.name or ""]
            self._initializers[value.name or ""] = value
        return outputs

    def body(self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], since: int) -> ir.Graph:
        """A subgraph of the nodes written since there were `since`, which leave this graph."""
        nodes = self._nodes[since:]
        del self._nodes[since:]
        return ir.Graph(inputs, outputs, nodes=nodes, name=name)

    @property
    def size(self) -> int:
        """How many nodes there are."""
        return len(self._nodes)

    def model(self, outputs: Sequence[ir.Value]) -> ir.Model:
        """The canonical model that gives `outputs`.

        Raises:
            ModelError: the graph contradicts itself: the weights do not belong together.
        """
        graph = ir.Graph(
            self._inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET},
            name=self._name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="flagsplit")
        canonicalize(model)
        return model
