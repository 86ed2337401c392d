"""A program: a generative model as several graphs, and the facts by which its tokens are made.

`encode` turns the input into hidden states, `prefill` those into the keys and values of cross-attention, and `step`
takes tokens and the keys and values of those before to the logits of the next. The form of the graphs is specified in
docs/programs.md; `check_graphs` says whether they have it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

import onnx_ir as ir

from flagsplit.errors import ModelError

Kind = Literal["encoder-decoder", "decoder-only"]
InputKind = Literal["audio", "log-mel", "text"]
TokenizerKind = Literal["moonshine", "tokenizer.json", "gguf"]
GraphName = Literal["encode", "prefill", "step"]

MAX_TOKENS_OF_FACTS = 4096
"""Tokens that any list of the facts may hold."""
MAX_TEXT = 16_384
"""Characters that any text of the facts may have."""
MAX_SIZE = 1 << 24
"""More than any size of the facts has."""
MAX_LAYERS = 1024
"""Layers of a decoder; each has inputs and outputs of its own."""


@dataclass(frozen=True)
class ProgramFacts:
    """What is to know of a program besides its graphs.

    Attributes:
        name: short, for people and file names.
        kind: whether there are `encode` and `prefill`.
        source: where the weights are from.
        license: SPDX identifier.
        layers: of the decoder.
        heads: of its attention.
        kv_heads: heads of keys and values; fewer than `heads` where several share them.
        head_size: elements of a head.
        width: elements of a hidden state.
        vocabulary: how many tokens there are.
        max_positions: tokens that a stream may have, prompt included.
        input: what `encode` reads; a decoder reads text.
        tokenizer: the format of the tokenizer's bytes.
        prompt: tokens that every generation starts with.
        stop_tokens: tokens that end it; they are not part of the answer.
        suppressed: tokens that are never made.
        begin_suppressed: tokens that are not the first one made.
        no_speech_token: whose probability at the first step says that nobody speaks; None where there is none.
        first_timestamp_token: the token of the time 0, with those of later times after it to the end of the vocabulary;
            None where there are none.
        timestamp_s: from the time of one such token to the next.
        no_timestamps_token: the token of the prompt that says that there are to be no times; None where there is none.
        sample_rate_hz: of the audio.
        tokens_per_s: most tokens for a second of input; 0: no such rule.
        frames_per_s: hidden states for a second of audio.
        max_input_s: longest input in one piece; 0: no limit.
        template: how an instruction becomes a prompt, with `{prompt}` in it; empty: as it is.
    """

    name: str
    kind: Kind
    source: str
    license: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    vocabulary: int
    max_positions: int
    input: InputKind
    tokenizer: TokenizerKind
    prompt: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    suppressed: tuple[int, ...] = ()
    begin_suppressed: tuple[int, ...] = ()
    no_speech_token: int | None = None
    first_timestamp_token: int | None = None
    timestamp_s: float = 0.0
    no_timestamps_token: int | None = None
    sample_rate_hz: int = 16_000
    tokens_per_s: float = 0.0
    frames_per_s: float = 0.0
    max_input_s: float = 0.0
    template: str = ""

    def __post_init__(self) -> None:
        wrong = next(_wrong_facts(self), None)
        if wrong is not None:
            raise ModelError(f"the facts of program {self.name!r:.60} are wrong: {wrong}")

    @property
    def past_names(self) -> tuple[str, ...]:
        """Inputs of `step` that hold the keys and values of the tokens before, layer by layer."""
        return _cache_names("past", self.layers)

    @property
    def new_names(self) -> tuple[str, ...]:
        """Outputs of `step` with the keys and values of its tokens, in the order of `past_names`."""
        return _cache_names("new", self.layers)

    @property
    def cross_names(self) -> tuple[str, ...]:
        """Outputs of `prefill` and inputs of `step`, the keys and values of cross-attention; none without encoder."""
        return _cache_names("cross", self.layers) if self.kind == "encoder-decoder" else ()

    @property
    def timestamp_prompt(self) -> tuple[int, ...]:
        """The prompt after which there are times among the tokens."""
        return tuple(token for token in self.prompt if token != self.no_timestamps_token)

    def most_tokens(self, input_s: float) -> int:
        """How many tokens an input of this length may give, without the prompt and the stop token.

        Where the hidden states are there, `most_tokens_of` counts as a linked program does.
        """
        room = self.max_positions - len(self.prompt)
        # What is a whole number may come out a little below it.
        return min(room, int(input_s * self.tokens_per_s + 1e-6)) if self.tokens_per_s else room

    @property
    def tokens_per_frame(self) -> Fraction | None:
        """Most tokens for a hidden state; None where there is no such rule."""
        if not (self.tokens_per_s and self.frames_per_s):
            return None
        return Fraction(self.tokens_per_s / self.frames_per_s).limit_denominator(10_000)

    def most_tokens_of(self, frames: int) -> int:
        """How many tokens an input with so many hidden states may give: those that a linked program makes at most."""
        room, each = self.max_positions - len(self.prompt), self.tokens_per_frame
        return room if each is None else min(room, int(frames * each))

    def to_json(self) -> bytes:
        """The same bytes for the same facts."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "ProgramFacts":
        """Read what `to_json` wrote; fields of later versions are ignored.

        Raises:
            ModelError: it is no JSON object, a field is missing or has another type.
        """
        try:
            read = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"expected the facts of a program as JSON: {str(error)[:80]}") from error
        if not isinstance(read, dict):
            raise ModelError(f"expected the facts of a program as a JSON object, came {type(read).__name__}")
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in read.items()
        }
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise ModelError(f"the facts of a program are incomplete: {error}") from error


