"""Programs made up at random, and the greedy loop over plain numpy that they are held against."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from tests.flagir.models import Array
from tests.flagir.programs import oracle

from flagsplit.flagir.programs import Program, ProgramFacts
from flagsplit.flagir.programs.decoder import build_prefill, build_step
from flagsplit.flagir.programs.encoder import build_encode
from flagsplit.flagir.programs.program import GraphName

MAX_POSITIONS = 30


def program_of(made: oracle.Made, prompt: Sequence[int], **facts: object) -> Program:
    """A program whose stop tokens are three of its tokens."""
    spec, encoder = made.decoder, made.encoder
    graphs = {"step": build_step(spec, made.decoder_weights)}
    if encoder is not None:
        assert made.encoder_weights is not None
        graphs["encode"] = build_encode(encoder, made.encoder_weights)
        graphs["prefill"] = build_prefill(spec, made.decoder_weights)
    base = ProgramFacts(
        name="made-up",
        kind="encoder-decoder" if encoder else "decoder-only",
        source="random numbers",
        license="Apache-2.0",
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        width=encoder.width if encoder else spec.width,
        vocabulary=spec.vocabulary,
        max_positions=MAX_POSITIONS,
        input=encoder.input if encoder else "text",
        tokenizer="tokenizer.json",
        prompt=tuple(prompt),
        stop_tokens=(2, 3, 5),
    )
    ordered = {name: graphs[name] for name in get_args(GraphName) if name in graphs}
    return Program(replace(base, **facts), ordered, b"")  # type: ignore[arg-type]


def greedy(made: oracle.Made, facts: ProgramFacts, prompt: Sequence[int], hidden: Array | None, most: int) -> list[int]:
    """The tokens after a prompt, every step from scratch."""
    tokens = list(prompt)
    answer: list[int] = []
    while len(answer) < min(most, facts.max_positions - len(prompt)):
        logits = oracle.logits(made.decoder, made.decoder_weights, tokens, hidden)[-1].copy()
        logits[list(facts.suppressed)] = -np.inf
        if not answer:
            logits[list(facts.begin_suppressed)] = -np.inf
        token = int(logits.argmax())
        if token in facts.stop_tokens:
            break
        answer.append(token)
        tokens.append(token)
    return answer
