"""The shipped support table is what the compiler says today, on a sample of its cells."""

import json
from importlib import resources
from typing import Any

import pytest

from flagsplit.targets.mobile.qnn.probe import Prober, dumps, table
from flagsplit.targets.mobile.qnn.probe_models import probes
from flagsplit.targets.mobile.qnn.process import installed_version
from flagsplit.targets.mobile.qnn.socs import socs


def shipped() -> dict[str, Any]:
    text = resources.files("flagsplit.targets.mobile.qnn").joinpath("support.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.slow
def test_cells_are_what_the_compiler_says() -> None:
    found = shipped()
    assert found["version"] == installed_version(), "make the table again: see probe.py"
    by_name = {probe.operator: probe for probe in probes()}
    cells = [("Relu", "float32", 3), ("Relu", "int32", 2), ("Celu", "float32", 2), ("Erf", "float32", 4)]
    cells += [("BatchNormalization", "float32", 5), ("TopK", "int32", 2), ("Where", "int64", 4)]
    for soc in ("SM8550", "SM8750"):
        (rows,) = [group["operators"] for group in found["tables"] if soc in group["socs"]]
        with Prober(socs()[soc]) as prober:
            for operator, dtype, rank in cells:
                cell = rows[operator]["types"][dtype]
                (stated,) = [""] if rank in cell["yes"] else [why for why, ranks in cell["no"].items() if rank in ranks]
                assert prober.probe(by_name[operator], rank, dtype) == stated, (soc, operator, dtype, rank)
            edge = prober.probe(by_name["Pad"], 4, "float32", {"mode": "edge"})
            assert [{"mode": "edge"}, edge] in rows["Pad"]["variants"]
            assert edge.startswith("gives wrong numbers")


def test_the_shipped_table_is_as_the_program_writes_it() -> None:
    found = shipped()
    rows = {soc: group["operators"] for group in found["tables"] for soc in group["socs"]}
    assert set(rows) == set(socs())
    assert set(rows["SM8650"]) == {probe.operator for probe in probes()}
    assert json.loads(dumps(table(rows, found["version"]))) == found
    for operator, row in rows["SM8650"].items():
        for cell in row["types"].values():
            assert all(cell.get("no", {"none": 0})), f"{operator} is refused without a reason"
