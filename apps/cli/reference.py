"""`flagsplit reference`: a plan as one ONNX model that any tool opens and ONNX Runtime runs."""

from pathlib import Path
from typing import Annotated, Any

import onnx_ir as ir
import typer

from flagsplit import flagir
from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.output import console, print_json, size_text
from flagsplit.apps.outputs import check_output
from flagsplit.apps.plan_graphs import cuts_of
from flagsplit.errors import ConfigError
from flagsplit.flagir.codecs import BoundaryCut
from flagsplit.flagir.reference import DATA_SUFFIX, reference, write_reference
from flagsplit.runtime.bundle import GRAPH_NAME, open_bundle

_ZIP = b"PK"


def command(
    source: Annotated[Path, typer.Argument(help="A bundle, or a FlagIR model that carries plans.")],
    plan: Annotated[str, typer.Option(help="Name of the plan; see flagsplit inspect.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a plan as one ONNX model, placement and codecs included: the reference that every split run must match."""
    check_output(output)
    _check_not_over(source, output)
    model, cuts = _read(source, plan)
    made = reference(model, plan, cuts)
    files = write_reference(made, output)
    data = _data(made, plan, cuts, files)
    if as_json:
        print_json(data)
        return
    sizes = ", ".join(f"{file} ({size_text(file.stat().st_size)})" for file in files)
    console().print(f"plan {plan}: {data['nodes']} nodes on {', '.join(data['tiers'])}, written to {sizes}")
    for cut in data["cuts"]:
        console().print(f"  {cut['value']}: {cut['from']} to {cut['to']}, codec {cut['codec']}")


def _check_not_over(source: Path, output: Path) -> None:
    """Both files that may be written must not be the source: its weights are read while they are written."""
    for path in (output, output.with_name(output.name + DATA_SUFFIX)):
        if source.exists() and path.exists() and path.samefile(source):
            raise ConfigError(f"{path} is the source itself; give the reference another name with -o")


def _read(source: Path, plan: str) -> tuple[ir.Model, list[BoundaryCut]]:
    """The graph with its plans, and what crosses under the plan."""
    if not _is_archive(source):
        model = flagir.read_model(source)
        flagir.read_placement(model, plan)
        flagir.check(model)
        return model, []
    bundle = open_bundle(source)
    return flagir.read_model(bundle.folder / GRAPH_NAME), cuts_of(bundle.plan(plan))


def _is_archive(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _data(model: ir.Model, plan: str, cuts: list[BoundaryCut], files: tuple[Path, ...]) -> dict[str, Any]:
    tiers = flagir.plans_on(model)[plan]
    placement = flagir.read_placement(model, plan)
    return {
        "reference": str(files[0]),
        "files": [{"path": str(file), "size_bytes": file.stat().st_size} for file in files],
        "plan": plan,
        "tiers": [tier for index, tier in enumerate(tiers) if index in placement.values()],
        "nodes": len(placement),
        "cuts": [
            {"value": cut.value, "from": tiers[cut.from_tier], "to": tiers[cut.to_tier], "codec": cut.codec}
            for cut in cuts
        ],
        "functions": [name for _, name, _ in model.functions],
    }
