"""Options of generation: limits, and JSON data there and back."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.errors import ConfigError
from flagsplit.runtime.generation.options import GenerationOptions, options_from_json

OPTIONS = st.builds(
    GenerationOptions,
    max_tokens=st.integers(1, 500),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 100),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, (1 << 63) - 1),
    stop=st.lists(st.integers(0, 1 << 20), max_size=4).map(tuple),
    suppress=st.lists(st.integers(0, 1 << 20), max_size=4).map(tuple),
    constraint=st.sampled_from(["", "timestamps"]),
    logprobs=st.booleans(),
    deadline_s=st.floats(0, 100),
)


@given(OPTIONS)
def test_json_there_and_back(options: GenerationOptions) -> None:
    assert options_from_json(json.loads(json.dumps(options.to_json()))) == options


def test_defaults_are_not_written() -> None:
    assert GenerationOptions().to_json() == {}
    assert options_from_json({}) == GenerationOptions()
    assert GenerationOptions(stop=(3,), beams=5).to_json() == {"stop": [3], "beams": 5}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"max_token": 3}, "no option of generation is called 'max_token'"),
        ({"max_tokens": 0}, "max_tokens: expected 1 to"),
        ({"max_tokens": True}, "max_tokens: expected a whole number, came True"),
        ({"max_tokens": 3.0}, "max_tokens: expected a whole number"),
        ({"temperature": "hot"}, "temperature: expected a number, came 'hot'"),
        ({"temperature": math.nan}, "temperature: expected 0 to 100, came nan"),
        ({"temperature": 10**400}, "temperature: expected a number"),
        ({"seed": 10**400}, "seed: expected 0 to 9223372036854775807, came 1000"),
        ({"max_tokens": 10**400}, "max_tokens: expected 1 to 131072, came 1000"),
        ({"stop": [10**400]}, "stop: expected token ids of 0 or more, came 1000"),
        ({"x" * 8000: 1}, "no option of generation is called 'xxx"),
        ({"top_p": 0}, "top_p: expected more than 0"),
        ({"top_p": 1.5}, "top_p: expected 0 to 1"),
        ({"seed": 1 << 63}, "seed: expected 0 to"),
        ({"stop": 3}, "stop: expected a list of token ids, came 3"),
        ({"stop": [1.5]}, "stop: expected a list of token ids"),
        ({"stop": [-1]}, "stop: expected token ids of 0 or more"),
        ({"suppress": list(range(2000))}, "suppress: expected at most 1024 tokens, came 2000"),
        ({"beams": 3, "temperature": 1}, "beams: a search for 3 candidates draws nothing"),
        ({"logprobs": 1}, "logprobs: expected true or false, came 1"),
        ({"constraint": 1}, "constraint: expected a string, came 1"),
        ({"constraint": "x" * 100}, "constraint: expected a name, came 'xxx"),
    ],
)
def test_refusals(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        options_from_json(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
