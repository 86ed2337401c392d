"""A program on disk: what is written is read again, and a hostile folder gets one clear error."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit.errors import FlagsplitError, ModelError
from flagsplit.flagir.programs import Program, ProgramFacts, load_program, save_program
from flagsplit.flagir.programs.link import link
from flagsplit.flagir.store import save_all

FACTS = ProgramFacts(
    name="tiny",
    kind="decoder-only",
    source="made up",
    license="Apache-2.0",
    layers=1,
    heads=2,
    kv_heads=1,
    head_size=2,
    width=4,
    vocabulary=8,
    max_positions=16,
    input="text",
    tokenizer="gguf",
    prompt=(1,),
    stop_tokens=(2,),
)


def tiny_step() -> ir.Model:
    numbers = ", ".join(f"{number}.0" for number in range(128))
    body = f"""
    g (int64[b, c] tokens, int64[b, c] positions, int64[b] past_lengths, int64[b] last, float[b, 1, p, 2] past_key,
       float[b, 1, p, 2] past_value)
    => (float[b, 8] logits, float[b, 1, c, 2] new_key, float[b, 1, c, 2] new_value)
    <float[16, 8] table = {{{numbers}}}, int64[2] axes = {{1, 3}}> {{
        floats = Cast<to = 1>(tokens)
        long = Unsqueeze(floats, axes)
        new_key = Concat<axis = 3>(long, long)
        new_value = Neg(new_key)
        logits = Gather(table, last)
    }}"""
    model = canonical(parse(body, opset=23))
    names = {"past_key": "past.0.key", "past_value": "past.0.value", "new_key": "new.0.key", "new_value": "new.0.value"}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(value.name or "", value.name)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_program(Program(FACTS, {"step": tiny_step()}, b"words"), tmp_path)
    return tmp_path


def test_what_is_written_is_read_again(folder: Path) -> None:
    read = load_program(folder)
    assert read.facts == FACTS
    assert read.tokenizer == b"words"
    assert set(read.graphs) == {"step"}
    onnx.checker.check_model(folder / "step.onnx", full_check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["program.json", "step.onnx", "tokenizer", "weights.bin"]


def test_weights_of_several_graphs_are_stored_once(tmp_path: Path) -> None:
    weights = ", ".join("1.0" for _ in range(400))
    model = "g (float[1, 400] {name}) => (float[1, 400] y) <float[1, 400] w = {{{weights}}}> {{ y = Add({name}, w) }}"
    models = {f"{name}.onnx": canonical(parse(model.format(name=name, weights=weights), 23)) for name in ("a", "b")}
    save_all(models, tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size == 1600
    for name in models:
        onnx.checker.check_model(tmp_path / name, full_check=True)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"layers": 0}, "layers is no number"),
        ({"layers": True}, "layers is no number"),
        ({"layers": "6"}, "layers is no number"),
        ({"kind": "other"}, "kind is none of"),
        ({"prompt": (9,)}, "9 is no token"),
        ({"prompt": 1}, "prompt is no list"),
        ({"stop_tokens": ()}, "no stop token"),
        ({"stop_tokens": ("a",)}, "'a' is no token"),
        ({"heads": 3, "kv_heads": 2}, "cannot share"),
        ({"input": "audio"}, "cannot read audio"),
        ({"tokens_per_s": float("nan")}, "tokens_per_s is no number"),
        ({"max_input_s": 10**400}, "max_input_s is no number from 0 to"),
        ({"no_speech_token": "x"}, "'x' is no token"),
        ({"first_timestamp_token": 9}, "9 is no token"),
        ({"first_timestamp_token": 3}, "timestamp_s is 0"),
        ({"first_timestamp_token": 3, "timestamp_s": -1.0}, "timestamp_s is no number from 0 to"),
        ({"name": "x" * 20_000}, "name is no text"),
    ],
)
def test_facts_that_cannot_be(fields: dict[str, object], wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        replace(FACTS, **fields)  # type: ignore[arg-type]


def change_facts(folder: Path, **fields: object) -> None:
    path = folder / "program.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def put_a_folder(folder: Path) -> None:
    (folder / "program.json").unlink()
    (folder / "program.json").mkdir()


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no facts": (lambda folder: (folder / "program.json").unlink(), "expected program.json in"),
    "facts are a folder": (put_a_folder, "expected program.json in"),
    "no JSON": (lambda folder: (folder / "program.json").write_bytes(b"\xff\xfe"), "as JSON"),
    "deep JSON": (lambda folder: (folder / "program.json").write_text("[" * 100_000), "as JSON"),
    "a list": (lambda folder: (folder / "program.json").write_text("[]"), "JSON object"),
    "fields missing": (lambda folder: (folder / "program.json").write_text("{}"), "incomplete"),
    "huge facts": (lambda folder: (folder / "program.json").write_bytes(b" " * (2 << 20)), "at most"),
    "no tokenizer": (lambda folder: (folder / "tokenizer").unlink(), "expected tokenizer in"),
    "no step": (lambda folder: (folder / "step.onnx").unlink(), "no such model file"),
    "no weights": (lambda folder: (folder / "weights.bin").write_bytes(b""), "truncated|expects"),
    "more layers": (lambda folder: change_facts(folder, layers=2), "missing input"),
    "many layers": (lambda folder: change_facts(folder, layers=1 << 24), "layers is no number"),
    "another head": (lambda folder: change_facts(folder, head_size=4), "expected input 'past.0.key'"),
    "another kind": (lambda folder: change_facts(folder, kind="encoder-decoder", input="audio"), "encode.onnx"),
    "nested list": (lambda folder: change_facts(folder, prompt=[[1]]), "is no token"),
    "nested names": (lambda folder: change_facts(folder, kind={"a": 1}), "kind is none of"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder(folder: Path, case: str) -> None:
    harm, wanted = HOSTILE[case]
    harm(folder)
    with pytest.raises(ModelError, match=wanted) as caught:
        load_program(folder)
    assert "\n" not in str(caught.value)


def test_later_fields_are_ignored(folder: Path) -> None:
    change_facts(folder, later=1)
    assert load_program(folder).facts == FACTS


def test_most_tokens() -> None:
    assert FACTS.most_tokens(1.0) == 15
    assert replace(FACTS, tokens_per_s=6.5).most_tokens(1.0) == 6
    assert replace(FACTS, tokens_per_s=6.5).most_tokens(1000.0) == 15


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
@pytest.mark.slow
def test_damage_anywhere_is_refused_or_does_not_matter(folder: Path) -> None:
    rng = random.Random(0)
    whole = {name: (folder / name).read_bytes() for name in ("program.json", "step.onnx")}
    seen = set()
    for _ in range(200):
        name = rng.choice(list(whole))
        data = bytearray(whole[name])
        at = rng.randrange(len(data))
        data[at : at + rng.choice([0, 1, 1, 5])] = rng.randbytes(rng.choice([0, 1, 1, 3]))
        (folder / name).write_bytes(data)
        try:
            link(load_program(folder), 3)
            seen.add("sound")
        except FlagsplitError:
            seen.add("refused")
        (folder / name).write_bytes(whole[name])
    assert seen == {"sound", "refused"}
