"""Export a decoder of Hugging Face's transformers to ONNX, with its cache and its positions as inputs.

    pip install "flagsplit[torch]" transformers
    python examples/export_decoder.py MODEL_FOLDER EXPORTED_FOLDER
    flagsplit program EXPORTED_FOLDER -o PROGRAM_FOLDER

MODEL_FOLDER is what `save_pretrained` writes, of a causal language model and its tokenizer.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


class Step(torch.nn.Module):
    """A decoder whose cache comes and goes as tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> tuple[Any, ...]:
        """Logits of all tokens, then the keys and values of all layers, those of the past before the new ones."""
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (made.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


def export(source: Path, target: Path) -> None:
    """Write `target/model.onnx` and the configuration beside it."""
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()
    config = model.config
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    batch, chunk, past = 2, 3, 5
    caches = [torch.zeros(batch, kv_heads, past, size) for _ in range(2 * config.num_hidden_layers)]
    tokens = torch.zeros(batch, chunk, dtype=torch.int64)
    mask = torch.ones(batch, past + chunk, dtype=torch.int64)
    positions = torch.arange(past, past + chunk).repeat(batch, 1)
    names = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    is_open = torch.export.Dim.DYNAMIC
    rows = {0: is_open, 1: is_open}
    program = torch.onnx.export(
        Step(model),
        (tokens, mask, positions, *caches),
        dynamo=True,
        opset_version=18,
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_shapes=(rows, rows, rows, tuple({0: is_open, 2: is_open} for _ in caches)),
    )
    target.mkdir(parents=True, exist_ok=True)
    program.save(target / "model.onnx")
    for name in FILES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
