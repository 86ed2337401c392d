"""A decoder of which the first layers run here and the rest in a service: `first_layers.py BUNDLE PLAN ADDRESS TEXT`.

The bundle has plans that divide its layers, and the service serves one of them:

    flagsplit build zoo:smollm2 --tiers phone,cloud --sla private.json -o chat.flagsplit
    flagsplit decode-serve chat.flagsplit --plan phone+cloud@5 --listen tcp://127.0.0.1:5555

The text and its tokens stay here, only rows of numbers leave; the answer is made in the service, which knows it.
"""

import sys
from pathlib import Path

import flagsplit
from flagsplit.apps.text import open_tokenizer
from flagsplit.apps.text.chat import instruction_tokens
from flagsplit.runtime.generation.client import StreamClient
from flagsplit.runtime.generation.first_layers import CachedFirstLayers
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.interface import LoadOptions


def main(path: str, plan: str, address: str, text: str) -> None:
    """Print the answer as it comes."""
    bundle = flagsplit.open(Path(path))
    program = bundle.program
    if program is None or program.plan(plan).first is None:
        raise SystemExit(f"expected a bundle and a plan that divides its layers, came {path} and {plan}")
    facts = program.facts
    tokenizer = open_tokenizer(facts.tokenizer, program.tokenizer)
    prompt = [*facts.prompt, *instruction_tokens(tokenizer, facts.template, text)]
    first = program.load(program.plan(plan).first, LoadOptions())
    layers = CachedFirstLayers(first, facts.vocabulary, facts.max_positions)
    with StreamClient([address], bundle.digest, layers=layers) as client:
        told = tokenizer.decode_stream()
        for each in client.stream_rows(prompt, GenerationOptions(max_tokens=40), plan=plan):
            print(told.feed([each.token]), end="", flush=True)
        print(told.finish())
    first.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
