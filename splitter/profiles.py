"""A profile: what blocks took on a device, measured there through its target.

A profile is a JSON file that `flagsplit profile` writes and the splitter prefers to its model (`docs/profiles.md`). It
knows blocks by the signature of their work, so one profile serves every model that has such blocks. How it becomes
costs is in `flagsplit.splitter.calibration`; how blocks are timed, in `flagsplit.apps.profiler`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagsplit.errors import ConfigError, PolicyError
from flagsplit.splitter.sla import first_problem

FORMAT_VERSION = 1
_NO_PROFILE_IS_LARGER = 64_000_000
_MOST_BLOCKS = 100_000

_Text = Annotated[str, Field(max_length=4096)]
_Signature = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
_Positive = Annotated[float, Field(gt=0)]
_Amount = Annotated[float, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BlockTime(_Frozen):
    """What one block took.

    Attributes:
        name: of one such block, for people.
        seconds: the lowest tenth of its runs as a segment of its own, s: other programs only ever make a run slower.
        added_s: what it adds to a segment, s: less the run and the tensors that it paid for alone.
        spread: by what share the median is above that.
        runs: how many were timed.
        features: numbers about its work, for the regression (`flagsplit.splitter.regression`).
    """

    name: _Text
    seconds: _Positive
    added_s: _Positive
    spread: _Amount
    runs: Annotated[int, Field(ge=1)]
    features: Annotated[dict[str, _Amount], Field(max_length=256)] = {}


class Profile(_Frozen):
    """Measured times of blocks on one device, and under which conditions.

    A segment takes what each of its blocks adds (`added_s`), plus `run_s`, plus `boundary_s_per_byte` times half the
    bytes that enter and leave it: the other half belongs to the segment on the other side of the cut.

    Attributes:
        version: of this format.
        basis: "measured" on the device itself, or "emulated" on another.
        device: the device's name in the catalogue at the build.
        host: what ran it: processor and system.
        target, target_version: the compiler back end.
        threads: of one run; 0 let the engine choose.
        numerics: of the bundle.
        date: ISO 8601.
        run_s: s for each run of a segment.
        boundary_s_per_byte: s per byte of a tensor that a cut makes the engine hand out and take in.
        blocks: by signature of the work.
    """

    version: Literal[1]
    basis: Literal["measured", "emulated"]
    device: _Text
    host: _Text
    target: _Text
    target_version: _Text
    threads: Annotated[int, Field(ge=0, le=4096)]
    numerics: Literal["exact", "fast"]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    run_s: _Amount
    boundary_s_per_byte: _Amount
    blocks: Annotated[dict[_Signature, BlockTime], Field(min_length=1, max_length=_MOST_BLOCKS)]


def load_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        PolicyError: the file cannot be read, is of another version, or a figure is wrong; one line that names file and
            field.
    """
    try:
        if path.stat().st_size > _NO_PROFILE_IS_LARGER:
            raise PolicyError(f"{path}: expected a profile, but the file is over {_NO_PROFILE_IS_LARGER} bytes")
        document: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}; flagsplit profile writes profiles") from None
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: expected a profile in JSON: {error}; flagsplit profile writes profiles") from None
    if not isinstance(document, dict) or document.get("version") != FORMAT_VERSION:
        came = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise PolicyError(f'{path}: expected a profile with "version": {FORMAT_VERSION}, came {came!r}; measure again')
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        raise PolicyError(f"{path}: {first_problem(error)}; measure again with flagsplit profile") from None


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile; nothing appears under its name until all of it is there.

    Raises:
        ConfigError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(json.dumps(profile.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place with -o") from None
    finally:
        unfinished.unlink(missing_ok=True)


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """Profiles of several models on one device as one; where two know a block, the faster time counts.

    Raises:
        PolicyError: there is none, or they were not measured under the same conditions.
    """
    if not profiles:
        raise PolicyError("expected at least one profile to merge, came none")
    for name in ("device", "host", "target", "target_version", "threads", "numerics", "basis"):
        found = list(dict.fromkeys(getattr(profile, name) for profile in profiles))
        if len(found) > 1:
            raise PolicyError(
                f"profiles to merge: {name}: expected the same in all, came {found[0]!r} and {found[1]!r}"
            )
    return profiles[-1].model_copy(
        update={
            "run_s": median(profile.run_s for profile in profiles),
            "boundary_s_per_byte": median(profile.boundary_s_per_byte for profile in profiles),
            "blocks": _fastest([pair for profile in profiles for pair in profile.blocks.items()]),
        }
    )


def _fastest(times: Sequence[tuple[str, BlockTime]]) -> dict[str, BlockTime]:
    found: dict[str, BlockTime] = {}
    for name, block in times:
        if name not in found or block.added_s < found[name].added_s:
            found[name] = block
    return found
