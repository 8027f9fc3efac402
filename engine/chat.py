"""Chats as token sequences, through the model's own template. What messages say stays text: it can forge no turn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from .request import RequestError, Thinking
from .template import Template

MARKS = range(0xF0000, 0xFFFFE)
"""Characters for private use, of which one that no message has marks places in the rendered chat."""

SHOWN = {"name": "names", "tool_calls": "earlier calls"}
"""Fields of messages that many templates leave out, and what is missing then."""

TAG = re.compile(r"<.+>|\[.+\]")
"""How tokens look that only a template gives a meaning; others that it holds may be whitespace and words."""


@dataclass(frozen=True)
class ChatPrompt:
    """A chat, and what the model's template is told beside it.

    `messages` and `tools` are as in the OpenAI API, contents as text. `settings` are variables of the template. A chat
    that `continues` goes on within its last message, as one does that ends with a message of the assistant's; if it is
    not `prompted`, the template does not begin an answer. Names of control tokens are text, unless it is `trusted`.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    prompted: bool = True
    trusted: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether the answer is the rest of the last message."""
        return self.continues or (self.prompted and bool(self.messages) and self.messages[-1]["role"] == "assistant")


class Encoded(NamedTuple):
    """A prompt's tokens, whether thoughts follow it (as in `Request`), and what was asked that cannot be done."""

    tokens: tuple[int, ...]
    thinking: Thinking = "none"
    notes: tuple[str, ...] = ()


