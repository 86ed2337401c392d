"""Every violation of the canonical form is found, and nothing is found in a canonical model."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit.errors import ModelError
from flagsplit.flagir import check, violations, write_placement

TEXT = """g (bool c, float[2] x) => (float[2] z) <float[2] k = {1.0, 2.0}> {
    a = Add(x, k)
    y = If (c) <then_branch = t () => (float[2] p) { p = Relu(a) }, else_branch = e () => (float[2] q) { q = Neg(a) }>
    z = Exp(y)
}"""


def good() -> ir.Model:
    return canonical(parse(TEXT))


def old_opset(model: ir.Model) -> None:
    model.opset_imports[""] = 17


def old_ir_version(model: ir.Model) -> None:
    model.ir_version = 8


def a_function(model: ir.Model) -> None:
    body = ir.Graph([], [], nodes=[], name="f", opset_imports={"": 23})
    function = ir.Function("my", "f", graph=body, attributes=[])
    model.functions[function.identifier()] = function


def no_outputs(model: ir.Model) -> None:
    model.graph.outputs.clear()


def unnamed_node(model: ir.Model) -> None:
    model.graph[0].name = ""


def repeated_node_name(model: ir.Model) -> None:
    model.graph[0].name = model.graph[-1].name


def repeated_value_name(model: ir.Model) -> None:
    model.graph[0].outputs[0].name = "x"


def vendor_operator(model: ir.Model) -> None:
    model.graph[0].domain = "com.example"


def vendor_operator_in_a_branch(model: ir.Model) -> None:
    model.graph[1].attributes["then_branch"].as_graph()[0].domain = "com.example"


def unknown_operator(model: ir.Model) -> None:
    model.graph[0].op_type = "Adding"


def input_without_a_type(model: ir.Model) -> None:
    model.graph.inputs[1].type = None


def value_without_a_type(model: ir.Model) -> None:
    model.graph[0].outputs[0].type = None


def value_without_a_rank(model: ir.Model) -> None:
    model.graph[0].outputs[0].shape = None


def wrong_order(model: ir.Model) -> None:
    last = model.graph[-1]
    model.graph.remove(last)
    model.graph.insert_before(model.graph[0], last)


def branch_before_what_it_captures(model: ir.Model) -> None:
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)


def unplaced_node(model: ir.Model) -> None:
    write_placement(model, "p", ["phone", "cloud"], {node.name or "": 1 for node in model.graph})
    model.graph[0].device_configurations = ()


def placed_nowhere(model: ir.Model) -> None:
    write_placement(model, "p", ["phone", "cloud"], {node.name or "": 1 for node in model.graph})
    model.graph[0].set_pipeline_stage(model.device_configurations[0], 2)


BREAKS: dict[Callable[[ir.Model], None], str] = {
    old_opset: "expected opset 23, found opset 17",
    old_ir_version: "IR version 11 or newer, found 8",
    a_function: "no functions, found 1",
    no_outputs: "at least one output",
    unnamed_node: "a unique name",
    repeated_node_name: "a unique name",
    repeated_value_name: "a single definition",
    vendor_operator: "a standard operator, found domain 'com.example'",
    vendor_operator_in_a_branch: "a standard operator, found domain 'com.example'",
    unknown_operator: "an operator of opset 23, found Adding",
    input_without_a_type: "a type for 'x'",
    value_without_a_type: "a type for 'a'",
    value_without_a_rank: "a rank for 'a'",
    wrong_order: "to be made before",
    branch_before_what_it_captures: "'a' to be made before",
    unplaced_node: "one of 2 tiers under plan 'p'",
    placed_nowhere: "one of 2 tiers under plan 'p'",
}


def test_a_canonical_model_has_no_violations() -> None:
    model = good()
    assert violations(model) == ()
    write_placement(
        model, "p", ["phone", "cloud"], {node.name or "": index % 2 for index, node in enumerate(model.graph)}
    )
    assert violations(model) == ()
    check(model)


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_each_kind_is_found(break_it: Callable[[ir.Model], None]) -> None:
    model = good()
    break_it(model)
    assert any(BREAKS[break_it] in str(violation) for violation in violations(model))
    with pytest.raises(ModelError, match="not canonical FlagIR"):
        check(model)


def test_all_are_reported() -> None:
    model = good()
    together = (old_opset, old_ir_version, unnamed_node, vendor_operator_in_a_branch, value_without_a_type)
    for break_it in together:
        break_it(model)
    found = " | ".join(map(str, violations(model)))
    assert all(BREAKS[break_it] in found for break_it in together)
    assert len(violations(model)) == len(together)


def test_the_error_lists_twenty_and_counts_the_rest() -> None:
    nodes = " ".join(f"a{index + 1} = Neg(a{index})" for index in range(25))
    model = canonical(parse(f"g (float[2] a0) => (float[2] a25) {{ {nodes} }}"))
    for node in model.graph:
        node.domain = "com.example"
    with pytest.raises(ModelError, match="and 5 more"):
        check(model)
