"""Exported decoders in slot form against plain numpy, and those that cannot be brought into it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.programs import oracle
from tests.flagir.programs.driver import Engine, answers, close, engine
from tests.flagir.programs.exports import KV, SIZE, VOCABULARY, WIDTH, exported, wanted
from tests.flagir.programs.made import program_of

from flagsplit.errors import ModelError
from flagsplit.flagir.programs import Program, check_graphs
from flagsplit.flagir.programs.exported import slot_form
from flagsplit.flagir.programs.exported_folder import is_exported, read_exported
from flagsplit.flagir.programs.link import link
from flagsplit.flagir.programs.split import split_step

COUNTED = """
    counted_from_1 = CumSum(attention_mask, one)
    counted = Sub(counted_from_1, one)
    minus_s_0 = Shape<start = 1, end = 2>(input_ids)
    minus_s = Neg(minus_s_0)
    position_ids = Slice(counted, minus_s, far, last_axis)
"""


@pytest.mark.parametrize("counted", [False, True])
def test_batches_of_an_exported_decoder(counted: bool) -> None:
    if counted:
        model, weights = exported(places=COUNTED.replace("far", "big"), inputs="")
        big = ir.Value(name="big", const_value=ir.Tensor(np.array([2**62], np.int64), name="big"))
        (old,) = (value for node in model.graph for value in node.inputs if value is not None and value.name == "big")
        old.replace_all_uses_with(big)
        model.graph.register_initializer(big)
    else:
        model, weights = exported()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    steps = Engine(slot_form(model))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    rng = np.random.default_rng(0)
    streams = [steps.open([int(token) for token in rng.integers(0, VOCABULARY, length)]) for length in (8, 5, 12)]
    for counts, spare in (((3, 1, 6), 0), ((2, 2, 1), 2), ((1, 1, 1), 0), ((1, 1, 4), 3)):
        found = steps.run(streams, counts, spare)
        close(found, np.stack([wanted(weights, stream.tokens)[stream.done - 1] for stream in streams]))


def test_its_graph_is_that_of_a_program() -> None:
    made = program_of(oracle.llama_like(np.random.default_rng(0)), [1])
    sizes = {"layers": 2, "heads": KV, "kv_heads": KV, "head_size": SIZE, "width": WIDTH, "vocabulary": VOCABULARY}
    check_graphs(Program(replace(made.facts, **sizes), {"step": slot_form(exported()[0])}, b""))  # type: ignore[arg-type]


def test_only_the_rows_asked_for_meet_the_vocabulary() -> None:
    (logits,) = (value for value in slot_form(exported()[0]).graph.outputs if value.name == "logits")
    product = logits.producer()
    assert product is not None
    assert product.op_type == "MatMul"
    assert product.inputs[0] is not None
    assert product.inputs[0].shape == ir.Shape(["batch", WIDTH])


def other(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


REFUSED = {
    "no cache": (other("past_", "old_"), "export it with its cache"),
    "a layer missing": (other("past_1_", "past_2_"), "past_key_values.0.key"),
    "no mask": (other("attention_mask", "mask_of_tokens"), "'attention_mask', it has none"),
    "half floats": (
        lambda text: text.replace("float[b, 2, p, 4]", "float16[b, 2, p, 4]").replace(
            "Concat<axis = -2>(past_0_key, k_0)", "Identity(k_0)"
        ),
        "in float32",
    ),
    "fixed batch": (other("float[b, 2, p, 4]", "float[1, 2, p, 4]"), "batch and length open"),
    "merged": (
        lambda text: other("int64[b, t] attention_mask", "int64[b, t] attention_mask, bool[1] use_cache_branch")(
            other("And(causal, given_4)", "And(use_cache_branch, given_4)")(text)
        ),
        "'use_cache_branch'; export it without merging",
    ),
    "hidden states": (
        lambda text: other("int64[b, t] attention_mask", "int64[b, t] attention_mask, float[b, s, 8] encoder_hidden")(
            other("Add(words, places)", "Add(encoder_hidden, places)")(text)
        ),
        "'encoder_hidden'; export the step that has a cache",
    ),
    "no logits": (other("logits", "scores"), "output 'logits'"),
    "other caches": (
        other("present_1_value = Concat<axis = 2>(past_1_value, v_1)", "present_1_value = Identity(v_1)"),
        "'present.1.value'.*growing cache",
    ),
    "rows in front": (other("Concat<axis = 2>(past_0_value, v_0)", "Concat<axis = 2>(v_0, past_0_value)"), "behind it"),
    "unused positions": (
        other("places = Gather(positions_table, position_ids)", "places = Gather(positions_table, input_ids)"),
        "size of its cache",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    change, wanted_words = REFUSED[case]
    model, _ = exported(change=change)
    with pytest.raises(ModelError, match=wanted_words) as caught:
        slot_form(model)
    assert "\n" not in str(caught.value)


def test_positions_from_sizes_are_refused() -> None:
    model, _ = exported(places="position_ids = Range(p, all, one)", inputs="", change=reordered)
    with pytest.raises(ModelError, match="takes the position of a token from the size of its cache"):
        slot_form(model)


def reordered(text: str) -> str:
    """The sizes before the positions that are made of them."""
    sizes, rest = text.split("    keys = Range")
    head, places = sizes.split("    position_ids = Range(p, all, one)")
    between, computed = places.split("    shape_p = ")
    return f"{head}    shape_p = {computed}    position_ids = Range(p, all, one){between}    keys = Range{rest}"


CONFIG = {
    "model_type": "tiny",
    "num_attention_heads": KV,
    "hidden_size": WIDTH,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an exporter writes."""
    model, _ = exported()
    (tmp_path / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_an_exported_folder(folder: Path) -> None:
    assert is_exported(folder)
    assert not is_exported(folder.parent)
    facts = read_exported(folder).facts
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_size) == (2, KV, KV, SIZE)
    assert (facts.width, facts.vocabulary, facts.max_positions) == (WIDTH, VOCABULARY, 40)
    assert (facts.prompt, facts.stop_tokens, facts.template) == ((), (2,), "")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true, "chat_template": "<|im_start|>"}')
    program = read_exported(folder)
    assert (program.facts.prompt, program.facts.stop_tokens) == ((1,), (2, 5))
    assert "{prompt}" in program.facts.template