class Chat:
    """The model's chat template.

    A tokenizer finds the names of control tokens, such as `<|im_end|>`, anywhere in the rendered chat. Where the chat
    has one, its first character is encoded apart from the rest, so that the model reads it as it reads other text.
    Chats without one are encoded as mlx-lm does.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template = Template(tokenizer)

    def encode(self, prompt: ChatPrompt) -> Encoded:
        """The tokens of a chat up to where the answer begins, or goes on.

        Raises:
            RequestError: the model has no template, or it refuses the messages.
        """
        if not self.template.exists:
            raise RequestError("this model has no chat template; send a plain prompt (/v1/completions)")
        messages = [_message(message, place) for place, message in enumerate(prompt.messages)]
        settings, notes = self.template.settings(prompt.settings, bool(prompt.tools))
        tools = {"tools": list(prompt.tools)} if prompt.tools else {}
        mark = _unused([*_texts(messages), *_texts(tools), *_texts(settings)])
        if not prompt.trusted:
            strict, loose = _breaker(self._in_questions, mark), _breaker(self._in_answers, mark)
            messages = [_broken_message(message, strict, loose) for message in messages]
            tools = {name: _broken(value, strict) for name, value in tools.items()}
            settings = {name: _broken(value, strict) for name, value in settings.items()}

        def render(messages: Sequence[dict[str, Any]]) -> str:
            begins = prompt.prompted and not prompt.goes_on
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=begins, tokenize=False, **tools, **settings
                )
            except Exception as error:  # a template is a program of the model's: it raises what it likes
                raise RequestError(f"the model's chat template refuses these messages: {error}") from error
            return text.replace(_escaped(mark), mark)  # some templates write JSON in ASCII

        begun = ""
        if prompt.goes_on:
            begun = self._end_with_mark(messages, mark)
        text = render(messages)
        for name, shown in SHOWN.items():
            said = any(name in message for message in messages)
            if said and text == render([_without(name, message) for message in messages]):
                notes.append(f"{name}: the model's chat template does not show {shown} to the model")
        if prompt.goes_on:
            text, found, _ = text.rpartition(mark)
            if not found:
                raise RequestError(f"the model's chat template cannot go on with a last message of {_whose(messages)}")
        parts = (self.tokenizer.encode(part, add_special_tokens=False) for part in text.split(mark))
        return Encoded(tuple(token for part in parts for token in part), self.thinking(text, begun), tuple(notes))

    def thinking(self, text: str, begun: str | None) -> Thinking:
        """Whether thoughts follow a rendered prompt, of which `begun` are the answer's first words; None: no chat."""
        start, end = (getattr(self.tokenizer, name, None) for name in ("think_start", "think_end"))
        if start is None or end is None:
            return "none"
        text = text.rstrip()
        if text.endswith(start) or (begun and begun.rfind(start) > begun.rfind(end)):
            return "open"
        return "none" if begun is None or begun.strip() or text.endswith(end) else "may"

    def _end_with_mark(self, messages: list[dict[str, Any]], mark: str) -> str:
        """Puts the mark behind the last message, and returns what that says."""
        if not messages:
            raise RequestError("there is no message to go on with")
        if "tool_calls" in messages[-1]:
            raise RequestError("cannot go on with a message that has tool_calls; add the tools' answers to the chat")
        begun = messages[-1]["content"]
        messages[-1] = {**messages[-1], "content": begun + mark}
        return begun

    @cached_property
    def _in_answers(self) -> re.Pattern[str] | None:
        """What must stay text in the assistant's messages: templates look for `</think>` in them, and may."""
        return any_of(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    @cached_property
    def _in_questions(self) -> re.Pattern[str] | None:
        """What must stay text in all others: also tokens that only the template calls control tokens, as `<think>`."""
        return any_of(
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.special or (TAG.fullmatch(token.content) and self.template.names_token(token.content))
        )


def any_of(names: Any) -> re.Pattern[str] | None:
    """Finds the next place where one of these begins; a single character cannot be told from text."""
    found = sorted({name for name in names if len(name) > 1})
    return re.compile("|".join(map(re.escape, found))) if found else None


def _message(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A message as templates expect it: what is not said is not there, and arguments of tool calls are objects."""
    plain = {name: value for name, value in message.items() if value is not None and value != ()}
    plain.setdefault("content", "")
    if thoughts := plain.get("reasoning_content"):
        plain["reasoning"] = thoughts  # as newer templates call it
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = [_call(call, f"messages.{place}.tool_calls.{n}") for n, call in enumerate(calls)]
    return plain


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(arguments := function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except ValueError:
            raise RequestError(f"{where}.function.arguments is no JSON; give the arguments as a JSON object") from None
    return {**call, "function": function}


def _without(field: str, message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != field}


def _whose(messages: Sequence[Mapping[str, Any]]) -> str:
    role = messages[-1]["role"]
    return f"the {role}'s"


def _breaker(names: re.Pattern[str] | None, mark: str) -> Callable[[str], str]:
    """Puts a mark behind the first character of each control token's name in a text, so that none is whole."""

    def broken(text: str) -> str:
        parts, start = [], 0
        while names and (found := names.search(text, start)):
            parts.append(text[start : found.start() + 1])
            start = found.start() + 1
        return mark.join([*parts, text[start:]])

    return broken


def _broken_message(message: dict[str, Any], strict: Callable[[str], str], loose: Callable[[str], str]) -> Any:
    broken = {name: value if name == "role" else _broken(value, strict) for name, value in message.items()}
    return broken | ({"content": loose(message["content"])} if message["role"] == "assistant" else {})


def _broken(value: Any, text: Callable[[str], str]) -> Any:
    """A value of JSON with all texts in it changed by `text`, names of fields too."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {text(name): _broken(inner, text) for name, inner in value.items()}
    return [_broken(inner, text) for inner in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _unused(texts: Sequence[str]) -> str:
    """A mark that is in none of the texts, not even written as JSON's escapes."""
    used = {character for text in texts for character in text if ord(character) >= MARKS.start}
    escapes = any("\\udb" in text.lower() for text in texts)
    for code in MARKS:
        mark = chr(code)
        if mark not in used and not (escapes and any(_escaped(mark) in text.lower() for text in texts)):
            return mark
    raise RequestError("the messages have every character that Unicode leaves for private use")


def _escaped(mark: str) -> str:
    """As JSON in ASCII has it."""
    return json.dumps(mark)[1:-1]
