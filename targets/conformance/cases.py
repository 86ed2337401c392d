"""What a target is asked to compute: one case is a model, its inputs and the answers expected, in memory or on disk.

On disk it is a folder, so that a process of its own can run it. Where cases come from is in `node_tests` and `corpus`;
what becomes of them in `one_case`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from flagsplit.targets.interface import Array

DTYPES = ("float32", "float16", "int32", "int64", "bool")
"""Element types, by NumPy's name, that cases take and give."""

Source = Literal["node", "corpus"]
Status = Literal["passed", "failed", "crashed", "refused", "skipped"]
Constants = Literal["none", "sizes", "all but the first"]

_MODEL, _TENSORS, _FACTS = "model.onnx", "tensors.npz", "case.json"


@dataclass(frozen=True, eq=False)
class Case:
    """One thing to compute.

    Attributes:
        name: unique among all cases.
        source: the ONNX project's node tests, or our corpus of models.
        operators: the different operators of the model as it came, sorted; `domain.Name` outside the standard domain.
        model: the model, or the file that holds it.
        inputs: arrays by name of the graph's input, or of the segment's.
        outputs: the answers, by name.
        nodes: names of the canonical model's nodes that are to be compiled; all if there are none.
        sample: the model's inputs, where `inputs` are those of a segment.
        random: whether the answer is drawn at random, so that only types and shapes can be compared.
        skip: why the case does not apply to any target; "" if it does.
        limit_s: how long it may take.
    """

    name: str
    source: Source
    operators: tuple[str, ...]
    model: onnx.ModelProto | Path
    inputs: Mapping[str, Array] = field(default_factory=dict)
    outputs: Mapping[str, Array] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    sample: Mapping[str, Array] = field(default_factory=dict)
    random: bool = False
    skip: str = ""
    limit_s: float = 60.0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Attributes:
        name: of the case.
        status: "passed"; "failed": a wrong answer, or none although it compiled; "crashed": the process died or hung,
            or something was raised that is no `FlagsplitError`; "refused": the target says that it does not take it;
            "skipped": it does not apply.
        why: the reason, but for what passed.
        constants: which inputs had to be constants of the model for the target to take it.
        disagreement: what `compile` refused of that which `supports` had taken; "" if they agree.
    """

    name: str
    status: Status
    why: str = ""
    constants: Constants = "none"
    disagreement: str = ""


def operators_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """The different operators of a model, of subgraphs and functions too, sorted."""
    found: set[str] = set()
    todo: list[Any] = [model.graph, *model.functions]
    while todo:
        for node in todo.pop().node:
            found.add(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
            for attribute in node.attribute:
                todo.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return tuple(sorted(found))


def write_case(case: Case, folder: Path) -> None:
    """Write a case that applies.

    Args:
        case: it stays as it is; a model that is a file already is referred to, not copied.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = case.model if isinstance(case.model, Path) else folder / _MODEL
    if not isinstance(case.model, Path):
        path.write_bytes(case.model.SerializeToString())
    arrays = {
        f"{kind}{at}": array
        for kind, group in (("input", case.inputs), ("output", case.outputs), ("sample", case.sample))
        for at, array in enumerate(group.values())
    }
    np.savez(folder / _TENSORS, **arrays)  # type: ignore[arg-type]
    facts = {
        "name": case.name,
        "source": case.source,
        "operators": case.operators,
        "model": str(path.resolve()),
        "inputs": list(case.inputs),
        "outputs": list(case.outputs),
        "nodes": case.nodes,
        "sample": list(case.sample),
        "random": case.random,
        "limit_s": case.limit_s,
    }
    (folder / _FACTS).write_text(json.dumps(facts))


def read_case(folder: Path) -> Case:
    """Read what `write_case` wrote."""
    facts = json.loads((folder / _FACTS).read_text())
    with np.load(folder / _TENSORS, allow_pickle=False) as arrays:
        inputs = {name: arrays[f"input{at}"] for at, name in enumerate(facts["inputs"])}
        outputs = {name: arrays[f"output{at}"] for at, name in enumerate(facts["outputs"])}
        sample = {name: arrays[f"sample{at}"] for at, name in enumerate(facts["sample"])}
    return Case(
        name=facts["name"],
        source=facts["source"],
        operators=tuple(facts["operators"]),
        model=Path(facts["model"]),
        inputs=inputs,
        outputs=outputs,
        nodes=tuple(facts["nodes"]),
        sample=sample,
        random=facts["random"],
        limit_s=facts["limit_s"],
    )
