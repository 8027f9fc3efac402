"""One line of a dataset becomes one job body, or a reason in plain words why it cannot.

Two forms: an OpenAI Batch line (`custom_id`, `method`, `url`, `body`), and a short line: `prompt` or
`messages`, an optional `id`, and parameters side by side. A short line's `prompt` is an instruction,
so it is sent as a chat of one user message; raw text to be continued goes through an OpenAI line with the url
/v1/completions.
"""

from __future__ import annotations

from typing import Any, get_args

import orjson

from ..queue.wire import MOST_ID_CHARACTERS, Grammar, JobBody, ModelDefault, Sampling
from .defaults import Defaults
from .models import split, target_of
from .notes import Notes
from .request.asked import URLS, Asked, asked
from .request.faults import Fault, kind, show
from .request.fields import CELLS, PLAIN
from .request.messages import instruction, messages, prompts, turn
from .request.sampling import choices, given, sampling
from .request.structure import grammar
from .request.thinking import template, unfold
from .request.tools import tools

CHAT, TEXT = URLS["chats"], URLS["texts"]


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object on a line."""
    try:
        value = orjson.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Fault(f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}") from None
    except orjson.JSONDecodeError as error:
        raise Fault(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise Fault(f"{kind(value)} instead of a JSON object")
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
    """The job that a line asks for, not yet in a batch. `notes` counts what was ignored.

    It is for `pair`, unless the line names another. A server chose the pair by the model, perhaps by another name.
    """
    is_short = "body" not in line
    is_chat, fields = _short(line) if is_short else _openai(line)
    wanted = asked(fields, is_chat, is_short and not defaults.served, notes)
    unfold(wanted)
    values = given(wanted, is_chat)
    chosen, n = sampling(values, defaults.sampling, wanted.said), choices(wanted, defaults.n)
    left = _left_to_model(values, defaults)
    if n > 1 and chosen.temperature == 0 and "temperature" not in left:
        notes.surprises["the n answers are all the same, because the temperature is 0"] += 1
    obeyed = grammar(wanted, defaults.grammar)
    if defaults.served:
        head, own = split(wanted.get("model"))
        own = own if head == pair else None
    else:
        pair, own = target_of(wanted.get("model"), pair, defaults.models, notes)
    return JobBody(
        batch="",
        custom_id=name,
        pair=pair,
        n=n,
        sampling=chosen,
        grammar=obeyed,
        model_defaults=left,
        line=number,
        adapter=_adapter(wanted, own) or defaults.adapter,
        drafts=defaults.drafts,
        **(_chat(wanted, defaults, obeyed, notes) if is_chat else _text(wanted, chosen, n)),
    )


def from_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose values are all texts, as those of CSV are, as a line: parameters are the JSON that their cells hold.

    An empty cell says nothing, and what is no JSON stays a text.
    """
    return {
        name: _value(text) if name in CELLS else text for name, text in row.items() if text or name not in CELLS | PLAIN
    }


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _openai(line: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether the line asks for a chat, and its fields."""
    body = line["body"]
    if not isinstance(body, dict):
        raise Fault(f"body is {kind(body)} instead of a JSON object")
    if line.get("method", "POST") != "POST":
        raise Fault(f"method is {show(line['method'])}; only POST is served")
    url = line.get("url", CHAT if "messages" in body else TEXT)
    if url not in (CHAT, TEXT):
        raise Fault(f"url is {show(url)}; only {CHAT} and {TEXT} are served")
    return url == CHAT, body


def _short(line: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    fields = {name: value for name, value in line.items() if name not in ("id", "custom_id")}
    if fields.get("prompt") is None:
        if fields.get("messages") is None:
            raise Fault("has no prompt (nor messages)")
        return True, fields
    if fields.get("messages") is not None:
        raise Fault("has both prompt and messages; keep one")
    prompt = instruction(fields.pop("prompt"))
    return True, fields | {"messages": [{"role": "user", "content": prompt}]}


def _chat(wanted: Asked, defaults: Defaults, obeyed: Grammar | None, notes: Notes) -> dict[str, Any]:
    """What of a job only chats have."""
    if wanted.flag("add_special_tokens"):
        raise Fault("add_special_tokens = true is not supported: a chat template writes them; remove it")
    chat = messages(wanted, defaults.system, notes)
    continues, prompted = turn(wanted, chat, notes)
    trusted = wanted.flag("control_tokens")
    return {
        "messages": chat,
        "tools": tools(wanted, obeyed),
        "template": template(wanted, defaults.template),
        "continues": continues,
        "prompted": prompted,
        "trusted": defaults.trusted if trusted is None else trusted,
    }


def _text(wanted: Asked, chosen: Sampling, n: int) -> dict[str, Any]:
    """What of a job only text completions have."""
    if wanted.flag("add_special_tokens") is False:
        raise Fault("add_special_tokens = false is not supported; give the prompt as token ids")
    echo = bool(wanted.flag("echo"))
    if echo and chosen.logprobs is not None:
        raise Fault("echo with logprobs is not supported: prompts have no log-probabilities; keep one")
    return {"prompts": prompts(wanted, n), "echo": echo}


def _adapter(wanted: Asked, own: str | None) -> str | None:
    """The LoRA adapter that a line names, as `adapter` or, its `own`, behind the pair in `model`. Raises Fault."""
    name = wanted.get("adapter")
    if name is not None and (not isinstance(name, str) or not name):
        raise Fault(f"adapter is {show(name)}; it must be the name of a worker's LoRA adapter")
    if own and name not in (None, own):
        raise Fault(f"model is {show(wanted.get('model'))} and adapter is {show(name)}; keep one")
    return own or name


def _left_to_model(values: dict[str, Any], defaults: Defaults) -> tuple[ModelDefault, ...]:
    """The parameters that the model's own defaults decide, because nobody names them."""
    if not defaults.model_defaults:
        return ()
    return tuple(name for name in get_args(ModelDefault) if name not in values and name not in defaults.sampling)
