"""What PyTorch exports as a program. Skipped where torch or transformers is not installed (`make test-torch`)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.flagir.models import Array
from tests.flagir.programs.driver import Engine, answers, close, engine

from flagsplit.flagir.programs import Program, load_program, save_program
from flagsplit.flagir.programs.exported_folder import read_exported
from flagsplit.flagir.programs.link import link
from flagsplit.flagir.programs.split import split_step

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[3] / "examples" / "export_decoder.py"
TOKENS = [5, 17, 3, 3, 40, 8, 21, 30, 1, 12]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
        eos_token_id=49,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def program(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    exported, kept = (tmp_path_factory.mktemp(name) for name in ("exported", "program"))
    subprocess.run([sys.executable, str(EXAMPLE), str(model), str(exported)], check=True, capture_output=True)
    save_program(read_exported(exported), kept)
    return load_program(kept)


def logits_of(model: Path, tokens: list[int]) -> Array:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        return np.asarray(loaded(torch.tensor([tokens])).logits[0])


def test_steps_in_a_batch(model: Path, program: Program) -> None:
    wanted = logits_of(model, TOKENS)
    steps = Engine(program.graphs["step"])
    streams = [steps.open(TOKENS), steps.open(TOKENS)]
    for counts, spare in (((4, 1), 0), ((1, 3), 2), ((1, 1), 0)):
        found = steps.run(streams, counts, spare)
        close(found, np.stack([wanted[stream.done - 1] for stream in streams]))


def test_linked_and_cut(model: Path, program: Program) -> None:
    tokens = TOKENS[:4]
    for _ in range(5):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    found = answers(engine(link(program, 5)), {"prompt": np.array([TOKENS[:4]])})["tokens"]
    assert found.tolist() == [tokens[4:]]
    first, second = (Engine(part) for part in split_step(program, 2))
    near, far = first.open(TOKENS), second.open(TOKENS)
    wanted = logits_of(model, TOKENS)
    for count in (5, 1):
        rows = first.run([near], [count])
        close(second.run([far], [count], rows=rows)[0], wanted[near.done - 1])
