"""Between what users of the API write and read and what jobs are: names of models, and the forms of three endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....input.lines import CHAT, TEXT, Fault
from .answer import response_of
from .asked import chat_of

RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, TEXT, RESPONSES)


@dataclass(frozen=True)
class Translation:
    """For requests to `endpoint` that call the pair `model`; by several names, if it is empty.

    `adapters` are the LoRA adapters that models stand for, where they do.
    """

    endpoint: str
    pair: str
    model: str
    adapters: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes_answers(self) -> bool:
        return self.endpoint == RESPONSES or self.model != self.pair

    @property
    def needs_requests(self) -> bool:
        """Whether an answer's form depends on its request."""
        return self.endpoint == RESPONSES or not self.model

    def line(self, line: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A line of requests in a form that becomes a job, and notes about what is ignored; raises Fault."""
        body, said = line.get("body"), list[str]()
        if not isinstance(body, dict):
            return line, said
        if self.endpoint == RESPONSES:
            if line.get("url") != RESPONSES:
                raise Fault(f"url is {line.get('url')!r}; it must be {RESPONSES}")
            body, said = chat_of(body)
            line = line | {"url": CHAT}
        adapter = self.adapters.get(str(body.get("model")))
        return line | {"body": body | {"model": f"{self.pair}:{adapter}" if adapter else self.pair}}, said

    def answer(self, asked: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """A completion's body in the form of the endpoint; `asked` is the request's."""
        model = self.model or asked["model"]
        if self.endpoint == RESPONSES:
            return response_of(asked, answer, model)
        return answer | {"model": model}
