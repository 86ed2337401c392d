"""A chat as tokens, in ChatML, which SmolLM2 and many others were taught to answer; and one instruction, in any form.

Special tokens are put around what people say, never read from it: who writes `<|im_end|>` ends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.errors import InputError, ModelError

ROLES = ("system", "user", "assistant")
_START, _END = "<|im_start|>", "<|im_end|>"
_SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True)
class Message:
    """What somebody said: `role` is one of `ROLES`."""

    role: str
    content: str


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message], *, system: str = _SMOLLM2) -> list[int]:
    """The prompt that the assistant answers.

    Args:
        tokenizer: has the special tokens of ChatML.
        messages: in their order.
        system: comes first where the messages do not begin with one of that role; empty for none.

    Raises:
        InputError: there is no message, or a role is unknown.
        ModelError: the tokenizer has not the special tokens.
    """
    if not messages:
        raise InputError("expected a chat of at least one message")
    if wrong := [each.role for each in messages if each.role not in ROLES]:
        raise InputError(f"expected roles {', '.join(ROLES)}, came {wrong[0][:40]!r}")
    if not {_START, _END} <= tokenizer.special.keys():
        raise ModelError(f"expected a tokenizer with {_START} and {_END}; this model takes no chats")
    start, end = tokenizer.special[_START], tokenizer.special[_END]
    if system and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    tokens: list[int] = []
    for message in messages:
        tokens += [start, *tokenizer.encode(f"{message.role}\n{message.content}"), end, *tokenizer.encode("\n")]
    return [*tokens, start, *tokenizer.encode("assistant\n")]


def instruction_tokens(tokenizer: Tokenizer, template: str, prompt: str) -> list[int]:
    """The tokens of an instruction in the form that a model knows.

    Args:
        tokenizer: of the model.
        template: `facts.template` of a program: special tokens by their names, and `{prompt}`; empty for none.
        prompt: what takes its place.
    """
    if not template:
        return tokenizer.encode(prompt)
    names = sorted(tokenizer.special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", template) if names else [template]
    tokens: list[int] = []
    for part in parts:
        special = tokenizer.special.get(part)
        tokens += tokenizer.encode(part.replace("{prompt}", prompt)) if special is None else [special]
    return tokens
