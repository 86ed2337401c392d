"""`flagsplit.verify`: the words of the command line as a function, plain values in and a report out."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from flagsplit.apps.samples import given_sample, random_samples, real_sample
from flagsplit.apps.tolerances import read_tolerances
from flagsplit.apps.verification import VerifyReport
from flagsplit.apps.verifier import Progress, VerifyOptions, verify_bundle
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.targets.interface import LoadOptions

AnyPath = str | PathLike[str]


def verify(
    bundle: Bundle | AnyPath,
    inputs: Sequence[Mapping[str, Any] | AnyPath] = (),
    *,
    samples: Sequence[str] = (),
    random: int | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    plans: Sequence[str] = (),
    tiers: Sequence[str] = (),
    targets: Sequence[str] = (),
    tolerances: Sequence[str] = (),
    bisect: bool = True,
    threads: int = 1,
    progress: Progress = lambda _what, _share: None,
) -> VerifyReport:
    """Compare every artifact of every plan with the ONNX reference, and find the node where one goes wrong.

    Args:
        bundle: a bundle or its path.
        inputs: requests to verify on: arrays by name, or paths of `.npz` files.
        samples: names of pictures or recordings of the zoo to verify on, or paths of WAV files.
        random: how many requests to make up; by default 1 if nothing else is given. Random numbers reach less of what a
            model does than data does.
        seed: of the first of them.
        dims: a size for open dimensions of made-up requests.
        plans, tiers, targets: names of those to look at; empty for all.
        tolerances: `[TARGET=]NUMBER`, `[TARGET=]cosine:NUMBER` or `[TARGET=]exact` in place of the built-in ones;
            without a target it is for all that need not be exact.
        bisect: whether to look for where a segment that departs goes wrong.
        threads: how many threads ONNX Runtime may use; 0 lets it choose.
        progress: called with what is being done and the share done, 0 to 1.

    Returns:
        The report; `report.departs` says whether anything is wrong.

    Raises:
        BundleError, InputError, PolicyError, ConfigError: what was asked cannot be done; the message says why.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    options = VerifyOptions(
        plans, tiers, targets, read_tolerances(tolerances), bisect=bisect, host=LoadOptions(threads=threads)
    )
    found = [
        given_sample(opened, each if isinstance(each, Mapping) else Path(each), f"inputs[{at}]")
        for at, each in enumerate(inputs)
    ]
    found += [real_sample(opened, name) for name in samples]
    count = random if random is not None else int(not found)
    found += random_samples(opened, count, seed, dims or {})
    return verify_bundle(opened, found, options, progress)
