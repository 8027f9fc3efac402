"""/v1/models: the pairs that lines may name as their model, and how many live workers serve each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis as redis_py
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...queue import batches, pair_names
from .api_errors import ApiError


class Models:
    """The known pairs, whether a worker serves them now or later, and whatever else live workers serve.

    `aliases` are further names of pairs. A LoRA adapter of live workers is a model, too, by its own name where only
    one pair has it, and always as PAIR:ADAPTER.
    """

    def __init__(self, redis: redis_py.Redis, more: Sequence[str], aliases: Mapping[str, str]) -> None:
        self._redis, self._aliases = redis, aliases
        self._known = (*map(pair_names.canonical, more), *pair_names.KNOWN)
        self._since = int(time.time())

    @property
    def routes(self) -> Iterator[Route]:
        yield Route("/v1/models", self.list, methods=["GET"])
        yield Route("/v1/models/{model:path}", self.retrieve, methods=["GET"])

    def live(self) -> Counter[str]:
        """How many live workers serve each pair."""
        return Counter(report["pair"] for report in batches.workers(self._redis) if report.get("pair"))

    def pair(self, model: str) -> str | None:
        """The pair that a model's name stands for, with an adapter or without one."""
        return self._plain(model) or self._adapted().get(model, (None, None))[0]

    def adapter(self, model: str) -> str | None:
        """The LoRA adapter that a model's name stands for, if it is not that of a pair."""
        return None if self._plain(model) else self._adapted().get(model, (None, None))[1]

    def _plain(self, model: str) -> str | None:
        """The pair that has this name or alias."""
        if model in self._aliases:
            return self._aliases[model]
        known = {*self._known, *self.live()}
        return next((name for name in (pair_names.canonical(model), model.lower()) if name in known), None)

    def check(self, model: Any) -> str:
        """The pair for the `model` of a request; raises ApiError."""
        if not isinstance(model, str) or not model:
            raise ApiError(400, "You must provide a model parameter.", param="model", code="missing_required_parameter")
        if pair := self.pair(model):
            return pair
        raise unknown(model)

    def _adapted(self) -> dict[str, tuple[str, str]]:
        """The pair and the adapter of each name that stands for an adapter."""
        served = {
            (report["pair"], adapter)
            for report in batches.workers(self._redis)
            for adapter in filter(None, report.get("adapters", "").split(","))
        }
        times = Counter(adapter for _, adapter in served)
        short = {adapter: (pair, adapter) for pair, adapter in sorted(served) if times[adapter] == 1}
        return short | {f"{pair}:{adapter}": (pair, adapter) for pair, adapter in sorted(served)}

    def list(self, request: Request) -> Response:
        live = self.live()
        adapted = {name: pair for name, (pair, _) in self._adapted().items()}
        pairs = {**adapted, **self._aliases, **{name: name for name in (*live, *self._known)}}
        data = [self._public(name, pair, live[pair]) for name, pair in pairs.items()]
        return JSONResponse({"object": "list", "data": data})

    def retrieve(self, request: Request) -> Response:
        model = request.path_params["model"]
        pair = self.check(model)
        named = model in self._aliases or self.adapter(model)
        return JSONResponse(self._public(model if named else pair, pair, self.live()[pair]))

    def _public(self, name: str, pair: str, workers: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": "draftmill",
            "root": pair,
            "live_workers": workers,
        }


def unknown(model: str) -> ApiError:
    """No such model."""
    message = f"The model '{model}' does not exist: it is no known pair, and no live worker serves it."
    return ApiError(404, message, param="model", code="model_not_found")
