"""Many streams of one language model on this host's GPU, against transformers' `generate` in half precision.

A network of the size of SmolLM2-135M with random weights, the same ones for all: prompts of 32 tokens, 128 tokens more,
greedy, nobody stops. Ours starts from the ONNX graph of a program (`CudaStepModel`) and serves all streams through the
engine, which gives tokens one by one; the others are the original module, one stream at a time, and all as one batch.

Figures, by number of streams N: `tokens_per_s_N` ours, `speedup_N` over one at a time (bar 5), `vs_batch_N` over its
own batch, `token_ms_N` from token to token, `ttft_ms_p95_N`. `identical` is 1 if every stream gave the tokens that it
gives alone; `agree`, the share of tokens before the first that differs from the original module's.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from flagsplit.flagir.programs import Program, ProgramFacts, save_program
from flagsplit.flagir.programs.decoder import build_step
from flagsplit.flagir.programs.spec import DecoderSpec, rotary_frequencies
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.engine import GenerationEngine
from flagsplit.runtime.generation.events import Event, Generate, Refused
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.generation.cuda_step import CudaStepModel

STOP = 2
THETA = 100_000.0
_PARTS = {
    "input_layernorm": "self.norm",
    "self_attn.q_proj": "self.q",
    "self_attn.k_proj": "self.k",
    "self_attn.v_proj": "self.v",
    "self_attn.o_proj": "self.o",
    "post_attention_layernorm": "mlp.norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}


def random_llama(small: bool) -> Any:
    """A module of SmolLM2's sizes, or a tiny one to try this program."""
    torch.manual_seed(3)
    sizes: dict[str, int] = (
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500}
        if small
        else {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    )
    heads, kv_heads = (4, 2) if small else (9, 3)
    config = LlamaConfig(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=STOP,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(config).eval()


def save(module: Any, folder: Path) -> None:
    """The same network as a program."""
    config = module.config
    spec = DecoderSpec(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        width=config.hidden_size,
        norm="rms",
        epsilon=config.rms_norm_eps,
        mlp="gated-silu",
        rotary_size=config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
    )
    state = {name.removeprefix("model."): tensor.numpy() for name, tensor in module.state_dict().items()}
    weights = {"tokens.weight": state["embed_tokens.weight"], "norm.weight": state["norm.weight"]}
    for layer in range(spec.layers):
        for theirs, ours in _PARTS.items():
            weights[f"layers.{layer}.{ours}.weight"] = state[f"layers.{layer}.{theirs}.weight"]
    weights["rotary.frequencies"] = rotary_frequencies(spec.rotary_size, THETA)
    facts = ProgramFacts(
        name="random-llama",
        kind="decoder-only",
        source="made up",
        license="Apache-2.0",
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        width=spec.width,
        vocabulary=spec.vocabulary,
        max_positions=2048,
        input="text",
        tokenizer="gguf",
        prompt=(),
        stop_tokens=(STOP,),
    )
    save_program(Program(facts, {"step": build_step(spec, weights)}, b""), folder)


class Streams:
    """All streams at once through the engine."""

    def __init__(self, model: CudaStepModel) -> None:
        settings = SchedulerSettings(kv_bytes=1 << 36, step_tokens=2048)
        self._engine = GenerationEngine(model, self._hear, settings)
        self._engine.start()

    def run(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float, list[list[float]]]:
        """Tokens, seconds, and when each token came."""
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._times: list[list[float]] = [[] for _ in prompts]
        self._left, self._done = len(prompts), threading.Event()
        options = GenerationOptions(max_tokens=count, suppress=(STOP,))
        self._began = time.perf_counter()
        for at, prompt in enumerate(prompts):
            self._engine.submit(Generate(str(at), "bench", None, tuple(prompt), options=options))
        self._done.wait()
        return self._tokens, time.perf_counter() - self._began, self._times

    def close(self) -> None:
        """End the engine."""
        self._engine.stop()

    def _hear(self, event: Event) -> None:
        if isinstance(event, Refused):
            print(f"a stream was refused: {event.reason}", file=sys.stderr)
            self._done.set()
            return
        at = int(event.stream_id)
        self._tokens[at] += event.tokens
        self._times[at] += [time.perf_counter() - self._began] * len(event.tokens)
        self._left -= event.done
        if not self._left:
            self._done.set()


def theirs(module: Any, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float]:
    """Tokens and seconds of `generate` on prompts as one batch."""
    device = next(module.parameters()).device
    given = torch.tensor([list(prompt) for prompt in prompts], device=device)
    mask = torch.ones_like(given)
    began = time.perf_counter()
    with torch.inference_mode():
        made = module.generate(
            given, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=STOP
        )
    found = made[:, given.shape[1] :].tolist()
    return found, time.perf_counter() - began


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """The share of tokens before the first that differs."""
    alike = [
        next((at for at, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
        for x, y in zip(first, second, strict=True)
    ]
    return sum(alike) / sum(len(each) for each in first)


def measure(device: str, streams: Sequence[int], count: int, rounds: int) -> dict[str, float]:
    """All figures."""
    on_cpu = device == "cpu"
    random = np.random.default_rng(5)
    module = random_llama(small=on_cpu)
    figures: dict[str, float] = {"identical": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        save(module, Path(folder))
        module = module.to(device=device, dtype=torch.float32 if on_cpu else torch.float16)
        for slots in streams:
            prompts = random.integers(3, module.config.vocab_size, (slots, 32)).tolist()
            model = CudaStepModel(Path(folder), slots, "fp32" if on_cpu else "fp16", "cpu" if on_cpu else "cuda")
            model.warm_up(32 + count, 0)
            ours = Streams(model)
            ours.run(prompts, count)
            expected = [ours.run([prompt], count)[0][0] for prompt in prompts[:4]]
            theirs(module, prompts[:1], 8)
            runs, ones, batches = list[float](), list[float](), list[float]()
            gaps, firsts = list[float](), list[float]()
            for _ in range(rounds):
                tokens, took_s, times = ours.run(prompts, count)
                runs.append(slots * count / took_s)
                figures["identical"] *= float(tokens[:4] == expected)
                firsts += [each[0] * 1e3 for each in times]
                gaps += [(b - a) * 1e3 for each in times for a, b in pairwise(each)]
                one, took_s = theirs(module, prompts[:1], count)
                ones.append(count / took_s)
                batches.append(slots * count / theirs(module, prompts, count)[1])
                figures["agree"] = agreement(one, tokens[:1])
            ours.close()
            rate = statistics.median(runs)
            figures |= {
                f"tokens_per_s_{slots}": rate,
                f"speedup_{slots}": rate / statistics.median(ones),
                f"vs_batch_{slots}": rate / statistics.median(batches),
                f"token_ms_{slots}": statistics.median(gaps),
                f"ttft_ms_p95_{slots}": float(np.percentile(firsts, 95)),
            }
    return figures


def report(figures: Mapping[str, float], as_json: bool, device: str) -> None:
    """Print the figures."""
    rounded = {name: round(value, 4) for name, value in figures.items()}
    host = torch.cuda.get_device_name() if device == "cuda" else "cpu, a tiny network: to try this program"
    if as_json:
        conditions = {"host": host, "torch": torch.__version__, "transformers": transformers.__version__}
        print(json.dumps({"figures": rounded, "conditions": conditions, "basis": "measured"}, indent=1))
        return
    for name, value in rounded.items():
        print(f"{name:24} {value}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    streams = [int(each) for each in given.streams.split(",")]
    report(measure(given.device, streams, given.tokens, 3), given.json, given.device)


if __name__ == "__main__":
    main()
