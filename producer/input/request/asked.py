"""The fields of a request: what is not served is refused or noted, what is served gets one name for each thing."""

from __future__ import annotations

from typing import Any

from ..notes import Notes
from .faults import Fault, kind, show
from .fields import FIELDS, Field

ALIASES = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "thinking_token_budget": "thinking_budget",
    "thinking_budget_tokens": "thinking_budget",
}
"""Names that others have for ours."""

URLS = {"chats": "/v1/chat/completions", "texts": "/v1/completions"}


class Asked:
    """What a request asks for, under our names. `said` has the names by which the user called what is here."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self.said: dict[str, str] = {}
        self._switches: set[str] = set()

    def put(self, name: str, value: Any, said: str | None = None, is_switch: bool = False) -> None:
        """Adds a value that the user gave as `said`, a name that tells the value if it `is_switch`.

        Raises Fault if another value was given.
        """
        said = said or name
        if name in self._values and self._values[name] != value:
            raise Fault(f"{self.words(name)} and {said} is {show(value)}; keep one")
        self._values[name] = value
        self.said[name] = said
        if is_switch:
            self._switches.add(name)

    def words(self, name: str) -> str:
        """What the user said about a name that is here."""
        said = self.said[name]
        return f"{said} is given" if name in self._switches else f"{said} is {show(self._values[name])}"

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def flag(self, name: str) -> bool | None:
        """A value that is true or false, or None if nothing was said."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise Fault(f"{self.said[name]} is {show(value)}; it must be true or false")
        return value


def asked(given: dict[str, Any], is_chat: bool, is_short: bool, notes: Notes) -> Asked:
    """The fields of a request that are honoured and say something; raises Fault.

    In a short line or a row of a table, `is_short`, fields that may as well be columns are noted and left out.
    """
    found = Asked()
    for name, value in given.items():
        field = FIELDS.get(name)
        if field is None:
            notes.unknown[f"field {show(name)} is unknown and ignored"] += 1
        elif value is not None and _is_honoured(field, value, is_chat, is_short, notes):
            found.put(ALIASES.get(name, name), value, name)
    return found


def _is_honoured(field: Field, value: Any, is_chat: bool, is_short: bool, notes: Notes) -> bool:
    name = show(field.name)
    if field.does == "nothing" or (_is_in(value, field.harmless) and (field.does != "honoured")):
        return False
    if field.does == "noted":
        notes.surprises[f"field {name} changes nothing here: {field.instead}"] += 1
        return False
    if field.does == "refused":
        if not (is_short and field.column):
            raise Fault(f"{field.name} = {show(value)} is not supported; {field.instead}")
        notes.unserved[f"field {name} is not supported and ignored; it would change the text"] += 1
        return False
    if is_short and field.column and not isinstance(value, bool | dict):
        notes.unserved[f"field {name} is taken for a column and ignored; as a parameter write {field.instead}"] += 1
        return False
    if field.of == ("texts" if is_chat else "chats"):
        if not _is_in(value, field.harmless):
            raise Fault(f"{field.name} is for {field.of}, those of {URLS[field.of]}; remove it")
        return False
    return True


def _is_in(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Whether it is one of these; a number is not true or false."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds, however it is written; raises Fault."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Fault(f"{name} is {show(value)}; it must be a whole number")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise Fault(f"{name} is {value}; it must be {bound}")
    return value


def named(name: str, value: Any) -> dict[str, Any]:
    """An object; raises Fault."""
    if not isinstance(value, dict):
        raise Fault(f"{name} is {kind(value)} instead of an object")
    return value
