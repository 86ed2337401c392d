"""A generative program inside a bundle: what a decoder serves from, and what a phone opens a stream with.

The bundle's plans place the linked model, whose loop is one block. A decoder runs that loop itself, token by token,
from the program's own graphs; what reaches it are the tensors that the plan cuts. `parts.json` says for each plan which
these are and which graph leads from them to the hidden state. All graphs share the bundle's weights. Format:
docs/bundle.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagsplit.errors import BundleError, FlagsplitError, PolicyError
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs.program import Program, ProgramFacts, check_graphs, graph_names
from flagsplit.flagir.programs.store import FACTS_NAME, MAX_FACTS_BYTES, MAX_TOKENIZER_BYTES, TOKENIZER_NAME
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.manifest import Tensor
from flagsplit.splitter.pool import Pool
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Executable, LoadOptions, StoredArtifact

FOLDER = "program"
"""Where a bundle has its program, if it has one."""
PARTS_NAME = f"{FOLDER}/parts.json"
LAYER_PLANS_NAME = f"{FOLDER}/layer-plans.json"

_TARGET = "ort"
_MAX_PARTS_BYTES = 16 << 20
_Name = Annotated[str, Field(min_length=1, max_length=4096)]
_Count = Annotated[int, Field(ge=0, le=1 << 20)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PlanParts(_Frozen):
    """How a stream is served under one plan.

    Attributes:
        loop_tier: position of the tier that holds the caches and makes the tokens. Of a program that is cut between
            layers it is the tier of the last layers and of the logits.
        boundary: what a stream is opened with on that tier, in order: name, element type, shape. The graph's inputs
            where nothing runs before; none where tokens alone are needed.
        before: what the tiers before it run to make the boundary, in order; none where it is the graph's inputs.
        hidden: file that leads from the boundary to `hidden`, within the program's folder; None where the boundary is
            `hidden` itself, and for programs without an encoder.
        layers: of a decoder-only program, how many layers run on the first tier, the embedding with them; None: none
            does, or all do and the loop's tier is the first.
        first, rest: files of the two parts of the step graph where `layers` is a number: tokens to `rows` and `rows` to
            logits.
    """

    loop_tier: Annotated[int, Field(ge=0, le=15)]
    boundary: Annotated[tuple[Tensor, ...], Field(max_length=1024)] = ()
    before: tuple[PlannedStep, ...] = ()
    hidden: _Name | None = None
    layers: _Count | None = None
    first: _Name | None = None
    rest: _Name | None = None


class PartsFile(_Frozen):
    """What `parts.json` holds.

    Attributes:
        plans: by name of each plan that streams can be served under; of the bundle's pool, and of the layer plans.
        unserved: by name of each plan of the pool that they cannot, why.
        expected_tokens: that the plans were made for.
    """

    plans: dict[_Name, PlanParts]
    unserved: dict[_Name, str] = {}
    expected_tokens: _Count = 0

    def to_json(self) -> bytes:
        """The bytes of `parts.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True)
class ProgramFolder:
    """Where the program of an unpacked bundle lies.

    Attributes:
        folder: of its files.
        weights: the bundle's weights.
        tiers: names of the bundle's tiers.
        segments: by tier, the ids of the segments that it has.
        inputs: names of the graph's inputs.
    """

    folder: Path
    weights: Path
    tiers: tuple[str, ...]
    segments: Sequence[frozenset[str]]
    inputs: frozenset[str]


class ProgramParts:
    """The program of a bundle. `Bundle.program` makes it; nothing but facts and `parts.json` is read before it is used.

    Attributes:
        facts: what the program is.
        plans: by name, how streams are served under a plan.
        unserved: by name of each pooled plan under which they are not, why.
        expected_tokens: that the plans were made for.
    """

    def __init__(self, where: ProgramFolder) -> None:
        self._where = where
        read = _read_parts(where)
        try:
            self.facts = ProgramFacts.from_json(_bytes(where.folder / FACTS_NAME, MAX_FACTS_BYTES))
        except FlagsplitError as error:
            raise BundleError(f"the bundle's program is damaged: {error}") from None
        self.plans: Mapping[str, PlanParts] = read.plans
        self.unserved: Mapping[str, str] = read.unserved
        self.expected_tokens = read.expected_tokens

    @property
    def folder(self) -> Path:
        """Where its graphs are: `step.onnx` and others, whose external data is in `weights`."""
        return self._where.folder

    @property
    def weights(self) -> Path:
        """The file with the weights of all graphs."""
        return self._where.weights

    @cached_property
    def tokenizer(self) -> bytes:
        """The tokenizer's file, in the format that the facts name."""
        return _bytes(self.folder / TOKENIZER_NAME, MAX_TOKENIZER_BYTES)

    @cached_property
    def layer_plans(self) -> Pool | None:
        """Of a decoder-only program, the plans over its layers with their figures; None for others.

        Raises:
            BundleError: they are damaged.
        """
        path = self._where.folder.parent / LAYER_PLANS_NAME
        if not path.is_file():
            return None
        pool = Pool.from_json(_bytes(path, _MAX_PARTS_BYTES).decode())
        if pool.tiers != self._where.tiers:
            raise BundleError(f"{LAYER_PLANS_NAME}: expected plans over {', '.join(self._where.tiers)}")
        return pool

    def plan(self, name: str) -> PlanParts:
        """How streams are served under a plan.

        Raises:
            PolicyError: they are not, or there is none of that name; the message says which there are.
        """
        if name in self.plans:
            return self.plans[name]
        why = f": {self.unserved[name]}" if name in self.unserved else ""
        raise PolicyError(f"no stream can be served under plan {name!r:.80}{why}; there are {', '.join(self.plans)}")

    def load_hidden(self, plan: str, options: LoadOptions) -> Executable | None:
        """What leads from a plan's boundary to `hidden` on the loop's tier.

        Returns:
            An executable whose inputs are the boundary and whose output is `hidden`; None where the boundary is that
            already, or the program has no encoder.

        Raises:
            BundleError: the engine cannot load it.
        """
        file = self.plan(plan).hidden
        return None if file is None else self.load(file, options)

    def load(self, file: str, options: LoadOptions) -> Executable:
        """Open one of the program's graphs with ONNX Runtime, such as `encode.onnx`.

        Raises:
            BundleError: there is none, or the engine cannot load it.
        """
        stored = StoredArtifact(self.folder, {"": file}, {}, self.weights)
        return get_target(_TARGET).load(stored, "", options)

    def graph(self, file: str) -> ir.Model:
        """One of the program's graphs; its weights stay on disk until used.

        Raises:
            BundleError: it is missing or damaged.
        """
        try:
            return read_model(_inside(self.folder, file), self.weights.parent)
        except FlagsplitError as error:
            raise BundleError(f"the bundle's program is damaged: {error}") from None

    def program(self) -> Program:
        """The whole program, to make steps with or to link again; its weights stay on disk until used.

        Raises:
            BundleError: it is damaged.
        """
        program = Program(
            self.facts, {name: self.graph(f"{name}.onnx") for name in graph_names(self.facts.kind)}, self.tokenizer
        )
        try:
            check_graphs(program)
        except FlagsplitError as error:
            raise BundleError(f"the bundle's program is damaged: {error}") from None
        return program


def _read_parts(where: ProgramFolder) -> PartsFile:
    name = PARTS_NAME.removeprefix(f"{FOLDER}/")
    try:
        read = PartsFile.model_validate_json(_bytes(where.folder / name, _MAX_PARTS_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise BundleError(f"{PARTS_NAME} is damaged at {at[:200]}: {first['msg']}; build the bundle again") from None
    for plan, parts in read.plans.items():
        _check_plan(where, plan, parts)
    return read


def _check_plan(where: ProgramFolder, plan: str, parts: PlanParts) -> None:
    """That a plan's tiers, segments and files are those of the bundle, and that each step has what it reads."""

    def damaged(why: str) -> BundleError:
        return BundleError(f"{PARTS_NAME}: plan {plan!r:.80} {why}; build the bundle again")

    if parts.loop_tier >= len(where.tiers):
        raise damaged(f"has its loop on tier {parts.loop_tier}, of {len(where.tiers)}")
    if (parts.layers is None) != (parts.first is None) or (parts.first is None) != (parts.rest is None):
        raise damaged("is cut between layers without both parts")
    for step in parts.before:
        if not 0 <= step.tier < len(where.tiers) or step.segment not in where.segments[step.tier]:
            raise damaged(f"runs a segment {step.segment!r:.40} that no tier has")
    for file in (parts.hidden, parts.first, parts.rest):
        if file is not None and not _inside(where.folder, file).is_file():
            raise damaged(f"lacks its graph {file!r:.80}")
    made = where.inputs.union(*(step.outputs for step in parts.before))
    lacking = [tensor.name for tensor in parts.boundary if parts.first is None and tensor.name not in made]
    if lacking:
        raise damaged(f"needs {lacking[0]!r:.80}, which nothing makes")


def _inside(folder: Path, name: str) -> Path:
    found = (folder / name).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise BundleError(f"a graph of the program lies at {name!r:.80}, outside its folder; refused")
    return found


def _bytes(path: Path, most: int) -> bytes:
    try:
        if path.stat().st_size > most:
            raise BundleError(f"{path.name} of the bundle's program has over {most} bytes; refused")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"the bundle's program has no usable {path.name}: {error.strerror}; get it again") from None
