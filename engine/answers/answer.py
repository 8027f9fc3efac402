"""What an answer consists of: thoughts, text, and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..chat import any_of
from ..request import Completion, Thinking
from ..text import Text
from .tools import Call, Tools, Unreadable, calls, has_parser

NO_PARSER = "tools: nobody can read this model's calls of tools, so that they stand in the text"
UNREADABLE = "tools: the model's call of a tool cannot be read, so that it stands in the text"


@dataclass(frozen=True)
class Answer:
    """An answer in parts. `reasoning` is None where there are no thoughts; `content` is None beside calls alone.

    Of the completion's tokens `reasoning_tokens` are thoughts, without the markers around them.
    """

    content: str | None
    reasoning: str | None = None
    reasoning_tokens: int = 0
    calls: tuple[Call, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Thoughts:
    """Where thoughts stand in a completion's tokens, and where the answer begins behind them."""

    begin: int
    end: int
    answer: int


def read(completion: Completion, thinking: Thinking, tools: Tools | None, text: Text) -> Answer:
    """The parts of a completion; `thinking` and `tools` are the request's.

    Thoughts that do not end are all there is: the content is empty.
    """
    thoughts = None if thinking == "none" else _thoughts(completion.tokens, thinking, text)
    content, reasoning, begin = completion.text, None, 0
    if thoughts:
        begin = thoughts.answer
        before, behind = text.decode(completion.tokens[: thoughts.begin]), text.decode(completion.tokens[:begin])
        if thoughts.end < begin and content.startswith(behind):
            reasoning = text.decode(completion.tokens[thoughts.begin : thoughts.end])
            content = content[len(behind) :].lstrip("\n")
        else:  # it was cut off, or stopped, before they ended
            reasoning, content = content[len(before) :], ""
        reasoning = reasoning.strip()
    answer = Answer(content, reasoning, thoughts.end - thoughts.begin if thoughts else 0)
    return _with_calls(answer, completion, begin, tools, text) if tools and content else answer


def _thoughts(tokens: Sequence[int], thinking: Thinking, text: Text) -> _Thoughts | None:
    start, end = text.tokenizer.think_start_tokens, text.tokenizer.think_end_tokens
    begin = 0
    if thinking == "may":
        while begin < len(tokens) and text.piece(tokens[begin]).text.isspace():
            begin += 1
        if tuple(tokens[begin : begin + len(start)]) != start:
            return None
        begin += len(start)
    place = text.tokenizer.find_think_end(tokens, begin)
    return _Thoughts(begin, len(tokens), len(tokens)) if place < 0 else _Thoughts(begin, place, place + len(end))


def _with_calls(answer: Answer, completion: Completion, begin: int, tools: Tools, text: Text) -> Answer:
    """The answer with its calls apart, where it has any that can be read."""
    if not (tools.enforced or has_parser(text)):
        return Answer(answer.content, answer.reasoning, answer.reasoning_tokens, notes=(NO_PARSER,))
    written = text.spelled(completion.tokens[begin:])  # markers may be control tokens
    if stopped := len(text.decode(completion.tokens)) - len(completion.text):
        written = written[:-stopped]
    try:
        around, found = calls(written, tools, text)
    except Unreadable:
        return Answer(answer.content, answer.reasoning, answer.reasoning_tokens, notes=(UNREADABLE,))
    if not found:
        return answer
    names = any_of(each.content for each in text.tokenizer.added_tokens_decoder.values() if each.special)
    content = (names.sub("", around) if names else around).strip()
    return Answer(content or None, answer.reasoning, answer.reasoning_tokens, found[:1] if tools.single else found)
