"""From a model file to a bundle.

    read → canonicalize → plan → compile each tier's segments → write

The first two are here, the others in `flagsplit.apps.assembly`. Weights stream from file to file; nothing appears under
the output's name until all of it is right.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flagsplit import flagir
from flagsplit.apps.assembly import BuildResult, Clock, Progress, assemble
from flagsplit.apps.bundle_contents import Canonical
from flagsplit.apps.deployment import describe_deployment
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.linked import Linked, expect_trips, link_program, program_of
from flagsplit.apps.outputs import check_output, scratch_beside
from flagsplit.apps.profiled import load_profiles
from flagsplit.apps.program_members import shared_models
from flagsplit.errors import ConfigError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.flagir.store import save_all
from flagsplit.runtime.manifest import Model
from flagsplit.splitter.sla import SLA


def build(
    model: Path | Source,
    tiers: Sequence[str],
    output: Path,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | None = None,
    options: BuildOptions | None = None,
    progress: Progress = lambda _what, _share: None,
) -> BuildResult:
    """Build a bundle.

    Args:
        model: an ONNX file.
        tiers: names of the tiers, from the one that asks to the farthest.
        output: the bundle to write.
        devices: device of each tier, by tier name; see `flagsplit devices`.
        links: link of each tier to the one before it, by tier name, such as `100mbit/5ms`.
        sla: the policy; the default minimizes latency.
        options: further choices.
        progress: told what is being done.

    Raises:
        ModelError: the model cannot be read or brought into FlagIR.
        PolicyError: tiers, devices, links or SLA are wrong, or no plan can keep the SLA.
        ConfigError: the output cannot be written, or two options contradict each other.
    """
    options = options or BuildOptions()
    deployment = describe_deployment(
        tiers, devices or {}, links or {}, options.catalogues, options.regions, options.targets
    )
    profiles = load_profiles(options.profiles, deployment, options.numerics)
    check_output(output)
    source = model if isinstance(model, Source) else Source(model)
    if output.exists() and source.path is not None and source.path.exists() and output.samefile(source.path):
        raise ConfigError(f"{output} is the model itself; give the bundle another name with -o")
    clock = Clock(progress)
    with scratch_beside(output) as folder:
        program = program_of(source)
        if program is not None:
            clock.step("link", 0.0)
            linked = link_program(program, options)
            canonical = _store_linked(linked, folder, clock)
            built = assemble(canonical, output, deployment, sla or SLA(), linked.options, clock, profiles)
            return replace(built, notes=(*linked.notes, *built.notes))
        canonical = _read(source, folder, clock, options)
        return assemble(canonical, output, deployment, sla or SLA(), options, clock, profiles)


def _read(source: Source, folder: Path, clock: Clock, options: BuildOptions) -> Canonical:
    """Import a model and store its weights in a folder."""
    clock.step("read", 0.0)
    model = source.read()
    nodes_read = len(model.graph)
    clock.step("canonicalize", 0.05)
    flagir.canonicalize(model)
    if options.float_products:
        float_products(model)
    expect_trips(model, options.expected_tokens)
    flagir.check(model)
    clock.step("store weights", 0.3)
    flagir.save(model, folder)
    origin = Model(name=source.name, sha256=_sha256(source.path or folder / flagir.MODEL_NAME))
    return Canonical(model, folder / flagir.WEIGHTS_NAME, origin, nodes_read)


def _store_linked(linked: Linked, folder: Path, clock: Clock) -> Canonical:
    """Store the weights of a program in a folder, once for the linked model and the program's own graphs."""
    model = linked.model
    nodes_read = len(model.graph)
    flagir.check(model)
    clock.step("store weights", 0.3)
    # A copy: the caller's program must not map weights from a folder that goes away.
    program = replace(linked.program, graphs={name: graph.clone() for name, graph in linked.program.graphs.items()})
    save_all(shared_models(model, program), folder)
    origin = Model(name=program.facts.name, sha256=_sha256(folder / flagir.MODEL_NAME))
    return Canonical(model, folder / flagir.WEIGHTS_NAME, origin, nodes_read, program)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
