"""`flagsplit run`: ask a bundle for answers, through workers elsewhere or started here."""

import statistics
import sys
import zipfile
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flagsplit.apps import compare, connecting
from flagsplit.apps.cli.common_options import AsJson, BundlePath, InputDim, InputSeed, Keys, ThreadsHere
from flagsplit.apps.cli.options import factors, pairs, sizes
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, shape_text, size_text, table
from flagsplit.apps.cli.plans import encoded_cuts
from flagsplit.apps.input_files import made_up_inputs, read_inputs
from flagsplit.apps.outputs import check_apart, check_output
from flagsplit.apps.plan_graphs import is_lossy, plan_reference
from flagsplit.errors import ConfigError, InputError, UnavailableError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.targets.interface import Array, LoadOptions


def command(
    bundle: BundlePath,
    input_file: Annotated[Path | None, typer.Option("--input", metavar="FILE", help="Inputs by name, .npz.")] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=tcp://HOST:PORT", help="Where a worker listens; without any they start here."),
    ] = None,
    plan: Annotated[str, typer.Option(help="A plan of the pool; the best one by default.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Run the unsplit model too and compare.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="How many requests; figures are medians.")] = 1,
    dim: InputDim = None,
    seed: InputSeed = 0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the outputs, .npz."),
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")] = 60.0,
    threads: ThreadsHere = 1,
    phone_target: Annotated[
        str, typer.Option(help="Which artifact the first tier runs, such as coreml; ONNX Runtime's by default.")
    ] = "",
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=NAME", help="The same of any tier: the first, or workers started here."),
    ] = None,
    slowdown: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=FACTOR", help="Emulate a slower device; the first tier, or workers started here."),
    ] = None,
    emulated: Annotated[bool, typer.Option("--emulated", help="Say that workers or links are slowed.")] = False,
    trace_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append spans of the requests, OTLP in JSON lines.")
    ] = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Run a bundle on inputs from a file, or on seeded random ones of the declared shapes."""
    opened = connecting.open(bundle)
    if plan:
        _check_plan(opened, plan)
    if output is not None:
        check_output(output, bundle, input_file)
    if trace_file is not None:
        check_apart(trace_file, bundle, input_file, output)
    inputs = _inputs(opened, input_file, sizes("--dim", dim), seed)
    host = LoadOptions(threads=threads)
    settings = SessionSettings(deadline_s=deadline, host=host, emulated=emulated, trace_file=trace_file)
    slowdowns = factors("--slowdown", slowdown)
    addresses = pairs("--tier", tier) if tier is not None else None
    run_targets = pairs("--target", target) | ({opened.tiers[0]: phone_target} if phone_target else {})
    with progress_bar(quiet=as_json) as progress:
        progress("start", 0.0)
        with connecting.connect(
            opened, addresses, keys=keys, settings=settings, slowdowns=slowdowns, run_targets=run_targets
        ) as session:
            _warn_of_absent(session, opened, plan)
            answers = _ask(session, inputs, plan, repeat, progress)
            tiers = session.tiers
    difference = _check(opened, inputs, host, answers[-1]) if check else None
    if output is not None:
        _write(output, answers[-1])
    data = _data(opened, answers, difference, tiers) | {"targets": run_targets}
    if as_json:
        print_json(data)
    else:
        _show(opened, data)


def _check_plan(bundle: Bundle, plan: str) -> None:
    """It must be one of the pool; those that divide the layers of a decoder make streams, not answers of one piece."""
    program = bundle.program
    if program is not None and plan in program.plans and program.plans[plan].layers:
        raise ConfigError(
            f"plan {plan} divides the layers of a decoder, which flagsplit run does not; serve it with flagsplit "
            f"decode-serve --plan {plan} and ask as examples/first_layers.py does, or choose from "
            f"{', '.join(each.name for each in bundle.plans.pool.plans)}"
        )
    bundle.plan(plan)


def _inputs(bundle: Bundle, file: Path | None, dims: Mapping[str, int], seed: int) -> dict[str, Array]:
    if file is None:
        return made_up_inputs(bundle, dims, seed)
    if dims:
        raise ConfigError(f"--dim is for made-up inputs, those in {file} have their shapes; leave out one of the two")
    return read_inputs(bundle, file)


def _warn_of_absent(session: Session, bundle: Bundle, plan: str) -> None:
    """Say which tiers are not there; a plan that was asked for by name must have all of its own."""
    states = session.tiers
    missing = [tier for tier in bundle.tiers[1:] if states.get(tier) != "up"]
    if plan:
        used = [bundle.tiers[index] for index in bundle.plan(plan).used_tiers]
        lost = [tier for tier in used if tier in missing]
        if lost:
            why = states.get(lost[0], f"no address; give --tier {lost[0]}=tcp://HOST:PORT")
            raise UnavailableError(f"plan {plan} needs tier {lost[0]}, which is not there: {why}")
    for tier in missing:
        if tier in states:
            print(f"flagsplit: tier {tier} is not there ({states[tier]}); going on without it", file=sys.stderr)


def _ask(session: Session, inputs: Mapping[str, Array], plan: str, repeat: int, progress: Any) -> list[Answer]:
    """Ask `repeat` times, a few requests on their way at once, keeping the last answer and all reports."""
    answers: list[Answer] = []
    pending: deque[Future[Answer]] = deque()
    window = 1 if repeat < 20 else 4
    for index in range(repeat):
        pending.append(session.submit(inputs, plan=plan))
        if len(pending) >= window:
            answers.append(pending.popleft().result())
            progress("run", (index + 1) / repeat)
    answers.extend(future.result() for future in pending)
    return answers


def _check(bundle: Bundle, inputs: Mapping[str, Array], host: LoadOptions, answer: Answer) -> dict[str, Any]:
    """The answer against the unsplit model and, if its plan is lossy, against the plan's own reference."""
    whole = bundle.load_whole(host)
    try:
        found = compare.to_data(compare.compare(whole.run(inputs), answer))
    finally:
        whole.close()
    plan = bundle.plan(answer.report.plan)
    if is_lossy(plan):
        with plan_reference(bundle, plan.name, host) as made:
            found["plan_reference"] = compare.to_data(compare.compare(made.run(inputs), answer))
        found["codecs"] = [{"value": value, "codec": codec} for value, codec in encoded_cuts(plan)]
    return found


