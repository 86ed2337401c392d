"""Writing a scheme onto a graph: QuantizeLinear and DequantizeLinear around what computes in int8.

The result is plain ONNX: an engine with int8 kernels fuses each operator with the pairs around it, any other computes
the same within a rounding. Weights are stored as int8, biases as int32. A value keeps its name where it leaves int8.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.quantization.params import (
    Array,
    Floats,
    QuantParams,
    params_of_constant,
    quantized_bias,
    quantized_weights,
    weight_scales,
)
from flagsplit.flagir.quantization.scheme import Int8Node, Scheme


def rewrite(model: ir.Model, scheme: Scheme, corrections: Mapping[str, Array]) -> None:
    """Quantize a model in place.

    Args:
        model: canonical; `scheme` is of its graph.
        scheme: what becomes int8.
        corrections: what is to be added to the bias of a node with weights, by the node's name.
    """
    _Writer(model.graph, scheme, corrections).write()


def content_of(value: ir.Value | None) -> Array:
    """The content of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


class _Writer:
    def __init__(self, graph: ir.Graph, scheme: Scheme, corrections: Mapping[str, Array]) -> None:
        self._graph = graph
        self._scheme = scheme
        self._corrections = corrections
        self._real: dict[tuple[ir.Value, QuantParams], ir.Value] = {}

    def write(self) -> None:
        for each in self._scheme.nodes:
            self._constants(each)
            if each.weights is not None:
                self._weights(each)
        inside = {each.node for each in self._scheme.nodes}
        for each in self._scheme.nodes:
            for at in each.activations:
                self._activation(each, at, inside)
        for each in self._scheme.nodes:
            for value in each.node.outputs:
                self._store(value)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]

    def _activation(self, each: Int8Node, at: int, inside: set[ir.Node]) -> None:
        """Let an input be read as int8, with the parameters that the node wants."""
        value = each.node.inputs[at]
        assert value is not None
        params = self._scheme.params.get(value.name or "")
        if params is None:
            return  # made in the same go
        if value.producer() not in inside:
            value = self._through(value, params, f"{value.name}.real")
            each.node.replace_input_with(at, value)
        wanted = self._scheme.params.get(each.node.outputs[0].name or "", params)
        if each.moves and wanted != params:
            each.node.replace_input_with(at, self._through(value, wanted, f"{value.name}.again{len(self._real)}"))

    def _store(self, value: ir.Value) -> None:
        """Let what a node makes stand as int8; its readers get what comes back, under its name."""
        name = value.name
        params = self._scheme.params.get(name or "")
        if params is None:
            return
        value.name = f"{name}.raw"
        to, back = self._pair(value, params, name or "")
        value.replace_all_uses_with(back, replace_graph_outputs=True)
        to.replace_input_with(0, value)

    def _through(self, value: ir.Value, params: QuantParams, name: str) -> ir.Value:
        """A value through int8 and back, once for all that want it so."""
        key = (value, params)
        if key not in self._real:
            self._real[key] = self._pair(value, params, name)[1]
        return self._real[key]

    def _pair(self, value: ir.Value, params: QuantParams, name: str) -> tuple[ir.Node, ir.Value]:
        scale = self._initializer(f"quant.scale.{params.scale!r}", np.array(params.scale, np.float32))
        zero = self._initializer(f"quant.zero.{params.zero_point}", np.array(params.zero_point, np.int8))
        to = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.quantize")
        back = ir.node("DequantizeLinear", [to.outputs[0], scale, zero], name=f"{name}.dequantize")
        _name(to.outputs[0], f"{name}.int8", ir.DataType.INT8, value.shape)
        _name(back.outputs[0], name, ir.DataType.FLOAT, value.shape)
        maker = value.producer()
        if maker is not None:
            self._graph.insert_after(maker, [to, back])
        else:
            self._graph.insert_before(self._graph[0], [to, back])
        return to, back.outputs[0]

    def _constants(self, each: Int8Node) -> None:
        for at in each.constants:
            value = each.node.inputs[at]
            assert value is not None
            array = content_of(value)
            params = params_of_constant(array)
            if each.moves:
                params = self._scheme.params.get(each.node.outputs[0].name or "", params)
            name = f"{each.name}.{value.name}.int8"
            numbers = self._initializer(name, params.quantized(array))
            made = self._dequantized(numbers, np.float32(params.scale), np.int8(params.zero_point), None, each.node)
            each.node.replace_input_with(at, made)

    def _weights(self, each: Int8Node) -> None:
        node, kind = each.node, each.weights
        assert kind is not None
        axis = kind.axis
        value, source = node.inputs[1], node.inputs[0]
        assert value is not None
        assert source is not None
        array, bias = content_of(value), self._bias(each)
        params = self._scheme.params.get(source.name or "")
        input_scale = 1.0 if params is None else params.scale
        scales = weight_scales(array, axis, input_scale, bias)
        numbers = self._initializer(f"{each.name}.{value.name}.int8", quantized_weights(array, scales, axis))
        node.replace_input_with(1, self._dequantized(numbers, scales, None, axis, node))
        if each.bias is None or bias is None:
            return
        steps = np.asarray(scales * np.float32(input_scale), np.float32)
        whole = self._initializer(f"{each.name}.bias.int32", quantized_bias(bias, steps))
        holder = each.bias.node
        if len(holder.inputs) <= each.bias.at:
            holder.resize_inputs(each.bias.at + 1)
        holder.replace_input_with(each.bias.at, self._dequantized(whole, steps, None, 0, holder))

    def _bias(self, each: Int8Node) -> Array | None:
        """What is added to a product, corrected; None if that is nothing."""
        if each.bias is None:
            return None
        inputs = each.bias.node.inputs
        value = inputs[each.bias.at] if each.bias.at < len(inputs) else None
        correction = self._corrections.get(each.name)
        if value is None:
            return correction
        array = content_of(value)
        return array if correction is None else np.asarray(array + correction, np.float32)

    def _dequantized(
        self, numbers: ir.Value, scale: Floats | np.float32, zero: np.int8 | None, axis: int | None, reader: ir.Node
    ) -> ir.Value:
        inputs = [numbers, self._initializer(f"{numbers.name}.scale", np.asarray(scale))]
        if zero is not None:
            inputs.append(self._initializer(f"quant.zero.{int(zero)}", np.asarray(zero)))
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"{numbers.name}.dequantize")
        _name(node.outputs[0], f"{numbers.name}.real", ir.DataType.FLOAT, numbers.shape)
        self._graph.insert_before(reader, [node])
        return node.outputs[0]

    def _initializer(self, name: str, array: Array) -> ir.Value:
        found = self._graph.initializers.get(name)
        if found is None:
            tensor = ir.Tensor(array, name=name)
            found = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
            self._graph.register_initializer(found)
        return found


def _name(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), shape
