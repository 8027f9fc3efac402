"""Which requests an engine can serve, and the rows that it makes of them."""

from __future__ import annotations

from collections.abc import Iterable

from .choose.bad_words import Forbidding, spelled
from .choose.grammar import Grammars
from .request import Adapters, Request, RequestError
from .schedule.row import Matcher, Row
from .text import Text


class Admission:
    """Makes rows of requests; what no engine with this model could serve is refused.

    Args:
        text: the tokenizer's side.
        context_length: most tokens of prompt and completion together.
        vocabulary: tokens that the model's logits cover.
        adapters: the LoRA adapters that requests may name.
    """

    def __init__(self, text: Text, context_length: int, vocabulary: int, adapters: Adapters):
        self.text, self.context_length, self.vocabulary, self.adapters = text, context_length, vocabulary, adapters
        self._grammars = Grammars(text.tokenizer, vocabulary)

    def row(self, request: Request) -> Row:
        """A row that waits. Raises RequestError."""
        sampling, prompt = request.sampling, len(request.tokens)
        if prompt == 0:
            raise RequestError("the prompt is empty")
        if (room := self.context_length - prompt) < 1:
            raise RequestError(
                f"the prompt has {prompt:,} tokens, the context {self.context_length:,}; shorten the prompt"
            )
        self._check("the prompt", request.tokens)
        self._check("logit_bias", (token for token, _ in sampling.logit_bias))
        self._check("allowed_token_ids", sampling.allowed_token_ids)
        self._check("stop_token_ids", sampling.stop_token_ids)
        if sampling.min_tokens > (limit := min(sampling.max_tokens, room)):
            raise RequestError(
                f"min_tokens is {sampling.min_tokens:,}, but max_tokens and the context leave {limit:,}; lower it"
            )
        words = spelled(sampling.bad_words, self.text.tokenizer)
        row = Row(
            request,
            limit,
            self.matcher(request),
            ends=frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self.text.end_tokens),
            banned=tuple(token for token, *others in words if not others),
            adapter=self.adapters.place(request.adapter),
        )
        kept = set(sampling.allowed_token_ids) - set(row.banned) - (row.ends if sampling.min_tokens else set())
        if sampling.allowed_token_ids and not kept:
            raise RequestError("bad_words or min_tokens forbid all of allowed_token_ids; allow others")
        return row

    def matcher(self, request: Request) -> Matcher | None:
        """What the request's text must obey token by token, at its beginning; None if nothing. Raises RequestError."""
        grammar = self._grammars.matcher(request)
        words = [word for word in spelled(request.sampling.bad_words, self.text.tokenizer) if len(word) > 1]
        return Forbidding(words, self.vocabulary, grammar) if words else grammar

    def _check(self, name: str, tokens: Iterable[int]) -> None:
        """Whether the model has all these tokens; raises RequestError."""
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise RequestError(f"{name} has token {token:,}, the model's are 0 to {self.vocabulary - 1:,}")