def _write(path: Path, answer: Answer) -> None:
    temporary = path.with_name(f".{path.name}.part.npz")
    try:
        # numpy.savez takes names as keywords, and fails on an output that is called "file".
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in answer.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    texts = array.dtype.kind == "O"
                    np.lib.format.write_array(member, array.astype(str) if texts else array, allow_pickle=False)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _data(
    bundle: Bundle, answers: list[Answer], difference: dict[str, Any] | None, tiers: Mapping[str, str]
) -> dict[str, Any]:
    last = answers[-1].report
    predicted = bundle.plan(last.plan).predicted
    data: dict[str, Any] = {
        **last.to_data(),
        "latency_ms": statistics.median(answer.report.latency_ms for answer in answers),
        "basis": last.basis,
        "predicted": {"latency_ms": predicted.latency_s * 1e3, "basis": predicted.basis},
        "requests": len(answers),
        "attempts": max(answer.report.attempts for answer in answers),
        "plans": sorted({answer.report.plan for answer in answers}),
        "workers": dict(tiers),
        "outputs": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in answers[-1].items()
        },
    }
    if difference is not None:
        data["check"] = difference
    return data


def _show(bundle: Bundle, data: dict[str, Any]) -> None:
    out = console()
    rows = [
        (tier["tier"], len(tier["segments"]), f"{tier['wait_ms']:.2f}", f"{tier['run_ms']:.2f}")
        for tier in data["tiers"]
    ]
    out.print(table(f"Plan {data['plan']} ({data['basis']})", ("tier", "segments", "wait ms", "run ms"), rows))
    links = [(f"{x['from']} → {x['to']}", size_text(x["bytes"]), x["messages"]) for x in data["links"]]
    if links:
        out.print(table("", ("link", "bytes", "messages"), links))
    devices = ", ".join(f"{tier.name}={tier.device}" for tier in bundle.facts.tiers)
    say(out)
    say(out, f"latency {data['latency_ms']:.2f} ms {data['basis']} on this host, requests: {data['requests']}")
    say(out, f"        {data['predicted']['latency_ms']:.2f} ms {data['predicted']['basis']} for {devices}")
    if "check" in data:
        check = data["check"]
        relative = f"{check['max_rel']:.3g} of the output's range"
        say(out, f"against the unsplit model: largest difference {check['max_abs']:.3g}, {relative}")
        if "plan_reference" in check:
            codecs = ", ".join(dict.fromkeys(each["codec"] for each in check["codecs"]))
            own = f"largest difference {check['plan_reference']['max_abs']:.3g}"
            say(out, f"the plan is lossy: {len(check['codecs'])} tensors travel as {codecs}")
            say(out, f"against the plan's own reference: {own}")
    for name, tensor in data["outputs"].items():
        say(out, f"output {name}: {tensor['dtype']} {shape_text(tensor['shape'])}")
