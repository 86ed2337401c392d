"""The Python API behind `flagsplit.build`, `plan`, `open`, `connect`, `connect_buckets`: the words of the command line.

Each takes plain values (paths, names, mappings) and gives the objects of the layers below.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.local import LocalWorkers
from flagsplit.apps.pipeline import BuildResult, Progress
from flagsplit.apps.pipeline import build as build_bundle
from flagsplit.apps.planning import PlanReport
from flagsplit.apps.planning import plan as plan_model
from flagsplit.apps.rebuilder import Rebuilder
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.errors import ConfigError, FlagsplitError, PolicyError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.runtime.async_session import AsyncSession
from flagsplit.runtime.bucket_shapes import bucket_shapes
from flagsplit.runtime.bucketed import BucketedSession, Pad, pad_with_zeros
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.engine import check_slowdown
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.splitter.sla import SLA, parse_sla
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Numerics
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

AnyPath = str | PathLike[str]


def build(
    model: Any,
    tiers: str | Sequence[str],
    output: AnyPath,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | Mapping[str, Any] | AnyPath | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    listed: Mapping[str, Sequence[int]] | None = None,
    numerics: Numerics = "exact",
    residency: ResidencyChoice = "auto",
    catalogues: Sequence[AnyPath] = (),
    regions: Mapping[str, str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    choices: Mapping[str, Mapping[str, str]] | None = None,
    samples: Sequence[AnyPath] = (),
    keep_samples: bool = False,
    float_products: bool = False,
    expected_tokens: int = 0,
    max_tokens: int = 0,
    profiles: Mapping[str, AnyPath] | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    trusted: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> BuildResult:
    """Build a bundle from a model.

    Args:
        model: path of an `.onnx`, `.ort` or `.pt2` file, an `onnx_ir.Model`, a `torch.export.ExportedProgram`, or a
            `torch.nn.Module`; of a generative program `zoo:NAME`, its folder, or a `flagsplit.flagir.programs.Program`.
        tiers: names from the tier that asks to the farthest, or one string with commas: `"phone,edge,cloud"`.
        output: path of the bundle to write.
        devices: device of each tier by name, from `flagsplit devices`.
        links: link of each tier to the one before it, such as `{"edge": "100mbit/5ms"}`; or, as in
            `{"phone-cloud": "20mbit/40ms"}`, of two that are no neighbors.
        sla: an `SLA`, its fields as a mapping, or the path of an SLA file.
        dims: nominal size of symbolic dimensions, elements.
        shapes: nominal shape of inputs, elements.
        ranges: smallest and largest size of symbolic dimensions, elements; requests outside are refused.
        listed: the only sizes of symbolic dimensions, elements; requests of others are refused.
        numerics: "exact" or "fast"; see `flagsplit.targets.interface.Numerics`.
        residency: whether the bundle has atoms too, so that a tier can hold each weight once whatever plan it runs:
            "auto" where the whole segments of all plans are more than its memory, "segments" never, "atoms" wherever
            plans share weights.
        catalogues: JSON files with devices and links of your own.
        regions: where tiers draw their power, by tier: `{"cloud": "DEU"}`, or `DEU@14` at that hour.
        targets: compiler back ends by tier, such as `{"phone": ["coreml", "litert"]}`; the device's own by default.
        choices: what targets let choose, by target: `{"coreml": {"precision": "fp32"}}`.
        float_products: turn products that are quantized on the fly, which chips do not take, into floating-point ones.
        expected_tokens: tokens that a program's answer is expected to have, or trips that a model's loops make; 0
            leaves that to the program's facts or to the model.
        max_tokens: most tokens of an answer of a program's linked model; 0: as many as its facts allow.
        samples: `.npz` files with inputs by name, folders of them, of pictures or of recordings, or `zoo:NAME`, to
            calibrate chips and check their ranges with; random by default.
        keep_samples: put them into the bundle, for `update_sla` to calibrate with; whoever has the bundle has them.
        profiles: file with measured times of each tier that has one, from `flagsplit profile`.
        example_inputs: positional inputs to trace a `torch.nn.Module` with.
        dynamic_shapes: of a module, as for `torch.export.export`.
        trusted: whether you know who wrote a `.pt2` file; reading one can run code that is in it.
        progress: called with what is being done and the share done, 0 to 1.

    Returns:
        The bundle's path, digest, sizes in bytes, seconds per step and plans.

    Raises:
        ModelError, PolicyError, ConfigError: what was asked cannot be built; the message says why.
    """
    return build_bundle(
        Source(Path(model) if isinstance(model, str | PathLike) else model, example_inputs, dynamic_shapes, trusted),
        [name.strip() for name in tiers.split(",")] if isinstance(tiers, str) else tiers,
        Path(output),
        devices=devices,
        links=links,
        sla=_sla(sla),
        options=BuildOptions(
            dims=dims or {},
            shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
            ranges=ranges or {},
            listed={name: tuple(sorted(set(sizes))) for name, sizes in (listed or {}).items()},
            numerics=numerics,
            residency=residency,
            catalogues=[Path(path) for path in catalogues],
            regions=regions or {},
            targets={tier: tuple(names) for tier, names in (targets or {}).items()},
            choices=choices or {},
            samples=[str(path) for path in samples],
            keep_samples=keep_samples,
            float_products=float_products,
            expected_tokens=expected_tokens,
            max_tokens=max_tokens,
            profiles={tier: Path(path) for tier, path in (profiles or {}).items()},
        ),
        progress=progress,
    )


def plan(
    model: Any,
    tiers: str | Sequence[str] | None = None,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | Mapping[str, Any] | AnyPath | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    listed: Mapping[str, Sequence[int]] | None = None,
    catalogues: Sequence[AnyPath] = (),
    regions: Mapping[str, str] | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    choices: Mapping[str, Mapping[str, str]] | None = None,
    expected_tokens: int = 0,
    max_tokens: int = 0,
    profiles: Mapping[str, AnyPath] | None = None,
    what_if: Mapping[str, str] | None = None,
    thresholds: bool = True,
    pareto: bool = False,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    trusted: bool = False,
) -> PlanReport:
    """Plan a model without building it: what would run where, and why.

    Args:
        model: as for `build`; or the path of a bundle, whose tiers, devices, links and sizes count where none is given.
        tiers: names from the tier that asks to the farthest, or one string with commas.
        devices, links, sla, dims, shapes, ranges, listed, catalogues, regions, targets, choices, profiles: as `build`.
        expected_tokens, max_tokens: as for `build`.
        what_if: another world, such as `{"cloud": "5mbit/80ms"}` or `{"edge": "slower:3"}`.
        thresholds: whether to find out where another plan becomes best.
        pareto: whether to find the plans that no other beats in latency, energy and price.
        example_inputs, dynamic_shapes, trusted: as for `build`.

    Returns:
        The plan with its figures (seconds, joules, dollars, bytes), baselines, runner-up and thresholds.

    Raises:
        ModelError, BundleError, PolicyError, ConfigError: what was asked cannot be planned; the message says why.
    """
    return plan_model(
        Source(Path(model) if isinstance(model, str | PathLike) else model, example_inputs, dynamic_shapes, trusted),
        [name.strip() for name in tiers.split(",")] if isinstance(tiers, str) else tiers,
        devices=devices,
        links=links,
        sla=_sla(sla),
        options=BuildOptions(
            dims=dims or {},
            shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
            ranges=ranges or {},
            listed={name: tuple(sorted(set(sizes))) for name, sizes in (listed or {}).items()},
            catalogues=[Path(path) for path in catalogues],
            regions=regions or {},
            targets={tier: tuple(names) for tier, names in (targets or {}).items()},
            choices=choices or {},
            expected_tokens=expected_tokens,
            max_tokens=max_tokens,
            profiles={tier: Path(path) for tier, path in (profiles or {}).items()},
        ),
        what_ifs=list((what_if or {}).items()),
        thresholds=thresholds,
        frontier=pareto,
    )


def _sla(given: SLA | Mapping[str, Any] | AnyPath | None) -> SLA | None:
    if given is None or isinstance(given, SLA):
        return given
    if isinstance(given, Mapping):
        return parse_sla(given)
    if not isinstance(given, str | PathLike):
        raise PolicyError(f"SLA: expected an SLA, a mapping or the path of a file, came {type(given).__name__}")
    path = Path(given)
    try:
        return parse_sla(path.read_bytes(), str(path))
    except OSError as error:
        raise PolicyError(f"cannot read the SLA {path}: {error.strerror}") from None


def open(bundle: AnyPath, *, cache: AnyPath | None = None) -> Bundle:  # noqa: A001 - the word users expect: flagsplit.open
    """Open a bundle: verify it and unpack it into the cache if it is not there yet.

    Args:
        bundle: path of a `.flagsplit` file.
        cache: where to unpack; `$FLAGSPLIT_CACHE` or `~/.cache/flagsplit` by default.

    Raises:
        BundleError: the file is missing, damaged, or of another major version.
    """
    return open_bundle(Path(bundle), None if cache is None else Path(cache))


@contextmanager
def connect(
    bundle: Bundle | AnyPath,
    tiers: Mapping[str, str | PeerAddress] | None = None,
    *,
    keys: AnyPath | None = None,
    settings: SessionSettings | None = None,
    slowdowns: Mapping[str, float] | None = None,
    run_targets: Mapping[str, str] | None = None,
) -> Iterator[Session]:
    """Connect to the workers of a bundle, for the length of a `with` statement.

    Args:
        bundle: a bundle or its path.
        tiers: address of each worker by tier, such as `{"cloud": "tcp://10.0.0.7:5555"}`. None starts workers for all
            tiers on this host; {} uses the first tier alone.
        keys: folder of the CURVE keys; `$FLAGSPLIT_HOME/keys` or `~/.config/flagsplit/keys` by default.
        settings: deadlines, memory budget, heartbeats.
        slowdowns: by tier, how many times as slow to make it, to emulate another device; only the first tier and
            workers that are started here can be slowed.
        run_targets: by tier, which of its artifacts runs, such as `{"phone": "coreml"}`; ONNX Runtime's by default. The
            first tier and workers that are started here can be told so.

    Yields:
        A session; `session.run({"input": array})` gives the outputs by name. Its `update_sla` builds the bundle again
        where no pooled plan will do, in a process of its own, and sends it to the workers that are up.

    Raises:
        BundleError, ConfigError, PolicyError: bundle, keys or tiers are wrong.
        RefusedError: a worker refused, for instance because it serves another bundle.
    """
    opened = bundle if isinstance(bundle, Bundle) else open(bundle)
    settings = _slowed(opened, settings or SessionSettings(), slowdowns or {}, only_first=tiers is not None)
    settings = _targeted(opened, settings, run_targets or {}, only_first=tiers is not None)
    folder = None if keys is None else Path(keys)
    with ExitStack() as stack:
        addresses = _reached(stack, [opened], tiers, slowdowns, folder, run_targets)
        channel = ZmqChannel(security=KeyStore(folder).security())
        rebuilder = Rebuilder(addresses, folder)
        session = Session(opened, addresses, channel, settings, rebuilder)
        rebuilder.states = lambda: session.tiers
        yield stack.enter_context(session)


@contextmanager
def connect_buckets(
    bundles: Iterable[Bundle | AnyPath],
    tiers: Mapping[str, str | PeerAddress] | None = None,
    *,
    symbol: str = "",
    pad: Pad = pad_with_zeros,
    crop: bool = True,
    keys: AnyPath | None = None,
    settings: SessionSettings | None = None,
    slowdowns: Mapping[str, float] | None = None,
) -> Iterator[BucketedSession]:
    """Connect to workers that serve a model at several fixed sizes, for the length of a `with` statement.

    A request of any size is padded to the smallest bundle that holds it, and its answer cropped (`docs/shapes.md`).

    Args:
        bundles: one for each size, or their paths; they differ in that size alone.
        tiers: as for `connect`; each worker serves all the bundles.
        symbol: name of the size in messages; by default that which the builds pinned, or "size".
        pad: makes an input longer, given its name, the array, the axis, and the elements that the axis is to have.
        crop: whether outputs are cut to the request's size along each axis that is as long as the bundle's.
        keys: as for `connect`.
        settings: as for `connect`; they count for each bundle by itself, and so do `max_pending` and memory.
        slowdowns: as for `connect`.

    Yields:
        A session that takes inputs of any size up to the largest.

    Raises:
        ConfigError: the bundles differ in anything but one size; keys or tiers are wrong.
        BundleError, PolicyError, RefusedError: as for `connect`.
    """
    opened = [each if isinstance(each, Bundle) else open(each) for each in bundles]
    bucket_shapes([each.facts for each in opened], symbol, crop=crop)  # before a worker starts in vain
    settings = _slowed(opened[0], settings or SessionSettings(), slowdowns or {}, only_first=tiers is not None)
    folder = None if keys is None else Path(keys)
    with ExitStack() as stack:
        addresses = _reached(stack, opened, tiers, slowdowns, folder)
        sessions = []
        for each in opened:
            channel = ZmqChannel(security=KeyStore(folder).security())
            sessions.append(stack.enter_context(Session(each, addresses, channel, settings)))
        yield BucketedSession(sessions, symbol, pad, crop=crop)


def _reached(
    stack: ExitStack,
    bundles: Sequence[Bundle],
    tiers: Mapping[str, str | PeerAddress] | None,
    slowdowns: Mapping[str, float] | None,
    keys: Path | None,
    run_targets: Mapping[str, str] | None = None,
) -> dict[str, PeerAddress]:
    """Where the workers listen, started here for the length of `stack` if no addresses are given."""
    if tiers is None:
        workers = LocalWorkers(
            [each.path for each in bundles],
            bundles[0].tiers[1:],
            slowdowns=slowdowns,
            keys=keys,
            run_targets=run_targets,
        )
        return stack.enter_context(workers).addresses
    for name in tiers:
        bundles[0].tier_index(name)
    return {name: PeerAddress(at) if isinstance(at, str) else at for name, at in tiers.items()}


def _slowed(
    bundle: Bundle, settings: SessionSettings, slowdowns: Mapping[str, float], *, only_first: bool
) -> SessionSettings:
    """The settings of a session among slowed tiers."""
    for tier, slowdown in slowdowns.items():
        check_slowdown(slowdown)
        if bundle.tier_index(tier) > 0 and only_first:
            raise ConfigError(f"slowdown of {tier}: its worker is not started here; start it with serve --slowdown")
    slowdown = slowdowns.get(bundle.tiers[0], settings.slowdown)
    return replace(
        settings, slowdown=slowdown, emulated=settings.emulated or any(each > 1 for each in slowdowns.values())
    )


def _targeted(
    bundle: Bundle, settings: SessionSettings, run_targets: Mapping[str, str], *, only_first: bool
) -> SessionSettings:
    """The settings of a session whose tiers run certain artifacts; those of chips that are emulated here say so."""
    for tier, name in run_targets.items():
        index = bundle.tier_index(tier)
        if index > 0 and only_first:
            raise ConfigError(f"target of {tier}: its worker is not started here; start it with serve --target {name}")
        bundle.artifact(index, name)
    names = {bundle.artifact(bundle.tier_index(tier), name).target for tier, name in run_targets.items()}
    emulated = any(get_target(name).describe().runs_here == "emulated" for name in names)
    host = replace(settings.host, target=run_targets.get(bundle.tiers[0], settings.host.target))
    return replace(settings, host=host, emulated=settings.emulated or emulated)


@asynccontextmanager
async def connect_async(
    bundle: Bundle | AnyPath,
    tiers: Mapping[str, str | PeerAddress] | None = None,
    *,
    keys: AnyPath | None = None,
    settings: SessionSettings | None = None,
    slowdowns: Mapping[str, float] | None = None,
    run_targets: Mapping[str, str] | None = None,
) -> AsyncIterator[AsyncSession]:
    """The asyncio twin of `connect`, for `async with`; arguments and errors are the same."""
    manager = connect(bundle, tiers, keys=keys, settings=settings, slowdowns=slowdowns, run_targets=run_targets)
    entering = asyncio.ensure_future(asyncio.to_thread(manager.__enter__))
    try:
        session = await asyncio.shield(entering)
    except asyncio.CancelledError:
        with suppress(FlagsplitError):
            await entering
            await asyncio.to_thread(manager.__exit__, None, None, None)
        raise
    try:
        yield AsyncSession(session)
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def build_async(model: Any, tiers: str | Sequence[str], output: AnyPath, **choices: Any) -> BuildResult:
    """The asyncio twin of `build`: the same arguments, on a thread of its own."""
    return await asyncio.to_thread(build, model, tiers, output, **choices)


async def open_async(bundle: AnyPath, *, cache: AnyPath | None = None) -> Bundle:
    """The asyncio twin of `open`, on a thread of its own."""
    return await asyncio.to_thread(open, bundle, cache=cache)
