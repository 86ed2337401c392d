"""`flagsplit quantize`: an int8 model out of a floating-point one, and what that costs."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flagsplit import flagir
from flagsplit.apps.calibration import calibration_samples
from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.options import shapes, sizes
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, size_text, table
from flagsplit.apps.graph_tensors import tensor_of
from flagsplit.apps.models import canonical_graph
from flagsplit.apps.outputs import check_output
from flagsplit.apps.quantizing import TASKS, quantize_model
from flagsplit.errors import ConfigError
from flagsplit.flagir.quantization import MIN_COSINE, MIN_TASK, Quantized, QuantizeOptions
from flagsplit.flagir.reference import write_reference

_MOST_ROWS = 30


def command(
    model: Annotated[Path, typer.Argument(help="The model: .onnx, .ort or .pt2; or a bundle.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The int8 model to write, .onnx.")],
    calibrate: Annotated[
        list[str],
        typer.Option(metavar="DIR|FILE|zoo:NAME", help="Samples: .npz files, pictures or recordings; may be repeated."),
    ],
    observer: Annotated[
        Literal["minmax", "percentile", "entropy", "mse"], typer.Option(help="Which range of an activation int8 holds.")
    ] = "minmax",
    min_cosine: Annotated[
        float, typer.Option(help="Least cosine of an output to the floating-point one.")
    ] = MIN_COSINE,
    task: Annotated[
        Literal["none", "argmax", "mask"],
        typer.Option(help="What outputs are for: the largest along the last axis, or what is over 0.3."),
    ] = "none",
    min_task: Annotated[float, typer.Option(help="What has to come out the same in the task, 0 to 1.")] = MIN_TASK,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Leave a node in floating point; may be repeated.")
    ] = None,
    correct_bias: Annotated[bool, typer.Option(help="Let biases make up for the rounding of weights.")] = True,
    dim: Annotated[list[str] | None, typer.Option(metavar="SYMBOL=SIZE", help="Size of an open dimension.")] = None,
    shape: Annotated[list[str] | None, typer.Option(metavar="INPUT=1,3,48,320", help="Shape of an input.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what became of each node, JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model to int8 after training; nodes that int8 ruins stay in floating point, with the reason."""
    check_output(output)
    if report is not None:
        check_output(report, model, output)
    graph, nominal = canonical_graph(model)
    if output.exists() and model.exists() and output.samefile(model):
        raise ConfigError(f"{output} is the model itself; give the int8 model another name with -o")
    skeleton = flagir.Skeleton(graph)
    given = {**nominal, **flagir.dims_of_shapes(skeleton, shapes("--shape", shape)), **sizes("--dim", dim)}
    dims = flagir.nominal_dims(skeleton, given)
    kept = _kept(keep or [], {node.name or "" for node in graph.graph})
    samples = calibration_samples([tensor_of(value) for value in graph.graph.inputs], dims, calibrate)
    options = QuantizeOptions(observer, correct_bias, min_cosine, kept, TASKS.get(task), min_task)
    with progress_bar(quiet=as_json) as progress:
        progress("quantize", 0.0)
        made = quantize_model(graph, samples, options)
        progress("quantize", 1.0)
    files = write_reference(made.model, output)
    data = _data(made, files)
    if report is not None:
        report.write_text(json.dumps(data, indent=1) + "\n")
    if as_json:
        print_json(data)
    else:
        _show(made, files)


def _kept(names: list[str], known: set[str]) -> dict[str, str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--keep expects a node of the model, came {unknown[0]!r}; flagsplit show lists them")
    return dict.fromkeys(names, "the user keeps it so")


def _data(made: Quantized, files: tuple[Path, ...]) -> dict[str, Any]:
    return {
        "files": [str(file) for file in files],
        "size_bytes": sum(file.stat().st_size for file in files),
        "nodes_int8": sum(each.int8 for each in made.nodes),
        "flops_int8": made.flops_int8,
        "cosines": dict(made.cosines),
        "worst_cosine": made.worst,
        "task": made.task,
        "samples": made.samples,
        "checked": made.checked,
        "nodes": [vars(each) for each in made.nodes],
        "basis": "measured",
    }


def _show(made: Quantized, files: tuple[Path, ...]) -> None:
    out = console()
    floating = [each for each in made.nodes if not each.int8]
    sizes_told = ", ".join(f"{file} ({size_text(file.stat().st_size)})" for file in files)
    say(
        out,
        f"{len(made.nodes) - len(floating)} of {len(made.nodes)} nodes are int8, {made.flops_int8:.0%} of the work",
    )
    for name, near in made.cosines.items():
        say(out, f"{name}: cosine {near:.5f} to floating point, over {made.checked} samples")
    say(out, f"least cosine on a sample: {made.worst:.5f}")
    if made.task is not None:
        say(out, f"task: {made.task:.2%} comes out the same")
    if floating:
        rows = [(each.node, each.op_type, each.reason) for each in floating[:_MOST_ROWS]]
        out.print(table("In floating point", ("node", "operator", "why"), rows, left=3))
        if len(floating) > _MOST_ROWS:
            say(out, f"and {len(floating) - _MOST_ROWS} more; --report FILE has all")
    say(out, f"written to {sizes_told}")
