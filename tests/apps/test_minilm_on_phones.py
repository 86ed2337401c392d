"""MiniLM in what phones run: fp16 and other engines rank sentences as the model does. PyTorch exports it."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import flagsplit
from flagsplit.apps.zoo import pull
from flagsplit.targets.catalogue import missing_sdk
from flagsplit.targets.interface import Array, LoadOptions

torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folders")]

_LENGTH = 32
_QUERY = "How do I keep a split model running when the network fails?"
_SENTENCES = (
    "The session falls back to another plan when a tier dies.",
    "Resume from the last boundary tensor after the link is lost.",
    "The phone computes the whole network by itself if it has to.",
    "Bake the bread for forty minutes until the crust is brown.",
    "Her grandmother kept bees in the garden behind the church.",
    "Weights of all plans are stored once in one package.",
)
_BOUNDS = {"coreml": 1e-2, "litert": 1e-4, "qnn": 1e-2}


def _tokens(sentence: str, vocabulary: dict[str, int]) -> list[int]:
    """WordPiece of lower-case words: the longest known piece first (Y. Wu et al., 2016)."""
    found = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
            end = next(ends, start + 1)
            found.append(vocabulary.get(prefix + word[start:end], vocabulary["[UNK]"]))
            start = end
    return [*found[: _LENGTH - 1], vocabulary["[SEP]"]]


def _inputs(sentence: str, vocabulary: dict[str, int]) -> dict[str, Array]:
    tokens = _tokens(sentence, vocabulary)
    ids, mask = np.zeros((1, _LENGTH), np.int64), np.zeros((1, _LENGTH), np.int64)
    ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
    return {"ids": ids, "mask": mask}


def _ranking(vectors: Sequence[Array]) -> list[int]:
    query, *others = (np.asarray(vector, np.float64) for vector in vectors)
    return sorted(range(len(others)), key=lambda at: -float(query @ others[at]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> flagsplit.Bundle:
    from flagsplit.apps.zoo.minilm import minilm_module

    folder = tmp_path_factory.mktemp("minilm")
    targets = [name for name in _BOUNDS if not missing_sdk(name)]
    given = torch.zeros(1, _LENGTH, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flagsplit.build(
            minilm_module(),
            "phone,cloud",
            folder / "minilm.flagsplit",
            example_inputs=(given, given + 1),
            devices={"phone": "galaxy-s24"},
            targets={"phone": targets},
            sla={"keep_on": {"inputs": "phone"}},
        )
    return flagsplit.open(folder / "minilm.flagsplit", cache=folder)


@pytest.mark.parametrize("target", _BOUNDS)
def test_sentences_rank_alike(bundle: flagsplit.Bundle, target: str) -> None:
    if missing_sdk(target):
        pytest.skip(missing_sdk(target))
    vocabulary = json.loads(Path(pull("minilm-tokenizer")).read_text())["model"]["vocab"]
    asked = [_inputs(sentence, vocabulary) for sentence in (_QUERY, *_SENTENCES)]
    whole = bundle.load_whole(LoadOptions(threads=2))
    (name,) = (tensor.name for tensor in bundle.outputs)
    wanted = [whole.run(inputs)[name][0] for inputs in asked]
    whole.close()
    assert set(_ranking(wanted)[:3]) == {0, 1, 2}, "the model itself tells what the query is about"
    plan = next(plan for plan in bundle.plans.pool.plans if set(plan.used_tiers) == {0})
    (step,) = bundle.plans.steps[plan.name]
    loaded = bundle.load(0, step.segment, LoadOptions(threads=2, target=target))
    made = [loaded.run(inputs)[name][0] for inputs in asked]
    loaded.close()
    assert _ranking(made) == _ranking(wanted)
    for came, expected in zip(made, wanted, strict=True):
        off = np.linalg.norm(np.asarray(came, np.float64) - np.asarray(expected, np.float64))
        assert off <= _BOUNDS[target] * np.linalg.norm(np.asarray(expected, np.float64))
