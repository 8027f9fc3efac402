"""Rows under a JSON schema: valid whatever the model, the same with any draft, in any company, after any preemption."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftmill.engine.choose.grammar import Grammars
from draftmill.engine.choose.masks import masked
from draftmill.engine.drafting.load import load_pair
from draftmill.engine.engine import Engine
from draftmill.engine.models.pairs import resolve
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Completion, Grammar, Request, RequestError, Sampling
from tests.engine.drafting.test_speculation import BLOCK, Replay, changing, random_draft
from tests.engine.small import llama_model, memory_for, qwen3_5_model, requests, run

MERGES = ("e r", "i n", "s t", "a n", "t r", "tr u", "tru e", "n u", "nu l", "nul l", '" :', '" ,', '" }', '{ "', "0 0")

REVIEW = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad", "mixed"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "read": {"type": "boolean"},
    },
    "required": ["mood", "stars", "words", "read"],
    "additionalProperties": False,
}


@functools.cache
def tokenizer(*markers: str) -> TokenizerWrapper:
    """Bytes and a few longer tokens, the last of them the end token; then up to 7 markers."""
    units = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "<end>"]
    pairs: Any = [tuple(merge.split(" ")) for merge in MERGES]
    backend: Any = Tokenizer(models.BPE(vocab={unit: i for i, unit in enumerate(units)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(marker, special=False) for marker in markers])
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>"))


VOCABULARY = 256 + len(MERGES) + 1 + 7
"""Logits cover more than the tokenizer has, as they often do."""

BUILDERS = {
    "llama": lambda: llama_model(vocab_size=VOCABULARY),
    "qwen3.5": lambda: qwen3_5_model(vocab_size=VOCABULARY),
}


@functools.cache
def small_model(family: str) -> Any:
    return BUILDERS[family]()


def engine(
    family: str = "llama", draft: bool = False, max_rows: int = 8, slots: int = 2048, markers: tuple[str, ...] = ()
) -> Engine:
    target = adapt(small_model(family))
    model = random_draft(num_target_layers=len(target.layers), vocab_size=VOCABULARY) if draft else None
    return Engine(target, tokenizer(*markers), 1024, max_rows, memory_for(target, model, slots, max_rows), draft=model)


def asking(count: int, schema: Any = REVIEW, max_tokens: int = 200, **sampling: Any) -> list[Request]:
    asked = requests(count, max_tokens=max_tokens, **sampling)
    return [replace(request, grammar=Grammar("json", json.dumps(schema))) for request in asked]


def tokens(done: dict[str, Completion]) -> dict[str, tuple[int, ...]]:
    return {id: completion.tokens for id, completion in done.items()}


def assert_valid(completion: Completion, schema: Any) -> None:
    assert completion.finish_reason == "stop"
    jsonschema.validate(json.loads(completion.text), schema)


@functools.cache
def by_mlx_lm(family: str, request: Request) -> list[int]:
    """The likeliest tokens that the grammar allows, by mlx-lm's own generation."""
    assert request.grammar
    matcher = Grammars(tokenizer(), VOCABULARY).matcher(request)
    assert matcher
    history: list[int] = []  # of the prompt, mlx-lm shows the last part only

    def obey(text: mx.array, logits: mx.array) -> mx.array:
        if history:
            matcher.advance([int(text[-1])])
        history.append(text.size)
        return masked(logits, matcher.masks([]))

    generated: list[int] = []
    for token, _ in generate_step(
        mx.array(request.tokens), small_model(family), max_tokens=200, logits_processors=[obey]
    ):
        if int(token) in tokenizer().eos_token_ids:
            break
        generated.append(int(token))
    return generated


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("family", BUILDERS)
def test_greedy_is_greedy_among_what_is_allowed(family: str, draft: bool) -> None:
    asked = asking(3)
    done = run(engine(family, draft), asked)
    for request in asked:
        assert_valid(done[request.id], REVIEW)
        assert list(done[request.id].tokens) == by_mlx_lm(family, request)


def replaying(family: str, texts: dict[str, list[int]], wrong: Callable[[int], bool], **options: Any) -> Engine:
    made = engine(family, draft=True, **options)
    assert made.drafter
    made.drafter = Replay(made.drafter.draft, made.target, made.pool.pages).replay(texts, wrong)
    return made


