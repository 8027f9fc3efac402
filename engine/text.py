"""Between text and tokens: prompts in, completions and stop strings out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from .chat import Chat, ChatPrompt, Encoded
from .request import RequestError

FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""Tokens of single bytes, where others are of characters. A run of them is read as a whole, or, if it is no UTF-8,
byte by byte: another byte may change what its first ones read."""

TAIL = 16
"""Tokens of a prompt's end in which a marker of thoughts is looked for."""

KEPT = 64
"""Sets of stop strings of which is remembered which tokens may end them."""


Prompt = ChatPrompt | str | tuple[int, ...]
"""A chat, a text, or token ids."""


class Piece(NamedTuple):
    """A token by itself: what it reads inside a text, and a number of bytes of which it surely has as many.

    Unless it is `whole`, it has parts of characters, and what they read depends on its neighbours. Text before a token
    that is whole, and the text from there on, do not depend on each other.
    """

    text: str
    whole: bool
    bytes: int


class Text:
    """The tokenizer's side of the engine, over mlx-lm's tokenizer wrapper.

    `vocabulary` is how many tokens the model has; by default those of the tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int | None = None):
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)
        self.end_tokens: frozenset[int] = frozenset(tokenizer.eos_token_ids)
        self._vocabulary = vocabulary
        self._pieces: dict[int, Piece] = {}
        self._stops = lru_cache(KEPT)(lambda stop: Stops(self, stop))

    def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a chat, through the model's own template, or of a plain prompt, which may name control tokens.

        Raises:
            RequestError: the template refuses the messages, there is no text at all, or a token is none of the model's.
        """
        if isinstance(prompt, ChatPrompt):
            encoded = self.chat.encode(prompt)
        elif isinstance(prompt, str):
            encoded = Encoded(tuple(self.tokenizer.encode(prompt)), self.chat.thinking(prompt, None))
        else:
            encoded = Encoded(self._checked(prompt), self.chat.thinking(self.spelled(prompt[-TAIL:]), None))
        if not encoded.tokens:
            raise RequestError("the prompt is empty")
        return encoded

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, as they say it, without control tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def spelled(self, tokens: Sequence[int]) -> str:
        """As `decode`, with control tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def piece(self, token: int) -> Piece:
        """The token by itself; remembered."""
        if token not in self._pieces:
            self._pieces[token] = self._piece(token)
        return self._pieces[token]

    def stopped(self, tokens: Sequence[int], stop: tuple[str, ...], spared: int = 0) -> bool:
        """Whether the text of `tokens` has a stop string; without the last of them it has none.

        One that ends in the first `spared` tokens is no stop string.
        """
        if not stop or len(tokens) <= spared or not self._stops(stop).ended(tokens):
            return False
        return not spared or first_stop(self.decode(tokens), stop, self.length(tokens[:spared])) is not None

    def shown(self, tokens: Sequence[int], stop: Sequence[str], spared: int = 0, include: bool = False) -> str:
        """The text of `tokens` before the first stop string that does not end in the first `spared` of them; with
        `include`, with it.
        """
        text = self.decode(tokens)
        found = first_stop(text, stop, self.length(tokens[:spared])) if stop and len(tokens) > spared else None
        return text if found is None else text[: found[include]]

    def length(self, tokens: Sequence[int]) -> int:
        """How many characters of a text these first tokens of it surely are."""
        return len(self.decode(tokens).rstrip("\ufffd")) if tokens else 0

    def _checked(self, tokens: Sequence[int]) -> tuple[int, ...]:
        vocabulary = len(self.tokenizer) if self._vocabulary is None else self._vocabulary
        if unknown := [token for token in tokens if not 0 <= token < vocabulary]:
            raise RequestError(f"prompt: token {unknown[0]} is none of this model's, which has {vocabulary:,}")
        return tuple(tokens)

    def _piece(self, token: int) -> Piece:
        if byte := FALLBACK.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token))):
            value = int(byte[1], 16)  # nothing to begin with, for it belongs to its run
            return Piece(chr(value) if value < 128 else "\ufffd", False, 0)
        once, twice = self.decode([token]), self.decode([token, token])
        if "\ufffd" in twice:
            return Piece(twice, False, 1)
        text = twice[len(once) :]  # some tokenizers leave out a space at a text's beginning
        return Piece(text, True, len(text.encode()))


def first_stop(text: str, stop: Sequence[str], spared: int = 0) -> tuple[int, int] | None:
    """Begin and end of the stop string that begins first, of those that end behind the first `spared` characters."""
    begins = [(text.find(string, max(0, spared - len(string) + 1)), len(string)) for string in stop]
    found = [(begin, begin + length) for begin, length in begins if begin >= 0]
    return min(found, default=None)


class Stops:
    """Finds stop strings in texts that grow token by token, in the same place as `Text.shown` does in the whole text.

    Most tokens cannot end a stop string, whatever is before them: that is found out once for each token. After the
    others the end of the text is decoded.
    """

    def __init__(self, text: Text, stop: tuple[str, ...]):
        self._text, self._stop = text, stop
        self._longest = max(len(string.encode()) for string in stop)
        self._may_end: dict[int, bool] = {}

    def ended(self, tokens: Sequence[int]) -> bool:
        """As `Text.stopped`."""
        token = tokens[-1]
        may_end = self._may_end.get(token)
        if may_end is None:
            may_end = self._may_end[token] = any(_may_end(self._text.piece(token), string) for string in self._stop)
        return may_end and self._in_tail(tokens)

    def _in_tail(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token.

        The tail has at least as many bytes before that token as the longest of them. If it begins inside a character,
        up to three bytes are read as something else than they are; if it begins with a space, that may be left out.
        """
        begin, missing = len(tokens) - 1, self._longest + 3
        while begin and missing > 0:
            begin -= 1
            missing -= self._text.piece(tokens[begin]).bytes
        return self._in(tokens[begin:]) and (begin == 0 or self._in(tokens))

    def _in(self, tokens: Sequence[int]) -> bool:
        text = self._text.decode(tokens)
        return any(string in text for string in self._stop)


def _may_end(piece: Piece, string: str) -> bool:
    """Whether a stop string may end in this token."""
    if piece.whole:
        text = piece.text
        return string in text or any(string.endswith(text[:length]) for length in range(1, len(text) + 1))
    return not string or not string[-1].isascii() or string[-1] in piece.text
