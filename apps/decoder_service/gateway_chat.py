"""`POST /v1/chat/completions`: messages become a prompt, what comes after it the assistant's message."""

from typing import Any, Final

from flagsplit.apps.decoder_service.gateway_backend import ModelFacts
from flagsplit.apps.decoder_service.gateway_completions import Completion, Shape, read_choices
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_fields import Fields, wrong
from flagsplit.apps.text import Message, Tokenizer, chat_tokens
from flagsplit.errors import InputError, ModelError

MAX_MESSAGES: Final = 1024
_UNSUPPORTED: Final = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
}


def read_chat(fields: Fields, facts: ModelFacts, tokenizer: Tokenizer) -> Completion:
    """Check a request, without the field `model`.

    Raises:
        ApiError: a field has a wrong value, is not supported, or the messages are too long.
    """
    messages = _messages(fields.raw("messages"))
    for name, neutral in _UNSUPPORTED.items():
        fields.refuse(name, neutral, "messages of text are answered with text")
    try:
        prompt = (*facts.begin, *chat_tokens(tokenizer, messages))
    except InputError as error:
        raise ApiError(400, str(error), "invalid_value", "messages") from None
    except ModelError:
        raise ApiError(400, f"{facts.name} takes no chats; ask /v1/completions", "wrong_model", "model") from None
    room = max(facts.max_positions - len(prompt), 1)
    limit = fields.whole("max_tokens", room, 1, facts.max_positions)
    return read_choices(
        fields, facts, (prompt,), ("",), fields.whole("max_completion_tokens", limit, 1, facts.max_positions)
    )


def _messages(asked: Any) -> list[Message]:
    if not isinstance(asked, list) or not 0 < len(asked) <= MAX_MESSAGES:
        raise wrong("messages", f"a list of 1 to {MAX_MESSAGES} messages", asked)
    found = []
    for each in asked:
        if not isinstance(each, dict):
            raise wrong("messages", "objects with role and content", each)
        fields = Fields(each)
        role = fields.choice("role", ("system", "developer", "user", "assistant"), "")
        content = fields.raw("content")
        fields.text("name", longest=64)
        fields.end()
        found.append(Message("system" if role == "developer" else role, _text(content)))
    return found


def _text(content: Any) -> str:
    """A text, or parts of one."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise wrong("content", "a text, or a list of parts of the type text", content)
    texts = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise wrong("content", "parts that have a text", content)
    return "".join(map(str, texts))


def _choice(index: int, text: str, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason or None}


def _more(index: int, text: str, reason: str, first: bool) -> dict[str, Any]:
    delta: dict[str, Any] = {**({"role": "assistant"} if first else {}), **({"content": text} if text else {})}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason or None}


SHAPE: Final = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", _choice, _more)
