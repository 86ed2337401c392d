"""Whatever clients write: an error that names the field, never another exception, and nothing that takes long."""

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.apps.decoder_service.rote import ByteTokenizer, RoteListener

from flagsplit.apps.decoder_service.gateway_backend import ModelFacts
from flagsplit.apps.decoder_service.gateway_completions import read_completion
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_fields import Fields, read_json
from flagsplit.apps.decoder_service.gateway_frames import read_frame, read_opening
from flagsplit.apps.decoder_service.gateway_multipart import Part
from flagsplit.apps.decoder_service.gateway_transcriptions import read_transcription
from flagsplit.errors import UsageError

TEXT = ModelFacts("rote", "text", 256, 512)
WORDS = "prompt n stream stream_options stop max_tokens temperature top_p top_k seed echo logprobs best_of user".split()
OPENING = "audio tensors prompt options generated plan".split()
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 600),
    st.sampled_from((1 << 63, -(1 << 70), 1e308, float("inf"), float("nan"), 0.5)),
    st.text(alphabet="ab\x00é", max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from("name shape dtype format rate max_tokens x".split()), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=6))
def test_completions(fields: dict[str, Any]) -> None:
    with suppress(ApiError, UsageError):
        found = read_completion(Fields(fields), TEXT, ByteTokenizer())
        assert found.choices >= 1
        assert max(map(len, found.prompts)) + found.options.max_tokens <= TEXT.max_positions


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(OPENING), VALUES, max_size=4))
def test_openings(fields: dict[str, Any]) -> None:
    with suppress(ApiError, UsageError):
        found = read_opening(1, Fields(fields), RoteListener().facts, ByteTokenizer())
        assert found.audio is not None or found.inputs or found.prompt or "prompt" in fields or "tensors" in fields


@given(st.binary(max_size=20))
def test_frames(data: bytes) -> None:
    with suppress(ApiError):
        frame = read_frame(data)
        assert struct.pack("<IHH", frame.stream, frame.tensor, frame.last) + bytes(frame.data) == data


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(("file", "stream", "language", "include[]", "x")), st.binary(max_size=6)), max_size=4
    )
)
def test_forms(parts: list[tuple[str, bytes]]) -> None:
    with suppress(ApiError):
        found = read_transcription([Part(name, None, memoryview(data)) for name, data in parts])
        assert [name for name, _ in parts].count("file") == 1
        assert found.form == "json"


@pytest.mark.slow
@given(st.one_of(st.binary(max_size=30), VALUES.map(lambda value: json.dumps(value).encode())))
def test_bodies(body: bytes) -> None:
    with suppress(ApiError):
        assert isinstance(read_json(body), dict)


@pytest.mark.parametrize("body", [rb'{"prompt": "\ud83d"}', rb'{"a": [{"\uDE00": 1}]}'])
def test_half_characters(body: bytes) -> None:
    with pytest.raises(ApiError, match="whole characters"):
        read_json(body)
    assert read_json(rb'{"prompt": "\ud83d\ude00"}') == {"prompt": "\N{GRINNING FACE}"}
