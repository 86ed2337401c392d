"""The Python API behind `flagsplit.open`, `connect` and `connect_buckets`: from a bundle's path to a session."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path

from flagsplit.apps.local import LocalWorkers
from flagsplit.apps.rebuilder import Rebuilder
from flagsplit.errors import ConfigError, FlagsplitError
from flagsplit.runtime.async_session import AsyncSession
from flagsplit.runtime.bucket_shapes import bucket_shapes
from flagsplit.runtime.bucketed import BucketedSession, Pad, pad_with_zeros
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.engine import check_slowdown
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.targets.catalogue import get_target
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

AnyPath = str | PathLike[str]


def open(bundle: AnyPath, *, cache: AnyPath | None = None) -> Bundle:  # noqa: A001 - the word users expect: flagsplit.open
    """Open a bundle: verify it and unpack it into the cache if it is not there yet.

    Args:
        bundle: path of a `.flagsplit` file.
        cache: where to unpack; `$FLAGSPLIT_CACHE` or `~/.cache/flagsplit` by default.

    Raises:
        BundleError: the file is missing, damaged, or of another major version.
    """
    return open_bundle(Path(bundle), None if cache is None else Path(cache))


async def open_async(bundle: AnyPath, *, cache: AnyPath | None = None) -> Bundle:
    """The asyncio twin of `open`, on a thread of its own."""
    return await asyncio.to_thread(open, bundle, cache=cache)


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
