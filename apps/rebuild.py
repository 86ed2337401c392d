"""A bundle built again under another policy: same model, tiers, devices, links and choices.

What a build needs beside the model is in the bundle's recipe (`flagsplit.apps.recipe`). Bundles of before format 1.2
have none; what is assumed for those is what `flagsplit.apps.planning` assumes. How the result gets to workers that run
is in `flagsplit.apps.delivery`.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from flagsplit import __version__, flagir
from flagsplit.apps.assembly import BuildResult, Clock, Progress, assemble
from flagsplit.apps.bundle_contents import TRACE_NAME, Canonical
from flagsplit.apps.deployment import Deployment
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.outputs import check_output
from flagsplit.apps.planning import subject_of_bundle
from flagsplit.apps.recipe import Recipe, deployment_of, read_recipe, recorded_costs, sla_data
from flagsplit.errors import BundleError, ConfigError
from flagsplit.flagir.placement import clear_placements
from flagsplit.runtime.bundle import GRAPH_NAME, WEIGHTS_MEMBER, Bundle, open_bundle
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import Numerics

_log = logging.getLogger(__name__)

_FOLDER = "rebuilt"
_MOST_KEPT = 16
_MOST_KEPT_BYTES = 8 << 30
_OLD = "it is older than format 1.2 and does not say what it was built from: devices are those of the catalogue now"
_OLD_TOO = "it is taken to be built with residency auto, in the world's mean region, and without profiles"


def rebuild(bundle: Bundle, sla: SLA, output: Path, *, progress: Progress | None = None) -> BuildResult:
    """Build a bundle again under another SLA; the same bundle and SLA give the same bytes.

    Args:
        bundle: the bundle; it stays as it is.
        sla: the policy from now on.
        output: the bundle to write.
        progress: told what is being done.

    Returns:
        As of a build. `notes` says what had to be assumed; it is logged as a warning too.

    Raises:
        PolicyError: no plan can keep the SLA.
        BundleError: what it was built from cannot be read.
        ConfigError: the output cannot be written, or is the bundle itself.
    """
    check_output(output)
    if output.exists() and bundle.path.exists() and output.samefile(bundle.path):
        raise ConfigError(f"{output} is the bundle itself; give the new one another name with -o")
    clock = Clock(progress or (lambda _what, _share: None))
    clock.step("read", 0.0)
    deployment, options, notes, nodes_read = _as_built(bundle)
    for note in notes:
        _log.warning("%s: %s", bundle.path, note)
    graph = flagir.load((bundle.folder / GRAPH_NAME).parent)
    clear_placements(graph)
    program = None if bundle.program is None else bundle.program.program()
    canonical = Canonical(graph, bundle.folder / WEIGHTS_MEMBER, bundle.facts.model, nodes_read, program)
    built = assemble(canonical, output, deployment, sla, options, clock)
    return replace(built, notes=notes)


def rebuilt(bundle: Bundle, sla: SLA, make: Callable[[Path], object]) -> Bundle:
    """The bundle under another SLA from the cache, where it is made if it is not there yet or not whole.

    The cache keeps the 16 that were used last, 8 GiB at most.

    Args:
        bundle, sla: what to build again, and how.
        make: builds it at a path that is given; raises what `rebuild` does.
    """
    place, cache = place_of(bundle, sla), bundle.folder.parents[1]
    try:
        found = open_bundle(place, cache)
    except BundleError:
        pass
    else:
        with suppress(OSError):  # a cache that cannot be written is good enough to read
            os.utime(place)
        return found
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {place.parent}: {error.strerror}; set $FLAGSPLIT_CACHE") from None
    make(place)
    made = open_bundle(place, cache)
    _forget_oldest(place)
    return made


def _forget_oldest(newest: Path) -> None:
    """Keep the bundles that were used last, so many and so large in all; the newest in any case."""
    kept, kept_bytes = 0, 0
    for at, size_bytes, path in sorted(_sizes(newest), reverse=True):
        kept, kept_bytes = kept + 1, kept_bytes + size_bytes
        if path != newest and (kept > _MOST_KEPT or kept_bytes > _MOST_KEPT_BYTES):
            _log.info("forgets %s, used last at %.0f", path, at)
            path.unlink(missing_ok=True)


def _sizes(newest: Path) -> Iterator[tuple[float, int, Path]]:
    """When each was used, its bytes, and its path."""
    for path in newest.parent.glob("*.flagsplit"):
        with suppress(OSError):  # another process forgot it just now
            found = path.stat()
            yield math.inf if path == newest else found.st_mtime, found.st_size, path


def place_of(bundle: Bundle, sla: SLA) -> Path:
    """Where in the cache a bundle is kept that was built again under an SLA."""
    text = json.dumps([bundle.digest, sla_data(sla), __version__], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()
    return bundle.folder.parents[1] / _FOLDER / f"{name}.flagsplit"


def _as_built(bundle: Bundle) -> tuple[Deployment, BuildOptions, tuple[str, ...], int]:
    """Where it runs, the choices of its build, what is not known for sure, and how many nodes its model had."""
    facts, recipe = bundle.facts, read_recipe(bundle)
    listed = {name: tuple(sizes) for name, sizes in facts.dim_sizes.items()}
    ranges = {name: ends for name, ends in facts.dim_ranges.items() if name not in listed}
    tokens = 0 if bundle.program is None else bundle.program.expected_tokens
    options = BuildOptions(
        dims=facts.nominal_dims, ranges=ranges, listed=listed, costs=recorded_costs(bundle), expected_tokens=tokens
    )
    if recipe is None:
        numerics = bundle.artifact(0).options.get("numerics", "exact")
        options = replace(options, numerics=cast("Numerics", numerics))
        subject = subject_of_bundle(bundle, None, {}, {}, options)
        return subject.deployment, options, (_OLD, _OLD_TOO, *subject.notes), _nodes_read(bundle)
    options = replace(options, numerics=recipe.numerics, residency=recipe.residency, choices=recipe.choices)
    samples = [str(bundle.folder / name) for name in recipe.kept_samples]
    options = replace(options, samples=samples, keep_samples=bool(samples))
    return deployment_of(bundle, recipe), options, tuple(_left_out(recipe)), recipe.nodes_read


def _left_out(recipe: Recipe) -> Iterator[str]:
    """What the build had and the bundle has not."""
    if recipe.extra_plans:
        yield f"plans that were added at the build are not in the new one: {', '.join(recipe.extra_plans)}"
    if recipe.samples > len(recipe.kept_samples):
        yield (
            f"the build calibrated chips on {recipe.samples} samples that the bundle does not have; made-up inputs "
            f"stand in for them; build with --keep-samples to have them in it"
        )


def _nodes_read(bundle: Bundle) -> int:
    try:
        return int(json.loads((bundle.folder / TRACE_NAME).read_bytes())["traceEvents"][0]["args"]["nodes"])
    except (OSError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{bundle.path}: {TRACE_NAME} is damaged ({error}); get the bundle again") from None
