"""Tokens to text and back, for every program, and how a chat becomes tokens."""

from flagsplit.apps.text.chat import Message, chat_tokens, instruction_tokens
from flagsplit.apps.text.opening import open_tokenizer
from flagsplit.apps.text.tokenizer import DecodeStream, Tokenizer

__all__ = ["DecodeStream", "Message", "Tokenizer", "chat_tokens", "instruction_tokens", "open_tokenizer"]
