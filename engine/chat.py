"""Chats as token sequences, through the model's own template. What messages say stays text: it can forge no turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from .request import RequestError

MARKS = range(0xF0000, 0xFFFFE)
"""Characters for private use, of which one that no message has marks places in the rendered chat."""


TAG = re.compile(r"<.+>|\[.+\]")
"""How tokens look that only a template gives a meaning; others that it holds may be whitespace and words."""


class Chat:
    """The model's chat template.

    A tokenizer finds the names of control tokens, such as `<|im_end|>`, anywhere in the rendered chat. Where a message
    has one, its first character is encoded apart from the rest, so that the model reads it as it reads other text.
    Chats without one are encoded as mlx-lm does.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a chat up to where the answer begins; it goes on with a last message of the assistant's.

        Raises:
            RequestError: the model has no template, or it refuses the messages.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise RequestError("this model has no chat template; send a plain prompt (/v1/completions)")
        mark = _unused(messages)
        marked = [self._marked(message, mark) for message in messages]
        goes_on = messages[-1]["role"] == "assistant" if messages else False
        if goes_on:
            marked[-1]["content"] += mark
        try:
            text = self.tokenizer.apply_chat_template(marked, add_generation_prompt=not goes_on, tokenize=False)
        except Exception as error:  # a template is a program of the model's: it raises what it likes
            raise RequestError(f"the model's chat template refuses these messages: {error}") from error
        if goes_on:
            text, found, _ = text.rpartition(mark)
            if not found:
                raise RequestError("the model's chat template cannot go on with a last message of the assistant's")
        parts = (self.tokenizer.encode(part, add_special_tokens=False) for part in text.split(mark))
        return [token for part in parts for token in part]

    def _marked(self, message: Mapping[str, str], mark: str) -> dict[str, str]:
        """The message with a mark behind the first character of each control token's name, so that none is whole."""
        names = self._in_answers if message["role"] == "assistant" else self._in_questions
        content, parts, start = message["content"], [], 0
        while names and (found := names.search(content, start)):
            parts.append(content[start : found.start() + 1])
            start = found.start() + 1
        return {**message, "content": mark.join([*parts, content[start:]])}

    @cached_property
    def _in_answers(self) -> re.Pattern[str] | None:
        """What must stay text in the assistant's messages: templates look for `</think>` in them, and may."""
        return _any_of(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    @cached_property
    def _in_questions(self) -> re.Pattern[str] | None:
        """What must stay text in all others: also tokens that only the template calls control tokens, as `<think>`."""
        template = str(self.tokenizer.chat_template)
        return _any_of(
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.special or (TAG.fullmatch(token.content) and token.content in template)
        )


def _any_of(names: Any) -> re.Pattern[str] | None:
    """Finds the next place where one of these begins; a single character cannot be told from text."""
    found = sorted({name for name in names if len(name) > 1})
    return re.compile("|".join(map(re.escape, found))) if found else None


def _unused(messages: Sequence[Mapping[str, str]]) -> str:
    """A mark that is in no message."""
    used = {character for message in messages for character in message["content"] if ord(character) >= MARKS.start}
    mark = next((chr(code) for code in MARKS if chr(code) not in used), None)
    if mark is None:
        raise RequestError("the messages have every character that Unicode leaves for private use")
    return mark