@dataclass(frozen=True)
class Program:
    """A generative model.

    Attributes:
        facts: of it.
        graphs: canonical models `encode` and `prefill` (with an encoder only) and `step`.
        tokenizer: its file, in the format that the facts name.
    """

    facts: ProgramFacts
    graphs: Mapping[GraphName, ir.Model]
    tokenizer: bytes


def graph_names(kind: Kind) -> tuple[GraphName, ...]:
    """The graphs of a program."""
    return ("encode", "prefill", "step") if kind == "encoder-decoder" else ("step",)


def check_graphs(program: Program) -> None:
    """Raise unless the graphs have the inputs and outputs that the facts promise.

    Raises:
        ModelError: names the graph and the value.
    """
    facts = program.facts
    wanted = graph_names(facts.kind)
    if set(program.graphs) != set(wanted):
        raise ModelError(f"expected program {facts.name} to have the graphs {', '.join(wanted)}")
    for name in wanted:
        graph = program.graphs[name].graph
        inputs, outputs = _signature(facts, name)
        for role, values, named in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
            found = {value.name or "": value for value in values}
            if set(found) != set(named):
                odd = sorted(set(found) ^ set(named))[0]
                raise ModelError(f"graph {name} of program {facts.name}: unexpected or missing {role} {odd!r:.80}")
            for each, (dtype, dims) in named.items():
                _check_value(f"{role} {each!r} of graph {name}", found[each], dtype, dims)


Dims = tuple[int | None, ...]
Named = dict[str, tuple[ir.DataType, Dims]]


def _signature(facts: ProgramFacts, name: GraphName) -> tuple[Named, Named]:
    """Inputs and outputs of a graph."""
    real, whole = ir.DataType.FLOAT, ir.DataType.INT64
    hidden: Dims = (None, None, facts.width)
    cross: Named = dict.fromkeys(facts.cross_names, (real, (None, facts.heads, None, facts.head_size)))
    if name == "encode":
        audio: Named = {"audio": (real, (None, None))}
        log_mel: Named = {"log_mel": (real, (None, None, None))}
        return audio if facts.input == "audio" else log_mel, {"hidden": (real, hidden)}
    if name == "prefill":
        return {"hidden": (real, hidden)}, cross
    cache: Dims = (None, facts.kv_heads, None, facts.head_size)
    lengths = ("past_lengths", "last", *(("cross_lengths",) if cross else ()))
    inputs: Named = {
        **dict.fromkeys(("tokens", "positions"), (whole, (None, None))),
        **dict.fromkeys(lengths, (whole, (None,))),
        **dict.fromkeys(facts.past_names, (real, cache)),
        **cross,
    }
    outputs: Named = {"logits": (real, (None, facts.vocabulary)), **dict.fromkeys(facts.new_names, (real, cache))}
    return inputs, outputs


def _check_value(what: str, value: ir.Value, dtype: ir.DataType, dims: Dims) -> None:
    shape = value.shape
    fits = shape is not None and len(shape) == len(dims)
    fits = fits and all(
        not isinstance(has, int) or want is None or has == want for has, want in zip(shape or (), dims, strict=True)
    )
    if value.dtype != dtype or not fits:
        raise ModelError(f"expected {what} to be {dtype.name} {list(dims)}, came {value.dtype} {shape}")


def _cache_names(prefix: str, layers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))


def _wrong_facts(facts: ProgramFacts) -> Iterator[str]:
    """What is not as it must be; types first, since facts come from files too."""
    sizes = "heads kv_heads head_size width vocabulary max_positions sample_rate_hz".split()
    values: dict[str, Any] = {field.name: getattr(facts, field.name) for field in fields(facts)}
    for name in ("name", "source", "license", "template"):
        if not isinstance(values[name], str) or len(values[name]) > MAX_TEXT:
            yield f"{name} is no text of at most {MAX_TEXT} characters"
    for name, kinds in (("kind", Kind), ("input", InputKind), ("tokenizer", TokenizerKind)):
        if values[name] not in get_args(kinds):
            yield f"{name} is none of {', '.join(get_args(kinds))}"
    for name, most in (("layers", MAX_LAYERS), *((size, MAX_SIZE) for size in sizes)):
        if type(values[name]) is not int or not 0 < values[name] <= most:
            yield f"{name} is no number from 1 to {most}"
    for name in ("tokens_per_s", "frames_per_s", "max_input_s", "timestamp_s"):
        if not isinstance(values[name], int | float) or not 0 <= values[name] <= MAX_SIZE:
            yield f"{name} is no number from 0 to {MAX_SIZE}"
    special = (facts.no_speech_token, facts.first_timestamp_token, facts.no_timestamps_token)
    single = tuple(token for token in special if token is not None)
    for name in ("prompt", "stop_tokens", "suppressed", "begin_suppressed"):
        if not isinstance(values[name], tuple) or len(values[name]) > MAX_TOKENS_OF_FACTS:
            yield f"{name} is no list of at most {MAX_TOKENS_OF_FACTS} tokens"
    for token in (*single, *facts.prompt, *facts.stop_tokens, *facts.suppressed, *facts.begin_suppressed):
        if type(token) is not int or not 0 <= token < facts.vocabulary:
            yield f"{token!r:.40} is no token of a vocabulary of {facts.vocabulary}"
    if facts.heads % facts.kv_heads:
        yield f"{facts.heads} heads cannot share {facts.kv_heads} heads of keys and values"
    if facts.first_timestamp_token is not None and not facts.timestamp_s:
        yield "timestamp_s is 0, and there are timestamps"
    if not facts.stop_tokens:
        yield "there is no stop token"
    if facts.kind == "encoder-decoder" and not facts.prompt:
        yield "there is no prompt to start with"
    if (facts.input == "text") != (facts.kind == "decoder-only"):
        yield f"a program of kind {facts.kind} cannot read {facts.input}"
