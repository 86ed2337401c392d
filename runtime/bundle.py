"""An opened bundle: its facts, its pool of plans, and the segments that each plan runs.

Members are unpacked once into the cache (`flagsplit.runtime.archive`); nothing is loaded until it is asked for. How a
bundle is made is in `flagsplit.apps.assembly`.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flagsplit.errors import BundleError, PolicyError
from flagsplit.runtime.archive import Progress, unpack
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.manifest import Facts, Tensor, TierArtifact
from flagsplit.runtime.program_parts import FOLDER, PARTS_NAME, ProgramFolder, ProgramParts
from flagsplit.splitter import reading
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Executable, LoadOptions, StoredArtifact

PLANS_NAME = "plans.json"
GRAPH_NAME = "flagir/model.onnx"
WEIGHTS_MEMBER = "flagir/weights.bin"
REFERENCE_TARGET = "ort"
"""The target that every tier of every bundle has artifacts of: it runs anywhere, and gives the answers that count."""

_MAX_PLANS_BYTES = 256 << 20
_NOMINAL = ("slowdown", "up_s_per_byte", "down_s_per_byte", "up_s_per_message", "down_s_per_message")


@dataclass(frozen=True)
class PlanSet:
    """What `plans.json` holds.

    Attributes:
        pool: the plans with their features.
        steps: for each plan, its segments in execution order.
        nominal: the state of tiers and links that the plans were predicted for.
        reasons: why the first plan was chosen, one sentence each.
        answers: by plan, the names under which it makes graph outputs, where they are others: what a codec's loss has
            reached is not the output that an exact plan makes, and does not stand in for it.
    """

    pool: Pool
    steps: Mapping[str, tuple[PlannedStep, ...]]
    nominal: State
    reasons: tuple[str, ...]
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The bytes of `plans.json`."""
        data: dict[str, Any] = {
            "pool": json.loads(self.pool.to_json()),
            "steps": {
                name: [
                    {"tier": s.tier, "segment": s.segment, "inputs": list(s.inputs), "outputs": list(s.outputs)}
                    for s in steps
                ]
                for name, steps in self.steps.items()
            },
            "nominal": {name: list(getattr(self.nominal, name)) for name in (*_NOMINAL, "alive")},
            "reasons": list(self.reasons),
        }
        if self.answers:
            data["answers"] = {plan: dict(names) for plan, names in self.answers.items()}
        return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "PlanSet":
        """Read what `to_json` wrote.

        Raises:
            BundleError: it is damaged.
        """
        try:
            data = reading.parse_object(text, PLANS_NAME)
            pool = Pool.from_json(json.dumps(data["pool"]))
            ways = reading.as_object(data["steps"], "steps")
            steps = {
                plan.name: tuple(
                    _read_step(step, len(pool.tiers), f"steps.{plan.name}[{at}]")
                    for at, step in enumerate(reading.array(ways, plan.name, "steps"))
                )
                for plan in pool.plans
            }
            nominal = _read_state(reading.as_object(data["nominal"], "nominal"), pool)
            answers = _read_answers(reading.as_object(data.get("answers", {}), "answers"), pool)
            reasons = reading.texts({"reasons": [], **data}, "reasons", PLANS_NAME)
        except (KeyError, TypeError, ValueError, RecursionError, PolicyError) as error:
            raise BundleError(f"the bundle's {PLANS_NAME} is damaged ({error}); build the bundle again") from None
        return cls(pool, steps, nominal, reasons, answers)

    def check_values(self, inputs: Collection[str], outputs: Collection[str]) -> None:
        """Whether each plan makes every value before it is read, and all graph outputs.

        Raises:
            BundleError: one does not.
        """
        for name, steps in self.steps.items():
            made = set(inputs)
            for step in steps:
                lacking = [value for value in step.inputs if value not in made]
                if lacking:
                    raise BundleError(f"{PLANS_NAME}: plan {name!r} reads {lacking[0]!r} before it is made; damaged")
                made.update(step.outputs)
            answers = self.answers.get(name, {})
            if not steps or not made.issuperset(answers.get(output, output) for output in outputs):
                raise BundleError(f"{PLANS_NAME}: plan {name!r} does not make all outputs; build the bundle again")


def _read_step(data: object, tiers: int, where: str) -> PlannedStep:
    record = reading.as_object(data, where)
    return PlannedStep(
        reading.integer(record["tier"], f"{where}.tier", tiers),
        reading.text(record, "segment", where),
        reading.texts(record, "inputs", where),
        reading.texts(record, "outputs", where),
    )


