"""Jinja2 over the columns of a row: prompts, system messages and conditions, in a sandbox.

A template runs as code does, so it is kept from Python's insides, from all that differs between two readings of
the same row (the batch id is made of what is rendered), and from loops and texts without an end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..queue.errors import UserError
from ..queue.wire import MOST_BODY_BYTES
from .request.faults import Fault, column_names

MOST_STEPS = 1_000_000
"""Passes through loops and calls of functions that one row may take."""
MOST_OF_A_POWER = 1_000
"""The largest base and exponent."""
TOO_LONG = f"longer than {MOST_BODY_BYTES:,} characters"
TAGS = ("{{", "{%", "{#")

Row = Mapping[str, Any]


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with what Python itself would not bound bounded for each row."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_shown)
        self.steps = 0
        self.filters["tojson"] = _json
        self.filters["counted"] = self._counted
        del self.filters["random"], self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Lets the passes through each loop of a template be counted."""
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        template.set_environment(self)
        return template

    @pass_context
    def _counted(self, _: Context, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def call(self, *arguments: Any, **named: Any) -> Any:
        self._step()
        return super().call(*arguments, **named)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Fault(f"takes more than {MOST_STEPS:,} passes through loops")

    def names(self, source: str) -> frozenset[str] | None:
        """The names that a template may ask its row for; None if it asks for the whole row."""
        asked = meta.find_undeclared_variables(self.parse(source))
        return None if "row" in asked else frozenset(asked | self.globals.keys())

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if max(abs(left), abs(right)) > MOST_OF_A_POWER:
                raise Fault(f"{left} ** {right} is more than this computes")
        else:
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and len(value) * times > MOST_BODY_BYTES:
                    raise Fault(TOO_LONG)
        return super().call_binop(context, operator, left, right)


class Template:
    """A text with tags; `what` is how errors call it. `columns` are those that it may ask for, None if all."""

    def __init__(self, text: str, what: str, sandbox: Sandbox) -> None:
        self._text, self._what, self._sandbox = text, what, sandbox
        self.has_tags = any(tag in text for tag in TAGS)
        with _explain_syntax(what):
            self._template = sandbox.from_string(text)
            self.columns = sandbox.names(text)

    def __call__(self, row: Row) -> str:
        """The text for a row; raises Fault."""
        if not self.has_tags:
            self._refuse_single_braces(row)
            return self._text
        pieces: list[str] = []
        length = self._sandbox.steps = 0
        with _explain(self._what, row):
            for piece in self._template.generate({**row, "row": row}):
                pieces.append(piece)
                length += len(piece)
                if length > MOST_BODY_BYTES:
                    raise Fault(TOO_LONG)
            text = "".join(pieces)
            text.encode()  # what a tag makes may not be text at all
            return text

    def _refuse_single_braces(self, row: Row) -> None:
        for name in re.findall(r"\{\s*(\w+)\s*\}", self._text):
            if name in row:
                raise UserError(f"the {self._what} has {{{name}}}; a column is written {{{{ {name} }}}}, as in Jinja2")


class Condition:
    """An expression over the columns of a row. `columns` are those that it may ask for, None if all."""

    def __init__(self, text: str, what: str, sandbox: Sandbox) -> None:
        self._what, self._sandbox = what, sandbox
        with _explain_syntax(what):
            self._expression = sandbox.compile_expression(text, undefined_to_none=False)
            self.columns = sandbox.names(f"{{{{ {text} }}}}")

    def __call__(self, row: Row) -> bool:
        """Whether it holds for a row; raises Fault."""
        self._sandbox.steps = 0
        with _explain(self._what, row):
            return bool(self._expression({**row, "row": row}))


def _shown(value: Any) -> Any:
    """A value that a text may show."""
    match value:
        case Undefined():
            str(value)  # raises UndefinedError, which names it
        case None:
            raise Fault("a value is null; {{ name or '' }} allows for that")
        case bytes():
            raise Fault("a value is binary, not text")
        case str() | bool() | int() | float() | list() | tuple() | dict():
            pass
        case _:
            raise Fault(f"a value is a {type(value).__name__}, not text")
    return value


def _json(value: Any, indent: int | None = None) -> str:
    """JSON as a model reads it; Jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


JARGON = {
    "end of print statement": "}}",
    "end of statement block": "%}",
    "begin of print statement": "{{",
    "begin of statement block": "{%",
    "expected token ": "expected ",
    "expected 'name'": "expected a name",
    "Jinja was looking for the following tags: ": "there should follow ",
    "The innermost block that needs to be closed is ": "It must end what begins with ",
}
"""Words of Jinja2's parser -> what somebody who wrote a template calls it."""


def _plain(message: str) -> str:
    for word, plain in JARGON.items():
        message = message.replace(word, plain)
    return message.rstrip(".")


@contextmanager
def _explain_syntax(what: str) -> Iterator[None]:
    try:
        yield
    except TemplateSyntaxError as error:
        raise UserError(f"the {what} is malformed, line {error.lineno}: {_plain(error.message or '')}") from None
    except RecursionError:
        raise UserError(f"the {what} is malformed: nested too deeply") from None


@contextmanager
def _explain(what: str, row: Row) -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        raise Fault(f"{what}: {fault}") from None
    except UndefinedError as error:
        raise Fault(f"{what}: {error.message} (columns: {column_names(row)})") from None
    except TypeError as error:
        hint = " (texts become numbers with | int or | float)" if "'str'" in str(error) else ""
        raise Fault(f"{what}: {error}{hint}") from None
    except Exception as error:  # a template is a program: it raises what it likes
        raise Fault(f"{what}: {error or type(error).__name__}") from None
