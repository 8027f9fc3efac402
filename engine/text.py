"""Between text and tokens: prompts in, completions and stop strings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .request import RequestError


class Text:
    """The tokenizer's side of the engine, over mlx-lm's tokenizer wrapper."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.end_tokens: frozenset[int] = frozenset(tokenizer.eos_token_ids)

    def encode(self, messages: Sequence[Mapping[str, str]] | None, prompt: str | None) -> list[int]:
        """Tokens of a chat, through the model's own template, or of a plain prompt.

        Raises:
            RequestError: the template refuses the messages, or there is no text at all.
        """
        if messages is None:
            tokens = self.tokenizer.encode(prompt)
        elif getattr(self.tokenizer, "chat_template", None) is None:
            raise RequestError("this model has no chat template; send a plain prompt (/v1/completions)")
        else:
            try:
                tokens = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
                )
            except Exception as error:  # a template is a program of the model's: it raises what it likes
                raise RequestError(f"the model's chat template refuses these messages: {error}") from error
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