def _read_state(record: Mapping[str, Any], pool: Pool) -> State:
    tiers, links = len(pool.tiers), len(pool.plans[0].features.up_bytes)
    alive = reading.array(record, "alive", "nominal", tiers)
    figures = {
        name: reading.numbers(record, name, "nominal", tiers if name == "slowdown" else links) for name in _NOMINAL
    }
    return State(**figures, alive=tuple(map(bool, alive)))


def _read_answers(record: Mapping[str, Any], pool: Pool) -> dict[str, Mapping[str, str]]:
    known = {plan.name for plan in pool.plans}
    if not known.issuperset(record):
        raise BundleError(f"answers: plan {sorted(set(record) - known)[0]!r} is not in the pool")
    answers = {plan: reading.as_object(names, f"answers.{plan}") for plan, names in record.items()}
    return {
        plan: {output: reading.text(names, output, f"answers.{plan}") for output in names}
        for plan, names in answers.items()
    }


class Bundle:
    """A bundle that was unpacked and verified. Make it with `open_bundle`.

    Attributes:
        path: the bundle file.
        folder: where its members are.
        digest: SHA-256 of its manifest; peers compare it.
        facts: model, tiers, inputs, outputs, sizes.
        plans: the pool, its steps and its nominal state.
    """

    def __init__(self, path: Path, folder: Path, digest: str, facts: Facts) -> None:
        self.path = path
        self.folder = folder
        self.digest = digest
        self.facts = facts
        plans = folder / PLANS_NAME
        if not plans.is_file() or plans.stat().st_size > _MAX_PLANS_BYTES:
            raise BundleError(f"{path} has no usable {PLANS_NAME}; build the bundle again")
        self.plans = PlanSet.from_json(plans.read_bytes())
        if self.plans.pool.tiers != self.tiers:
            raise BundleError(f"{path}: its plans are for {self.plans.pool.tiers}, its tiers are {self.tiers}; damaged")
        self.plans.check_values({tensor.name for tensor in self.inputs}, {tensor.name for tensor in self.outputs})

    @cached_property
    def program(self) -> ProgramParts | None:
        """The generative program that it was built from, to decode token by token; None if it was another model.

        Raises:
            BundleError: it is damaged.
        """
        if PARTS_NAME not in self.facts.sizes:
            return None
        return ProgramParts(
            ProgramFolder(
                folder=self.folder / FOLDER,
                weights=self.folder / WEIGHTS_MEMBER,
                tiers=self.tiers,
                segments=[frozenset(self.segments_of(tier)) for tier in range(len(self.tiers))],
                inputs=frozenset(tensor.name for tensor in self.inputs),
            )
        )

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers, in the order of the line."""
        return tuple(tier.name for tier in self.facts.tiers)

    @property
    def inputs(self) -> Sequence[Tensor]:
        """What a request takes."""
        return self.facts.inputs

    @property
    def outputs(self) -> Sequence[Tensor]:
        """What a request gives."""
        return self.facts.outputs

    @property
    def sizes(self) -> tuple[Mapping[str, tuple[int, int]], Mapping[str, Sequence[int]]]:
        """By symbol, the smallest and largest size of a request; and the only ones, where they are listed."""
        return self.facts.dim_ranges, self.facts.dim_sizes

    def plan(self, name: str) -> Plan:
        """The plan of that name.

        Raises:
            PolicyError: the pool has none of that name; the message lists them.
        """
        return self.plans.pool.plan(name)

    def tier_index(self, name: str) -> int:
        """The position of a tier.

        Raises:
            PolicyError: the bundle has no such tier.
        """
        if name not in self.tiers:
            raise PolicyError(f"expected a tier of this bundle ({', '.join(self.tiers)}), came {name!r}")
        return self.tiers.index(name)

    def segments_of(self, tier: int) -> dict[str, PlannedStep]:
        """All segments that a tier runs under any plan, by id; those of the first plans come first."""
        return {
            step.segment: step
            for plan in self.plans.pool.plans
            for step in self.plans.steps[plan.name]
            if step.tier == tier
        }

    def load(self, tier: int, segment: str, options: LoadOptions) -> Executable:
        """Load a segment for this host.

        Args:
            tier: position of the tier.
            segment: id of one of its segments.
            options: choices of this host.

        Raises:
            BundleError: the artifact is missing or cannot be loaded.
        """
        made = self.artifact_for(tier, segment, options.target)
        return get_target(made.target).load(self.stored(made), segment, options)

    def artifact_for(self, tier: int, segment: str, target: str = "") -> TierArtifact:
        """The artifact that a segment is run from.

        Args:
            tier: position of the tier.
            segment: id of one of its segments.
            target: the one that is wanted; "" for ONNX Runtime. What a chip does not take, a later one does.

        Raises:
            PolicyError: the bundle has none of that target for the tier.
        """
        made = self.artifact(tier, target)
        if segment in made.entries or not target:
            return made
        reference, *chips = self.facts.tiers[tier].artifacts
        return next((each for each in (*chips, reference) if segment in each.entries), made)

    def artifact(self, tier: int, target: str = "") -> TierArtifact:
        """What a target made for a tier.

        Args:
            tier: position of the tier.
            target: its name; "" for ONNX Runtime, which every tier has.

        Raises:
            PolicyError: the bundle has none of that target for the tier; the message lists those that it has.
        """
        made = {artifact.target: artifact for artifact in self.facts.tiers[tier].artifacts}
        if (target or REFERENCE_TARGET) not in made:
            raise PolicyError(
                f"tier {self.tiers[tier]} of this bundle has artifacts of {', '.join(made)}, "
                f"none of {target or REFERENCE_TARGET}; build it with --target {self.tiers[tier]}={target or 'ort'}"
            )
        return made[target or REFERENCE_TARGET]

    def stored(self, made: TierArtifact) -> StoredArtifact:
        """One of its artifacts, where it lies on this host.

        Raises:
            BundleError: its path leaves the bundle's folder.
        """
        folder = (self.folder / made.folder).resolve()
        if not folder.is_relative_to(self.folder.resolve()):
            raise BundleError(f"an artifact lies at {made.folder!r}, outside the bundle; refused")
        return StoredArtifact(folder, made.entries, made.options, self.folder / WEIGHTS_MEMBER)

    def chains_of(self, tier: int) -> Mapping[str, tuple[str, ...]]:
        """For segments of a tier that can be run as atoms, the ids of these in the order in which they run.

        Raises:
            BundleError: a chain names a part that the bundle does not have.
        """
        artifact = self.artifact(tier)
        for segment, chain in artifact.chains.items():
            absent = [part for part in chain if part not in artifact.entries]
            if absent or not chain:
                what = f"lacks its part {absent[0]!r}" if absent else "has no parts"
                raise BundleError(f"segment {segment!r} of tier {self.tiers[tier]} {what}; build the bundle again")
        return {segment: tuple(chain) for segment, chain in artifact.chains.items()}

    def load_whole(self, options: LoadOptions) -> Executable:
        """Load the unsplit model: the reference that every split run must match."""
        return load_graph(self.folder / GRAPH_NAME, self, options)


def load_graph(file: Path, bundle: Bundle, options: LoadOptions) -> Executable:
    """Load a graph of a bundle's weights with ONNX Runtime on the CPU, numerics as in its artifacts.

    Args:
        file: an ONNX model whose external data is the weights of the bundle.
        bundle: whose weights.
        options: choices of this host.

    Raises:
        BundleError: the engine cannot load it.
    """
    made = bundle.artifact(0).options
    numerics = {"numerics": made["numerics"]} if "numerics" in made else {}
    stored = StoredArtifact(file.parent, {"": file.name}, numerics, bundle.folder / WEIGHTS_MEMBER)
    return get_target(REFERENCE_TARGET).load(stored, "", options)


def default_cache() -> Path:
    """Where unpacked bundles and pulled models are kept: `$FLAGSPLIT_CACHE`, else `~/.cache/flagsplit`."""
    given = os.environ.get("FLAGSPLIT_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "flagsplit"


def open_bundle(path: Path, cache: Path | None = None, progress: Progress | None = None) -> Bundle:
    """Open a bundle, unpacking it into the cache if it is not there yet.

    Args:
        path: a `.flagsplit` file.
        cache: where to unpack; `default_cache()` by default.
        progress: called with bytes done and bytes in all while unpacking.

    Raises:
        BundleError: the file is missing, damaged, or of another major version.
        ConfigError: the cache cannot be written.
    """
    unpacked = unpack(path, (cache or default_cache()) / "bundles", progress)
    return Bundle(path, unpacked.folder, unpacked.digest, unpacked.manifest.predicate)
