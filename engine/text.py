"""Between text and tokens: prompts in, completions and stop strings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .chat import Chat
from .request import RequestError


class Text:
    """The tokenizer's side of the engine, over mlx-lm's tokenizer wrapper."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)
        self.end_tokens: frozenset[int] = frozenset(tokenizer.eos_token_ids)

    def encode(self, messages: Sequence[Mapping[str, str]] | None, prompt: str | None) -> list[int]:
        """Tokens of a chat, through the model's own template, or of a plain prompt, which may name control tokens.

        Raises:
            RequestError: the template refuses the messages, or there is no text at all.
        """
        tokens = self.tokenizer.encode(prompt) if messages is None else self.chat.encode(messages)
        if not tokens:
            raise RequestError("the prompt is empty")
        return list(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def stopped(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether a stop string has just been completed at the end of `tokens`.

        Every token holds at least one byte, so a tail of as many tokens as the string has bytes is enough; a few
        more keep characters whole that the tail's start would cut.
        """
        if not stop:
            return False
        tail = self.decode(tokens[-(max(len(string.encode()) for string in stop) + 4) :])
        return any(string in tail for string in stop)

    def cut(self, text: str, stop: Sequence[str]) -> str:
        """`text` up to the first stop string."""
        ends = [index for string in stop if (index := text.find(string)) >= 0]
        return text[: min(ends)] if ends else text