def test_an_exported_decoder_linked_and_cut(folder: Path) -> None:
    """It is a program as those that were built: one loop gives the greedy tokens, and it divides between layers."""
    _, weights = exported()
    tokens = [3, 1, 4]
    for _ in range(6):
        tokens.append(int(wanted(weights, tokens)[-1].argmax()))
    never_made = min(set(range(VOCABULARY)) - set(tokens))
    program = read_exported(folder)
    program = replace(program, facts=replace(program.facts, stop_tokens=(never_made,)))
    found = answers(engine(link(program, 6)), {"prompt": np.array([tokens[:3]])})["tokens"]
    assert found.tolist() == [tokens[3:]]
    first, second = split_step(program, 1)
    near, far = Engine(first), Engine(second)
    one, other_one = near.open(tokens), far.open(tokens)
    for count in (4, 1, 1):
        rows = near.run([one], [count])
        close(far.run([other_one], [count], rows=rows)[0], wanted(weights, tokens)[one.done - 1])


HARM: dict[str, tuple[dict[str, str | None], str]] = {
    "no graph": ({"model.onnx": None}, "none is there"),
    "no tokenizer": ({"tokenizer.json": None}, "expected tokenizer.json in"),
    "no JSON": ({"config.json": "{"}, "to be JSON"),
    "deep JSON": ({"config.json": "[" * 100_000}, "to be JSON"),
    "a list": ({"config.json": "[]"}, "JSON object, came list"),
    "large": ({"config.json": " " * (2 << 20)}, "at most"),
    "no width": ({"config.json": json.dumps({**CONFIG, "hidden_size": "8"})}, "hidden_size or n_embd as a number"),
    "no end": ({"config.json": json.dumps({**CONFIG, "eos_token_id": None})}, "no stop token"),
    "nested end": ({"config.json": json.dumps({**CONFIG, "eos_token_id": [[1]]})}, "is no token"),
    "another vocabulary": ({"config.json": json.dumps({**CONFIG, "vocab_size": 12})}, "output 'logits'"),
    "an encoder": ({"config.json": json.dumps({**CONFIG, "is_encoder_decoder": True})}, "has an encoder"),
}


@pytest.mark.parametrize("case", HARM)
def test_a_damaged_folder(folder: Path, case: str) -> None:
    files, words = HARM[case]
    for name, text in files.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)
    with pytest.raises(ModelError, match=words) as caught:
        read_exported(folder)
    assert "\n" not in str(caught.value)