@pytest.mark.parametrize("family", BUILDERS)
def test_tokens_depend_neither_on_the_draft_nor_on_depths_nor_on_company(family: str) -> None:
    kinds = [{}, {"temperature": 1.0}, {"temperature": 1.2, "top_p": 0.9, "top_k": 40}]
    asked = [
        replace(request, sampling=replace(request.sampling, **kinds[i % 3])) for i, request in enumerate(asking(6))
    ]
    plain = run(engine(family), asked)
    for completion in plain.values():
        assert_valid(completion, REVIEW)
    free = [replace(request, id=f"free {request.id}", grammar=None) for request in asking(3, max_tokens=30)]
    expected = tokens(plain) | tokens(run(engine(family), free))
    mixed = [*asked[:2], *free, *asked[2:]]
    texts = {request.id: [*request.tokens, *expected[request.id]] for request in mixed}
    changes = replaying(family, texts, lambda i: i % 4 == 1, max_rows=5)
    changes.scheduler.depths = changing(5)
    for made in (engine(family, draft=True), replaying(family, texts, lambda i: False), changes):
        assert tokens(run(made, mixed, every=1)) == expected


def test_an_oracle_fills_every_block() -> None:
    asked = asking(4)
    plain = run(engine(), asked)
    texts = {request.id: [*request.tokens, *plain[request.id].tokens] for request in asked}
    done = run(replaying("llama", texts, lambda i: False), asked)
    for request in asked:
        blocks = -(-(len(plain[request.id].tokens) - 1) // BLOCK)
        assert (done[request.id].tokens, done[request.id].rounds) == (plain[request.id].tokens, blocks)


def test_growth_and_preemption_do_not_change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asking(6, longest=30, temperature=1.0)
    expected = tokens(run(engine(), asked))
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    free = [replace(request, id=f"free {request.id}", grammar=None) for request in asked[:2]]
    texts = {request.id: [*request.tokens, *expected[request.id]] for request in asked}
    texts |= {request.id: [0] * 300 for request in free}
    for made in (engine(slots=300, max_rows=6), replaying("llama", texts, lambda i: i % 5 == 0, slots=300, max_rows=6)):
        done = run(made, [*asked, *free])
        assert made.scheduler.preempted > 0
        assert {request.id: done[request.id].tokens for request in asked} == expected


def test_rows_with_a_grammar_take_every_second_round_beside_others_and_every_one_alone() -> None:
    asked = asking(3, {"type": "array", "items": {"type": "null"}, "minItems": 50, "maxItems": 50})
    made = engine()
    made.scheduler.forced = 0
    alone = tokens(run(made, asked))
    longest = max(len(answer) for answer in alone.values())
    assert made.stats.rounds == longest
    free = [replace(request, id=f"free {request.id}", grammar=None) for request in asking(2, max_tokens=2 * longest)]
    made = engine()
    made.scheduler.forced = 0
    assert tokens(run(made, [*asked, *free])).items() >= alone.items()
    assert made.stats.rounds <= 2 * longest + 1


def test_cancelled_and_asked_again() -> None:
    made, asked = engine(), asking(2)
    expected = tokens(run(engine(), asked))
    for request in asked:
        made.add(request)
    for _ in range(9):
        made.step()
    made.cancel("r0")
    made.add(asked[0])
    done = [completion for _ in range(400) if made.busy for completion in made.step()]
    assert [completion.finish_reason for completion in done] == ["cancelled", "stop", "stop"]
    assert done[0].tokens == expected["r0"][: len(done[0].tokens)]
    assert {completion.id: completion.tokens for completion in done[1:]} == expected


def test_max_tokens_cuts_and_a_text_that_is_whole_just_then_stops() -> None:
    asked = asking(1)[0]
    whole = run(engine(), [asked])["r0"]
    count = len(whole.tokens)
    for limit, reason in ((count, "stop"), (count - 1, "length"), (1, "length")):
        cut = replace(asked, sampling=replace(asked.sampling, max_tokens=limit))
        for draft in (False, True):
            completion = run(engine(draft=draft), [cut])["r0"]
            assert (completion.tokens, completion.finish_reason) == (whole.tokens[:limit], reason)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "EOF while parsing"),
        ('{"type": "number", "minimum": 3, "maximum": 2}', "Unsatisfiable schema"),
        ('{"not": {"type": "null"}}', 'Unimplemented keys: ["not"]'),
        ('{"type": "string", "pattern": "("}', "unclosed group"),
        ('{"$ref": "https://example.org/schema"}', "not present in a registry"),
    ],
)
def test_a_schema_that_cannot_be_enforced_fails_alone(schema: str, reason: str) -> None:
    made = engine()
    with pytest.raises(RequestError, match=r"^the grammar \(json\) cannot be enforced: [^\n]*$") as info:
        made.add(Request("bad", (1, 2), grammar=Grammar("json", schema)))
    assert reason in str(info.value)
    assert not made.busy
    assert_valid(run(made, asking(1))["r0"], REVIEW)


