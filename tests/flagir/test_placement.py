"""Plans on the graph, in the standard's own fields."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import assert_close, canonical, inputs_for, random_model, run

from flagsplit.errors import ModelError
from flagsplit.flagir import load, plans_on, read_placement, save, violations, write_placement

TIERS = ("phone", "edge", "cloud")


def placements(model: ir.Model) -> dict[str, dict[str, int]]:
    nodes = [node.name or "" for node in model.graph]
    return {
        "all on the phone": dict.fromkeys(nodes, 0),
        "thirds": {name: index * 3 // len(nodes) for index, name in enumerate(nodes)},
        "to and fro": {name: index % 3 for index, name in enumerate(nodes)},
    }


def test_several_plans_on_one_graph_survive_the_disk(tmp_path: Path) -> None:
    model = canonical(random_model(5))
    plans = placements(model)
    for name, placement in plans.items():
        write_placement(model, name, TIERS, placement)
    save(model, tmp_path)
    for each in (model, load(tmp_path)):
        assert plans_on(each) == dict.fromkeys(plans, TIERS)
        assert {name: read_placement(each, name) for name in plans} == plans
        assert violations(each) == ()


def test_a_placed_model_is_still_an_onnx_model() -> None:
    proto = random_model(4)
    inputs = inputs_for(proto)
    model = canonical(proto)
    for name, placement in placements(model).items():
        write_placement(model, name, TIERS, placement)
    placed = ir.to_proto(model)
    onnx.checker.check_model(placed, full_check=True)
    assert_close(run(placed, inputs), run(proto, inputs))


@pytest.mark.parametrize("tier", [-1, 3, None])
def test_a_node_without_a_tier_or_with_none_that_exists(tier: int | None) -> None:
    model = canonical(random_model(1))
    placement = placements(model)["thirds"]
    last = list(placement)[-1]
    if tier is None:
        del placement[last]
    else:
        placement[last] = tier
    with pytest.raises(ModelError, match=f"gives node '{last}' tier {tier}, expected 0 to 2"):
        write_placement(model, "p", TIERS, placement)
    assert plans_on(model) == {}


def test_a_plan_that_is_not_there() -> None:
    model = canonical(random_model(1))
    with pytest.raises(ModelError, match=r"\(none\), came 'q'"):
        read_placement(model, "q")
    write_placement(model, "p", TIERS, placements(model)["thirds"])
    with pytest.raises(ModelError, match="one of the plans p, came 'q'"):
        read_placement(model, "q")


def test_a_plan_that_is_there_already() -> None:
    model = canonical(random_model(1))
    write_placement(model, "p", TIERS, placements(model)["thirds"])
    with pytest.raises(ModelError, match="has 'p' already"):
        write_placement(model, "p", TIERS, placements(model)["to and fro"])


def test_a_plan_that_forgets_a_node() -> None:
    model = canonical(random_model(1))
    write_placement(model, "p", TIERS, placements(model)["thirds"])
    model.graph[0].device_configurations = ()
    with pytest.raises(ModelError, match="does not place node"):
        read_placement(model, "p")
