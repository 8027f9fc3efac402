"""Bad words: their tokens as vLLM takes them, and that they never come, in free texts and under grammars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import load as load_tokenizer

from draftmill.engine.choose.bad_words import Forbidding, spelled
from draftmill.engine.choose.grammar import GrammarError, Grammars
from draftmill.engine.choose.masks import allows, masked
from draftmill.engine.request import Grammar, Request, Sampling
from tests.engine.choose.test_grammar import (
    REVIEW,
    VOCABULARY,
    asking,
    engine,
    small_model,
    tokenizer,
    tokens,
)
from tests.engine.small import run


def test_words_are_spelled_alone_and_behind_a_space(boxed_model: Path) -> None:
    made = load_tokenizer(boxed_model)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(made.encode(text, add_special_tokens=False))

    assert spelled(["cat", " cat"], made) == [encode("cat"), encode(" cat")]
    for word in ("unbelievability", "New York", "'s"):
        plain, spaced = encode(word), encode(" " + word)
        wanted = [plain, spaced] if len(plain) == len(spaced) and plain[0] != spaced[0] else [plain]
        assert spelled([word], made) == wanted


def matcher(*sequences: tuple[int, ...]) -> Forbidding:
    return Forbidding(sequences, 20)


def forbidden(mask: bytes | None) -> list[int]:
    return [token for token in range(20) if not allows(mask, token)]


def test_the_last_token_of_a_word_is_forbidden_behind_the_others() -> None:
    made = matcher((1, 2), (3, 1, 4), (5, 5))
    assert [forbidden(mask) for mask in made.masks([3, 1, 9])] == [[], [], [2, 4], []]
    assert [forbidden(mask) for mask in made.masks([1, 2, 9])] == [[], [2]]  # nothing behind a draft that may not come
    made.advance([3])
    assert [forbidden(mask) for mask in made.masks([1])] == [[], [2, 4]]
    made.advance([1])
    assert [forbidden(mask) for mask in made.masks([])] == [[2, 4]]
    made.advance([5])
    assert [forbidden(mask) for mask in made.masks([])] == [[5]]
    assert not made.complete


def test_where_nothing_is_left_the_row_cannot_go_on() -> None:
    made = Forbidding([(1, token) for token in range(8)], 8)
    made.advance([1])
    with pytest.raises(GrammarError, match="bad_words and the grammar leave no token"):
        made.masks([])


STRINGS = {"type": "array", "items": {"type": "string", "minLength": 3, "maxLength": 9}, "minItems": 2, "maxItems": 4}


def by_mlx_lm(request: Request) -> list[int]:
    """The likeliest tokens that neither the grammar nor a bad word forbids, by mlx-lm's own model."""
    grammar = Grammars(tokenizer(), VOCABULARY).matcher(request)
    assert grammar
    cache, feed = make_prompt_cache(small_model("llama")), request.tokens
    generated: list[int] = []
    while not grammar.complete:
        logits = masked(small_model("llama")(mx.array([feed]), cache=cache)[:, -1], grammar.masks([]))
        for *first, last in spelled(request.sampling.bad_words, tokenizer()):
            if generated[len(generated) - len(first) :] == first:
                logits[:, last] = -mx.inf
        feed = (int(mx.argmax(logits)),)
        if feed[0] in tokenizer().eos_token_ids:
            break
        generated += feed
        grammar.advance(feed)
    return generated


@pytest.mark.parametrize("draft", [False, True])
def test_grammars_and_bad_words_hold_together(draft: bool) -> None:
    plain = run(engine(), asking(4, STRINGS))
    strings = [string for completion in plain.values() for string in json.loads(completion.text)]
    pairs = [string[i : i + 2] for string in strings for i in range(len(string) - 1)]
    words = tuple(pair for pair in pairs if pair.isascii() and pair.isalnum())
    assert {len(spelling) for spelling in spelled(words, tokenizer())} >= {2}
    asked = asking(4, STRINGS, bad_words=words)
    done = run(engine(draft=draft), asked)
    for request in asked:
        assert list(done[request.id].tokens) == by_mlx_lm(request)
    assert tokens(done) != tokens(plain)


def test_changes_come_before_the_grammar_s_masks() -> None:
    (letter,) = tokenizer().encode("m", add_special_tokens=False)
    (quote,) = tokenizer().encode('"', add_special_tokens=False)
    schema = {"enum": ["good", "bad", "mixed"]}

    def answer(**sampling: Any) -> str:
        return run(engine(draft=True), asking(1, schema, **sampling))["r0"].text

    assert answer(logit_bias=((letter, 100.0),)) == '"mixed"'
    assert answer(allowed_token_ids=(quote, *tokenizer().encode("bad"))) == '"bad"'
    long = run(engine(draft=True), asking(1, {"type": "integer"}, max_tokens=40, min_tokens=12))["r0"]
    assert len(long.tokens) >= 12


def test_a_whole_text_ends_before_min_tokens() -> None:
    done = run(engine(), asking(1, {"enum": [True]}, min_tokens=50))["r0"]
    assert (done.text, done.finish_reason) == ("true", "stop")


@pytest.mark.parametrize("allowed", ["z", "\u0100"])
def test_a_row_that_nothing_is_left_for_ends_alone(allowed: str) -> None:
    never: Sequence[int] = tokenizer().encode(allowed, add_special_tokens=False)
    bad = Request("bad", (1, 2), Sampling(allowed_token_ids=tuple(never)), Grammar("json", '{"type": "boolean"}'))
    done = run(engine(), [bad, *asking(2)])
    assert (done["bad"].finish_reason, done["bad"].error) == (
        "error",
        "the grammar, allowed_token_ids and bad_words together leave no token that may come",
    )
    assert json.loads(done["r0"].text).keys() == REVIEW["properties"].keys()
