"""A decoder of which the first layers run here and the rest in a service: `first_layers.py BUNDLE PLAN ADDRESS TEXT`.

The bundle has plans that divide its layers, and the service serves one of them:

    flagsplit build zoo:smollm2 --tiers phone,cloud --sla private.json -o chat.flagsplit
    flagsplit decode-serve chat.flagsplit --plan phone+cloud@5 --listen tcp://127.0.0.1:5555

The text and its tokens stay here, only rows of numbers leave; the answer is made in the service, which knows it.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import flagsplit
from flagsplit.apps.text import instruction_tokens, open_tokenizer
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.generation.client import StreamClient
from flagsplit.runtime.generation.first_layers import CachedFirstLayers
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.interface import LoadOptions


def answer(bundle: Bundle, plan: str, address: str, prompt: Sequence[int], most: int) -> Iterator[int]:
    """The tokens that follow a prompt, as they come."""
    program = bundle.program
    file = None if program is None else program.plan(plan).first
    if program is None or file is None:
        raise SystemExit(f"expected a plan that divides a decoder's layers, came {plan}; flagsplit inspect lists them")
    first = program.load(file, LoadOptions(threads=1))
    layers = CachedFirstLayers(first, program.facts.vocabulary, program.facts.max_positions)
    with StreamClient([address], bundle.digest, layers=layers) as client:
        for each in client.stream_rows(prompt, GenerationOptions(max_tokens=most), plan=plan):
            yield each.token
    first.close()


def main(path: str, plan: str, address: str, text: str) -> None:
    """Print an answer while it comes."""
    bundle = flagsplit.open(Path(path))
    assert bundle.program is not None
    facts = bundle.program.facts
    tokenizer = open_tokenizer(facts.tokenizer, bundle.program.tokenizer)
    prompt = [*facts.prompt, *instruction_tokens(tokenizer, facts.template, text)]
    told = tokenizer.decode_stream()
    for token in answer(bundle, plan, address, prompt, most=100):
        print(told.feed([token]), end="", flush=True)
    print(told.finish())


if __name__ == "__main__":
    main(*sys.argv[1:])
