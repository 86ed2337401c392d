"""A generative program as one model to plan and build: linked, with the sizes and the lengths that plans are made for.

A plan needs numbers: how long the input is, how many tokens it gives. What the user does not say follows from the
program's facts here, and notes say what was assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.layered import Answer
from flagsplit.apps.programs import ZOO_PREFIX, is_program, open_program
from flagsplit.errors import ConfigError
from flagsplit.flagir import Skeleton
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.flagir.loops import say_trips
from flagsplit.flagir.programs import Program, ProgramFacts
from flagsplit.flagir.programs.link import link

_INPUT_S = 10.0
"""Length of the input that is planned for where nobody says: a sentence or two."""
_TOKENS_PER_S = 3.0
"""Tokens of a second of speech: 150 words a minute, 1.2 tokens a word."""
_PROMPT_TOKENS = 32
_TEXT_TOKENS = 64
_MOST_TEXT_TOKENS = 256
_LONGEST_S = 1e9
"""An input that is longer than any."""


@dataclass(frozen=True)
class Linked:
    """A program as a model.

    Attributes:
        program: it.
        model: all of it, canonical; its weights are those of the program's graphs.
        options: those of the build, with sizes and tokens filled in.
        notes: what was assumed.
    """

    program: Program
    model: ir.Model
    options: BuildOptions
    notes: tuple[str, ...]


def program_of(source: Source) -> Program | None:
    """The program that a source names, or None if it is another model.

    Raises:
        ConfigError, ModelError, PeerError: it cannot be had.
    """
    if isinstance(source.model, Program):
        return source.model
    path = source.path
    if path is None:
        return None
    name = str(path)  # a zoo:NAME that is none is told by who knows the names
    return open_program(name) if name.startswith(ZOO_PREFIX) or is_program(name) else None


def link_program(program: Program, options: BuildOptions) -> Linked:
    """Link a program and fill in what its plans are made for.

    Raises:
        ConfigError: more tokens are expected than it makes at most.
    """
    facts, notes = program.facts, list[str]()
    most = min(options.max_tokens or _most_tokens(facts), facts.most_tokens(_LONGEST_S))
    model = link(program, most)
    options = replace(options, dims=_dims(model, facts, options, notes), max_tokens=most)
    options = replace(options, expected_tokens=options.expected_tokens or _expected(model, facts, options, notes))
    if options.expected_tokens > most:
        room = facts.most_tokens(_LONGEST_S)
        todo = "expect fewer" if most == room else f"give --max-tokens too, at most {room}"
        raise ConfigError(f"--expected-tokens {options.expected_tokens}: {facts.name} makes at most {most}; {todo}")
    _check_prompt(facts, options)
    tell_tokens(model, options.expected_tokens)
    return Linked(program, model, options, tuple(notes))


def _check_prompt(facts: ProgramFacts, options: BuildOptions) -> None:
    """A linked model would make nothing after a prompt that fills all positions."""
    if facts.input == "text":
        room = facts.most_tokens(0.0) - 1
        sizes = {**options.dims, **{name: high for name, (_, high) in options.spans.items()}}
        for name, size in sizes.items():
            if size > room:
                raise ConfigError(f"--dim {name}={size}: a prompt of {facts.name} has at most {room} tokens; give less")


def tell_tokens(model: ir.Model, tokens: int) -> None:
    """Say how often a linked model's loop runs: once for each token, and once for the stop token."""
    say_trips(model, tokens + 1)


def answer_of(program: Program, dims: Mapping[str, int], tokens: int) -> Answer:
    """How long prompt and answer of a program that reads text are planned to be, given the linked model's sizes."""
    return Answer(len(program.facts.prompt) + max(dims.values(), default=1), tokens)


def expect_trips(model: ir.Model, trips: int) -> None:
    """Say how often the loops of a model that is no program are expected to run.

    Raises:
        ConfigError: it has none.
    """
    if trips and not say_trips(model, trips):
        raise ConfigError(f"--expected-tokens {trips}: the model has no loop that could make tokens")


def _most_tokens(facts: ProgramFacts) -> int:
    if facts.input == "text":
        return min(_MOST_TEXT_TOKENS, facts.most_tokens(0.0))
    return facts.most_tokens(facts.max_input_s or 30.0)


def _dims(model: ir.Model, facts: ProgramFacts, options: BuildOptions, notes: list[str]) -> dict[str, int]:
    skeleton = Skeleton(model)
    known = {**flagir.dims_of_shapes(skeleton, options.shapes), **options.dims, **options.spans}
    free = [name for name in skeleton.symbols if name not in known]
    if not free:
        return dict(options.dims)
    if facts.input == "text":
        size = max(1, min(_PROMPT_TOKENS, facts.most_tokens(0.0) // 2))
        what = f"a prompt of {size} tokens"
    else:
        seconds = min(_INPUT_S, facts.max_input_s or _INPUT_S)
        rate = facts.sample_rate_hz if facts.input == "audio" else 100
        size, what = round(seconds * rate), f"{seconds:g} s of sound"
    notes.append(f"planned for {what} ({', '.join(f'{name}={size}' for name in free)}); --dim says otherwise")
    return {**options.dims, **dict.fromkeys(free, size)}


def _expected(model: ir.Model, facts: ProgramFacts, options: BuildOptions, notes: list[str]) -> int:
    if facts.input == "text":
        found = min(_TEXT_TOKENS, options.max_tokens)
    else:
        seconds = _seconds(model, facts, options)
        found = max(1, min(round(seconds * _TOKENS_PER_S), options.max_tokens, facts.most_tokens(seconds)))
    notes.append(f"planned for an answer of {found} tokens; --expected-tokens says otherwise")
    return found


def _seconds(model: ir.Model, facts: ProgramFacts, options: BuildOptions) -> float:
    """Length of the input at its nominal size."""
    skeleton = Skeleton(model)
    given = {**options.dims, **flagir.dims_of_shapes(skeleton, options.shapes)}
    wanted = {name: high for name, (_, high) in options.spans.items()} | given
    (shape,) = skeleton.inputs.values()
    last = shape[-1]
    size = last if isinstance(last, int) else wanted[str(last.value)]
    return size / (facts.sample_rate_hz if facts.input == "audio" else 100)
