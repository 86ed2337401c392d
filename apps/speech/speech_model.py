"""A speech model out of a program's folder or a bundle of one, with the plans under which its tokens can be made.

A plan says what this side runs of the encoder and which tier runs the loop. What is open of a plan on this side is in
`encoding.py`; who is asked for the tokens is decided in `opening.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagsplit.apps.decoder_service.bundle_source import bundle_source
from flagsplit.apps.decoder_service.program_source import ProgramSource, folder_source
from flagsplit.apps.speech.encoding import Before, Chain
from flagsplit.apps.speech.encoding_elsewhere import DividedEncoder, Reach
from flagsplit.apps.speech.features import SoundInput, sound_input
from flagsplit.errors import ConfigError
from flagsplit.flagir.programs import ProgramFacts, load_program
from flagsplit.flagir.store import WEIGHTS_NAME
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.program_parts import ProgramParts
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Executable, LoadOptions
from flagsplit.targets.onnx_engine import open_onnx

ALL_PHONE: Final = "all-phone"
SPLIT: Final = "split"
ALL_CLOUD: Final = "all-cloud"
_HIDDEN: Final = "hidden"


@dataclass(frozen=True)
class SpeechPlan:
    """A plan under which a model makes its tokens.

    Attributes:
        name: for people.
        cut: what decoder services call it.
        tier: the tier that runs the loop.
        open_before: opens what runs before the loop's tier, from the sound to the tensors that cross; it is told how to
            reach workers.
        open_rest: opens, on this side, what leads from those to the hidden states; gives None where they are these.
        between: tiers beyond this side that run a part of the encoder, before the loop's.
    """

    name: str
    cut: str
    tier: str
    open_before: Callable[[Reach], Before]
    open_rest: Callable[[], Executable | None]
    between: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeechModel:
    """A speech model.

    Attributes:
        facts: of its program.
        tokenizer: its file.
        digest: by which decoder services know it.
        own: the tier that this side is.
        sound: its input.
        plans: by name, the best first.
        unserved: by name of each plan that cannot be used here, why.
        open_steps: opens the loop's steps on this side.
        source: what a decoder service of a tier serves.
    """

    facts: ProgramFacts
    tokenizer: bytes
    digest: str
    own: str
    sound: SoundInput
    plans: Mapping[str, SpeechPlan]
    unserved: Mapping[str, str]
    open_steps: Callable[[], OrtStepModel]
    source: Callable[[str], ProgramSource]

    def plan(self, name: str, *, elsewhere: bool, workers: Collection[str] = ()) -> SpeechPlan:
        """The plan of that name; "" for the best whose loop is elsewhere, or else here, with workers of these tiers.

        Raises:
            ConfigError: there is none, or it has no use for a worker.
        """
        if name in self.plans:
            idle = [tier for tier in workers if tier not in self.plans[name].between]
            if idle:
                raise ConfigError(
                    f"plan {name} runs no part of the encoder on {idle[0]}; leave out --tier {idle[0]}=… or take "
                    "another plan"
                )
            return self.plans[name]
        there = ", ".join(self.plans)
        if name:
            why = f": {self.unserved[name]}" if name in self.unserved else ""
            raise ConfigError(f"cannot transcribe under plan {name!r:.80}{why}; there are {there}")
        wanted = (each for each in self.plans.values() if (each.tier != self.own) == elsewhere)
        found = next((each for each in wanted if set(each.between) == set(workers)), None)
        if found is None:
            beside = f" and a part of its encoder on {', '.join(workers)}" if workers else ""
            raise ConfigError(
                f"no plan has its loop {'elsewhere' if elsewhere else 'here'}{beside}; there are {there}; see --plan"
            )
        return found

    @property
    def can_run_here(self) -> bool:
        """Whether a plan allows the loop on this side, so that it may go on here when services go."""
        return any(plan.tier == self.own for plan in self.plans.values())

    @property
    def own_plan(self) -> SpeechPlan | None:
        """The plan that needs nobody else, if there is one."""
        alone = (plan for plan in self.plans.values() if plan.tier == self.own and not plan.between)
        return next(alone, None)


def folder_model(folder: Path, threads: int) -> SpeechModel:
    """The model of a program's folder: its plans are all-phone, split behind the encoder, and all-cloud.

    Raises:
        ConfigError: it is not for speech.
        ModelError: it is damaged.
    """
    program = load_program(folder)
    (entry,) = program.graphs["encode"].graph.inputs if "encode" in program.graphs else (None,)
    if entry is None or entry.shape is None:
        raise ConfigError(f"expected a program that reads sound, {program.facts.name} reads {program.facts.input}")
    name = entry.name or ""
    source = folder_source(folder)
    own, cloud = source.tiers
    entered = next(plan for plan, tensors in source.cuts.items() if tensors == (name,))

    def encode() -> Executable:
        weights = folder / WEIGHTS_NAME
        return open_onnx(folder / "encode.onnx", weights if weights.is_file() else None, "fast", threads)

    def nothing(_reach: Reach) -> Chain:
        return Chain((), (name,))

    def whole(_reach: Reach) -> Chain:
        return Chain(((encode(), (name,)),), (_HIDDEN,))

    plans = (
        SpeechPlan(ALL_PHONE, _HIDDEN, own, whole, lambda: None),
        SpeechPlan(SPLIT, _HIDDEN, cloud, whole, lambda: None),
        SpeechPlan(ALL_CLOUD, entered, cloud, nothing, encode),
    )
    return SpeechModel(
        program.facts,
        program.tokenizer,
        source.digest,
        own,
        sound_input(program.facts, name, [dim if isinstance(dim, int) else str(dim) for dim in entry.shape]),
        {plan.name: plan for plan in plans},
        {},
        lambda: OrtStepModel(folder, slots=1, threads=threads),
        lambda tier: folder_source(folder, (own, tier)),
    )


def bundle_model(bundle: Bundle, threads: int) -> SpeechModel:
    """The model of a bundle: its plans are those of the pool.

    Raises:
        BundleError: it is damaged.
        ConfigError: it has no program, or one that is not for speech.
    """
    parts = bundle.program
    if parts is None:
        raise ConfigError(f"{bundle.path} has no program, only a model; build it of a program, such as zoo:moonshine")
    if parts.facts.input == "text":
        raise ConfigError(f"expected a program that reads sound, {parts.facts.name} reads text")
    (entry,) = bundle.inputs
    last = str(entry.shape[-1])
    ranges, listed = bundle.sizes
    sound = sound_input(parts.facts, entry.name, entry.shape, listed.get(last, ()), ranges.get(last, (0, 0)))
    served = [plan.name for plan in bundle.plans.pool.plans if plan.name in parts.plans]
    return SpeechModel(
        parts.facts,
        parts.tokenizer,
        bundle.digest,
        bundle.tiers[0],
        sound,
        {name: _bundle_plan(bundle, parts, name, threads) for name in served},
        parts.unserved,
        lambda: OrtStepModel(parts.folder, slots=1, threads=threads, weights=parts.weights),
        lambda tier: bundle_source(bundle, tier),
    )


def _bundle_plan(bundle: Bundle, parts: ProgramParts, name: str, threads: int) -> SpeechPlan:
    found, host = parts.plan(name), LoadOptions(threads=threads)
    between = tuple(bundle.tiers[tier] for tier in sorted({step.tier for step in found.before} - {0}))

    def before(reach: Reach) -> Before:
        if between:
            return DividedEncoder(bundle, name, between, reach)
        steps = [(bundle.load(step.tier, step.segment, host), step.inputs) for step in found.before]
        return Chain(steps, tuple(tensor.name for tensor in found.boundary))

    tier = bundle.tiers[found.loop_tier]
    return SpeechPlan(name, name, tier, before, lambda: parts.load_hidden(name, host), between)
