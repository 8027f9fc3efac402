"""Reads one request as a line of a file: of OpenAI's two kinds, or short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.lines import CHAT, TEXT, job_body
from draftmill.producer.input.notes import Notes
from draftmill.producer.input.request.faults import Fault
from draftmill.producer.queue.wire import JobBody

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> JobBody:
    """A line for /v1/chat/completions; `notes` and `defaults` are those of the dataset, all else is in its body."""
    return _read(lambda body: {"custom_id": "a", "url": CHAT, "body": {"messages": [USER]} | body}, **fields)


def text(**fields: Any) -> JobBody:
    """A line for /v1/completions."""
    return _read(lambda body: {"custom_id": "a", "url": TEXT, "body": {"prompt": "hi"} | body}, **fields)


def short(**fields: Any) -> JobBody:
    """A short line."""
    return _read(lambda line: {"prompt": "hi"} | line, **fields)


def _read(
    line: Callable[[dict[str, Any]], dict[str, Any]],
    notes: Notes | None = None,
    defaults: Defaults | None = None,
    **fields: Any,
) -> JobBody:
    return job_body(line(fields), "a", 1, "p", defaults or Defaults(), Notes() if notes is None else notes)


def fault(read: Any, **fields: Any) -> str:
    """Why the request cannot run; empty if it can."""
    try:
        read(**fields)
    except Fault as fault:
        return str(fault)
    return ""


def told(read: Any, **fields: Any) -> list[str]:
    """The notes about it."""
    read(notes=(notes := Notes()), **fields)
    return [note for note, _ in notes]