def test_a_grammar_that_becomes_too_hard_ends_its_row_alone() -> None:
    choices = [
        {"type": "object", "properties": {f"k{i}": {"type": "null"}, "z": {"type": "boolean"}}, "required": ["z"]}
        for i in range(1000)
    ]
    hard = Request("hard", (1, 2), grammar=Grammar("json", json.dumps({"anyOf": choices})))
    asked = asking(2)
    done = run(engine(), [hard, *asked])
    assert done["hard"].finish_reason == "error"
    assert done["hard"].error
    assert done["hard"].error.startswith("the grammar (json) is too hard: ")
    for request in asked:
        assert_valid(done[request.id], REVIEW)


KEYS = st.text(st.sampled_from('abc é"\\\n{'), min_size=1, max_size=4)


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas whose texts cannot be long."""
    leaves = st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
        st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
                  st.integers(-2000, 2000), st.integers(0, 500)),
        st.builds(lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
                  st.integers(0, 3), st.integers(0, 5)),
        st.builds(lambda values: {"enum": values},
                  st.lists(st.one_of(KEYS, st.integers(-99, 99), st.none(), st.booleans()), min_size=1, max_size=4)),
        st.sampled_from(["[a-c]{2,4}", "(x|yz)-[0-9]{1,3}"]).map(lambda p: {"type": "string", "pattern": f"^{p}$"}),
        st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda f: {"type": "string", "format": f}),
    )  # fmt: skip

    def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        def an_object(properties: dict[str, Any], optional: int) -> dict[str, Any]:
            required = list(properties)[optional:]
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

        return st.one_of(
            st.builds(an_object, st.dictionaries(KEYS, inner, min_size=1, max_size=3), st.integers(0, 2)),
            st.builds(lambda items, low: {"type": "array", "items": items, "minItems": low, "maxItems": low + 2},
                      inner, st.integers(0, 2)),
            st.lists(inner, min_size=1, max_size=2).map(lambda choices: {"anyOf": choices}),
        )  # fmt: skip

    return st.recursive(leaves, nested, max_leaves=5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(schemas(), min_size=1, max_size=4), st.sampled_from([0.0, 1.5]), st.booleans())
def test_a_random_model_under_any_schema_gives_valid_json(given: list[Any], temperature: float, draft: bool) -> None:
    asked = [
        Request(f"r{i}", (1 + i, 2, 3), Sampling(900, temperature, seed=i), Grammar("json", json.dumps(schema)))
        for i, schema in enumerate(given)
    ]
    done = run(engine(draft=draft), asked)
    for request, schema in zip(asked, given, strict=True):
        assert_valid(done[request.id], schema)


SHORT = (
    ({"enum": ["good", "bad", "so so"]}, "The {} was {}. Mood:"),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, "Is a {} {}?"),
    ({"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,5}$"}, "maxItems": 1}, "A {} {} word:"),
    (
        {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
        | {"additionalProperties": False},
        "How {} is {}?",
    ),
)
THINGS = ("room", "soup", "film", "book", "train", "lake", "song")


def test_answers_of_the_boxed_model_are_valid(cache: Path) -> None:
    parts = load_pair(resolve("smollm2-135m"), cache)
    made = Engine(parts.target, parts.loaded.tokenizer, 512, draft=parts.draft, depth=2, memory=2**30)
    asked = {
        Request(
            f"r{i}",
            made.text.encode(SHORT[i % 4][1].format(THINGS[i % 7], THINGS[i % 6])).tokens,
            Sampling(max_tokens=40, temperature=0.7 * (i % 2), seed=i),
            Grammar("json", json.dumps(SHORT[i % 4][0])),
        ): SHORT[i % 4][0]
        for i in range(16)
    }
    done = run(made, list(asked))
    for request, schema in asked.items():
        assert_valid(done[request.id], schema)
    assert made.stats.accepted > 0
