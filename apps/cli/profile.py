"""`flagsplit profile`: measure a tier on its own device, for plans that rest on it."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from flagsplit.apps.cli.common_options import AsJson, BundlePath, Threads
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, table
from flagsplit.apps.outputs import check_output
from flagsplit.apps.profiler import ProfileOptions, ProfileResult, profile_bundle
from flagsplit.runtime.bundle import open_bundle
from flagsplit.splitter.profiles import save_profile

_ROWS = 12


def command(
    bundle: BundlePath,
    tier: Annotated[str, typer.Option(help="The tier whose target to time, here.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The profile to write; BUNDLE-TIER.profile.json by default."
        ),
    ] = None,
    share: Annotated[float, typer.Option(help="How many of the blocks may be measured, 0 to 1.")] = 1.0,
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(help="For how long to time.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Time a bundle's blocks on this host; flagsplit build --profile TIER=FILE then plans with what was measured."""
    path = output or Path(f"{bundle.stem}-{tier}.profile.json")
    opened = open_bundle(bundle)
    opened.tier_index(tier)
    check_output(path, bundle)
    with progress_bar(quiet=as_json) as progress:
        result = profile_bundle(opened, tier, ProfileOptions(share, threads, seconds), progress)
    save_profile(result.profile, path)
    if as_json:
        print_json(_data(result, path, tier))
    else:
        _show(result, path, tier)


def _data(result: ProfileResult, path: Path, tier: str) -> dict[str, Any]:
    profile = result.profile
    return {
        "profile": str(path),
        "tier": tier,
        "device": profile.device,
        "target": profile.target,
        "threads": profile.threads,
        "numerics": profile.numerics,
        "blocks": len(result.graph.blocks),
        "measured": len(result.measured),
        "covered": len(covered(result)),
        "signatures": len(profile.blocks),
        "rounds": result.rounds,
        "run_us": profile.run_s * 1e6,
        "boundary_us_per_mb": profile.boundary_s_per_byte * 1e12,
        "covered_ms": math.fsum(seconds for _, seconds in covered(result)) * 1e3,
        "basis": profile.basis,
    }


def covered(result: ProfileResult) -> list[tuple[str, float]]:
    """Name and seconds of each block of the bundle whose work was measured, in this block or in one like it."""
    known = result.profile.blocks
    return [(block.name, known[block.signature].added_s) for block in result.graph.blocks if block.signature in known]


def _show(result: ProfileResult, path: Path, tier: str) -> None:
    out, profile, found = console(), result.profile, covered(result)
    heaviest = sorted(found, key=lambda pair: -pair[1])[:_ROWS]
    rows = [(name, f"{seconds * 1e3:.3f}") for name, seconds in heaviest]
    out.print(table(f"Heaviest blocks of tier {tier} ({profile.basis})", ("block", "ms"), rows))
    say(out)
    say(
        out,
        f"{len(result.measured)} of {len(result.graph.blocks)} blocks timed in {result.rounds} rounds; with those like "
        f"them {len(found)} are known: {math.fsum(seconds for _, seconds in found) * 1e3:.2f} ms",
    )
    say(
        out,
        f"a run costs {profile.run_s * 1e6:.1f} us, a cut {profile.boundary_s_per_byte * 1e12:.0f} us per MB; "
        f"threads {profile.threads}, numerics {profile.numerics}",
    )
    say(out, f"{path}: use it with flagsplit build --profile {tier}={path}")
