"""One line of a dataset becomes one job body, or a reason in plain words why it cannot.

Two forms: an OpenAI Batch line (`custom_id`, `method`, `url`, `body`), and a short line: `prompt` or
`messages`, an optional `id`, and sampling parameters side by side. A short line's `prompt` is an instruction,
so it is sent as a chat of one user message; raw text to be continued goes through an OpenAI line with the url
/v1/completions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError

from ..queue.pair_names import canonical
from ..queue.wire import MOST_GRAMMAR_CHARACTERS, MOST_ID_CHARACTERS, Grammar, JobBody, Message, Sampling
from .fields import CELLS, CHANGE_NOTHING, MUST_BE, SAMPLING, SERVED, TEXTS, UNSERVED, WHOLE
from .notes import Notes

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

ANY_OBJECT = '{"type":"object"}'
"""The schema of response_format's type json_object."""

WRAPPER = frozenset(("type", "json_schema", "name", "description", "strict", "schema"))
"""What stands around a schema in OpenAI's APIs. A schema has other names, or another type than json_schema."""


class Fault(ValueError):
    """Why a line cannot be run."""


@dataclass(frozen=True)
class Defaults:
    """What applies where a line says nothing: sampling parameters by name, a system message, a JSON schema's text.

    `served` says that lines are requests to a server: a field that would change the text is refused, not noted.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    schema: str | None = None
    served: bool = False


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object on a line."""
    try:
        value = orjson.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Fault(f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}") from None
    except orjson.JSONDecodeError as error:
        raise Fault(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise Fault(f"{_kind(value)} instead of a JSON object")
    return value


def custom_id(line: dict[str, Any], number: int) -> str:
    """The id that the line gives itself; a short line without one is called by its number."""
    name = "custom_id" if "custom_id" in line or "body" in line else "id"
    value = line.get(name)
    return f"line-{number}" if value is None and name == "id" else checked_id(value, name)


def checked_id(value: Any, name: str) -> str:
    """The id that stands under `name`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise Fault(f"{name} is missing" if value is None else f"{name} must be a text that is not empty")
    if len(value) > MOST_ID_CHARACTERS:
        raise Fault(f"{name} has {len(value):,} characters; at most {MOST_ID_CHARACTERS} are allowed")
    return value


def job_body(line: dict[str, Any], name: str, number: int, pair: str, defaults: Defaults, notes: Notes) -> JobBody:
    """The job that a line asks for, not yet in a batch. `notes` counts what was ignored."""
    chat, asked = _openai(line) if "body" in line else _short(line)
    _refuse_unsupported(asked, defaults.served, notes)
    model = asked.get("model")
    if model is not None and not (isinstance(model, str) and canonical(model) == pair):
        notes.models[f"model {_show(model)} is ignored: the pair is {pair}"] += 1
    schema = _schema(asked, defaults.schema)
    return JobBody(
        batch="",
        custom_id=name,
        pair=pair,
        messages=_messages(asked, defaults.system) if chat else None,
        prompts=None if chat else (_prompt(asked),),
        sampling=sampling(_given(asked), defaults.sampling),
        line=number,
        grammar=None if schema is None else Grammar(kind="json", text=schema),
    )


def from_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose values are all texts, as those of CSV are, as a line: parameters are the JSON that their cells hold.

    An empty cell says nothing, and what is no JSON stays a text.
    """
    return {
        name: _value(text) if name in CELLS else text for name, text in row.items() if text or name not in CELLS | TEXTS
    }


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def sampling(given: dict[str, Any], defaults: dict[str, Any]) -> Sampling:
    """Checked sampling parameters: what is given, else the defaults."""
    values = defaults | given
    for name in WHOLE:  # a table whose column has gaps makes 3.0 of 3
        if isinstance(value := values.get(name), float) and value.is_integer():
            values[name] = int(value)
    stop = values.get("stop", ())
    values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
    try:
        return Sampling.model_validate(values, strict=True)
    except ValidationError as error:
        raise Fault(_reason(error)) from None


def schema_text(schema: Any, name: str) -> str:
    """The JSON schema that stands under `name`, as text. Whether it can be enforced is seen by those who do.

    What OpenAI's APIs wrap around a schema is taken off: read as a schema it would allow any JSON.
    """
    schema = _unwrapped(schema, name)
    if not isinstance(schema, dict):
        raise Fault(f"{name} is {_kind(schema)} instead of a JSON schema, an object")
    text = orjson.dumps(schema).decode()
    if len(text) > MOST_GRAMMAR_CHARACTERS:
        raise Fault(f"{name} has {len(text):,} characters; at most {MOST_GRAMMAR_CHARACTERS:,} are allowed")
    return text


def _unwrapped(given: Any, name: str) -> Any:
    """The schema in a `response_format`, in its `json_schema` or in the Responses API's `format`; else `given`."""
    if not isinstance(given, dict) or not given.keys() <= WRAPPER or given.keys() <= {"description"}:
        return given
    if given.get("type", "json_schema") != "json_schema":
        return given
    inner = given.get("json_schema", given.get("schema"))
    if inner is None:
        raise Fault(f"{name} has OpenAI's wrapper, and no schema in it")
    return _unwrapped(inner, name)


def _schema(asked: dict[str, Any], default: str | None) -> str | None:
    """The JSON schema that the completion must obey."""
    match asked.get("response_format"):
        case None:
            return default
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema_text(schema, "response_format.json_schema.schema")
        case {"type": "json_schema"}:
            raise Fault("response_format has no json_schema.schema")
        case {"type": kind}:
            raise Fault(f'response_format.type is {_show(kind)}; it must be "json_schema", "json_object" or "text"')
        case other:
            raise Fault(f"response_format is {_show(other)}; it must be an object with a type")


def _openai(line: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether the line asks for a chat, and its parameters."""
    body = line["body"]
    if not isinstance(body, dict):
        raise Fault(f"body is {_kind(body)} instead of a JSON object")
    if line.get("method", "POST") != "POST":
        raise Fault(f"method is {_show(line['method'])}; only POST is served")
    url = line.get("url", CHAT if "messages" in body else TEXT)
    if url not in (CHAT, TEXT):
        raise Fault(f"url is {_show(url)}; only {CHAT} and {TEXT} are served")
    return url == CHAT, body


def _short(line: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    asked = {name: value for name, value in line.items() if name not in ("id", "custom_id")}
    if asked.get("prompt") is not None:
        if asked.get("messages") is not None:
            raise Fault("has both prompt and messages; keep one")
        asked["messages"] = [{"role": "user", "content": _prompt(asked)}]
    elif asked.get("messages") is None:
        raise Fault("has no prompt (nor messages)")
    return True, asked


def _prompt(asked: dict[str, Any]) -> str:
    prompt = asked.get("prompt")
    if prompt is None:
        raise Fault("has no prompt")
    if not isinstance(prompt, str):
        raise Fault(f"prompt is {_kind(prompt)} instead of one text")
    if not prompt:
        raise Fault("prompt is empty")
    return prompt


def _messages(asked: dict[str, Any], system: str | None) -> tuple[Message, ...]:
    given = asked.get("messages")
    if given is None:
        raise Fault("has no messages")
    if not isinstance(given, list) or not given:
        raise Fault("messages must be a list that is not empty")
    messages = tuple(_message(i, message) for i, message in enumerate(given, 1))
    if system is not None and all(message.role != "system" for message in messages):
        return (Message(role="system", content=system), *messages)
    return messages


def _message(place: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise Fault(f"message {place} is {_kind(message)} instead of a JSON object")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise Fault(f"message {place} has {name}, which is not supported")
    role = "system" if message.get("role") == "developer" else message.get("role")
    try:
        return Message.model_validate({"role": role, "content": _text(place, message.get("content"))}, strict=True)
    except ValidationError as error:
        raise Fault(f"message {place}: {_reason(error)}") from None


def _text(place: int, content: Any) -> str:
    """Content is a text, or parts of which only the type text is served."""
    if content is None:
        raise Fault(f"message {place} has no content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Fault(f"message {place}: content is {_kind(content)} instead of a text")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise Fault(f"message {place}: content of type {_show(kind)} is not supported, only text is")
    return "".join(part["text"] for part in content)


def _refuse_unsupported(asked: dict[str, Any], served: bool, notes: Notes) -> None:
    refused = MUST_BE | UNSERVED if served else MUST_BE
    for name, value in asked.items():
        if name in refused:
            if value is not None and value not in refused[name]:
                raise Fault(f"{name} = {_show(value)} is not supported; remove it")
        elif name in UNSERVED:
            if value is not None and value not in UNSERVED[name]:
                notes.unserved[f"field {_show(name)} is not supported and ignored; it would change the text"] += 1
        elif name not in CHANGE_NOTHING and name not in SERVED:
            notes.unknown[f"field {_show(name)} is unknown and ignored"] += 1


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    given = {name: asked[name] for name in SAMPLING if asked.get(name) is not None}
    if asked.get("max_completion_tokens") is not None:
        given["max_tokens"] = asked["max_completion_tokens"]
    return given


LIMITS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_too_short": "not empty",
    "tuple_type": "a text or a list of texts",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
}
"""What a value must be, by pydantic's type of error."""


def _reason(error: ValidationError) -> str:
    """The first thing that pydantic found, in words."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    value = first["input"]
    if name == "role" and value is None:
        return "role is missing"
    bounds = {key: f"{bound}".removesuffix(".0") for key, bound in first.get("ctx", {}).items()}
    limit = LIMITS.get(first["type"], "").format(**bounds)
    return f"{name} is {_show(value)}; it must be {limit}" if limit else f"{name}: {first['msg']}"


def _show(value: Any) -> str:
    """A value as short JSON, or as Python has it where JSON does not: infinite, or an integer of more than 64 bits."""
    try:
        text = str(value) if isinstance(value, float) else orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:
        text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"
