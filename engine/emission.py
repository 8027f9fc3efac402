"""What a row makes of the tokens that a round emits: they are appended until one of them ends it."""

from __future__ import annotations

from collections.abc import Sequence

from .request import FinishReason, TokenLogprob
from .schedule.row import Row
from .text import Text


def emit(row: Row, tokens: Sequence[int], logprobs: Sequence[TokenLogprob], text: Text) -> FinishReason | None:
    """Append tokens, with their log-probabilities if there are any; returns why the row ends, None if it goes on."""
    sampling = row.request.sampling
    for place, token in enumerate(tokens):
        if token in row.ends:
            return "stop"
        row.generated.append(token)
        row.logprobs += logprobs[place : place + 1]
        if text.stopped(row.generated, sampling.stop, sampling.min_tokens):
            return "stop"
        if row.matcher and row.matcher.complete and place + 1 == len(tokens):
            return "stop"
        if len(row.generated) >= row.limit:
            return "length"
    return None


def shown(row: Row, text: Text) -> str:
    """The row's text, before its stop string or with it."""
    sampling = row.request.sampling
    return text.shown(row.generated, sampling.stop, sampling.min_tokens, sampling.include_stop)
