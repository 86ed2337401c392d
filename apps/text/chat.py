"""A chat as tokens, in ChatML: what SmolLM2 and many others were taught to answer."""

from __future__ import annotations

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

    Special tokens are put around the messages, never read from them: who writes `<|im_end|>` ends nothing.

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
