"""Thoughts before an answer: bounded by their budget, followed by what a grammar allows; in any company."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from llguidance import LLMatcher, LLTokenizer
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftmill.engine.choose.grammar import Grammars
from draftmill.engine.choose.masks import allows
from draftmill.engine.choose.notation import notated
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Completion, Grammar, Request, RequestError, Sampling
from draftmill.engine.schedule.row import Matcher
from tests.engine.drafting.test_speculation import Replay, changing, random_draft
from tests.engine.small import llama_model, memory_for, qwen3_5_model, requests, run
from tests.engine.test_recovery import at, failing

TEMPLATE = "{{ '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text }}"

START, END = "<think>", "</think>"


@functools.cache
def tokenizer(*extra: str, template: str | None = TEMPLATE) -> TokenizerWrapper:
    """So few tokens that a random model comes upon each: some characters, then markers, the last of them of the end."""
    units = [*'abc0123456789[]{}:,"', "Ċ", "Ġ", "ĊĊ"]
    backend: Any = Tokenizer(models.BPE(vocab={unit: i for i, unit in enumerate(units)}, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(name, special=False) for name in extra or (START, END)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    made.chat_template = template
    return TokenizerWrapper(made)


VOCABULARY = 40

BUILDERS = {
    "llama": lambda: llama_model(vocab_size=VOCABULARY),
    "qwen3.5": lambda: qwen3_5_model(vocab_size=VOCABULARY),
}

PATTERN = r"[abc]{3}(-[0-9]{1,2})?".replace("-", ":")
PATTERNS = Grammar("regex", PATTERN)
LIST = Grammar("json", '{"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}')


LETTERS = Grammar("regex", "[abc0-9]{20}")


@functools.cache
def small_model(family: str) -> Any:
    return BUILDERS[family]()


def engine(family: str = "llama", draft: bool = False, max_rows: int = 8, slots: int = 2048, **changes: Any) -> Engine:
    target = adapt(small_model(family))
    model = None
    if draft:
        model = random_draft(num_target_layers=len(target.layers), vocab_size=VOCABULARY)
    memory = memory_for(target, model, slots, max_rows)
    return Engine(target, tokenizer(), 1024, max_rows, memory, draft=model, **changes)


def asking(count: int, max_tokens: int = 150, **sampling: Any) -> list[Request]:
    """Each kind of thoughts with and without budget and grammar, and neither."""
    kinds = list(itertools.product(("open", "may", "none"), (None, 0, 1, 7), (None, PATTERNS, LIST)))
    asked: list[Request] = []
    for i, request in zip(range(count), requests(count, max_tokens=max_tokens, **sampling), strict=True):
        thinking, budget, grammar = kinds[i * 7 % len(kinds)]
        prompt = tuple(token % VOCABULARY for token in request.tokens)
        sampled = replace(request.sampling, thinking_budget=budget)
        asked.append(Request(request.id, prompt, sampled, grammar, thinking))
    return asked


def number(*texts: str) -> list[int]:
    return [tokenizer().convert_tokens_to_ids(text) for text in texts]


def split(request: Request, tokens: Sequence[int]) -> tuple[list[int] | None, list[int] | None]:
    """Thoughts and answer; None if there are none, or none yet."""
    (start, end), text = number(START, END), list(tokens)
    if request.thinking == "none":
        return None, text
    if request.thinking == "may":
        blank = next((i for i, token in enumerate(text) if token not in number("Ċ", "Ġ", "ĊĊ")), len(text))
        if text[blank : blank + 1] != [start]:
            return None, text
        text = text[blank + 1 :]
    if end not in text:
        return text, None
    return text[: text.index(end)], text[text.index(end) + 1 :]


def assert_obeyed(request: Request, completion: Completion) -> None:
    thoughts, answer = split(request, completion.tokens)
    budget = request.sampling.thinking_budget
    if thoughts is not None and budget is not None:
        assert len(thoughts) <= budget
    if answer is None or request.grammar is None:
        return
    text = tokenizer().decode(answer)
    if thoughts is not None:
        newlines = "\n\n"[: len(answer) * 2]
        assert text.startswith(newlines)  # as the template has it
        text = text[2:]
    if completion.finish_reason == "length":
        return
    assert completion.finish_reason == "stop"
    if request.grammar is PATTERNS:
        assert re.fullmatch(PATTERN, text)
    else:
        assert 2 <= len(json.loads(text)) <= 3


@functools.cache
def by_mlx_lm(family: str, request: Request) -> list[int]:
    """The likeliest tokens among those that may come, by mlx-lm's own generation and llguidance's own matcher."""
    (start, end), (pair,), stop = number(START, END), number("ĊĊ"), tokenizer().eos_token_id
    inner, budget = None, request.sampling.thinking_budget
    if request.grammar is not None:
        backend = tokenizer().backend_tokenizer
        tokens = LLTokenizer(backend.to_str(), n_vocab=VOCABULARY, eos_token=[stop])
        inner = LLMatcher(tokens, notated(request.grammar))
    generated: list[int] = []
    fed = 0

    def allowed() -> list[int] | None:
        """The tokens that may come next; None if all may."""
        nonlocal fed
        thoughts, answer = split(request, generated)
        if request.thinking == "may" and not generated:
            return None if inner is None else [*bits(inner), start]
        if thoughts is not None and answer is None:
            if budget is not None and len(thoughts) >= budget:
                return [end]
            return None if inner is None else [token for token in range(VOCABULARY) if token != stop]
        assert answer is not None
        if thoughts is not None and not answer and (inner is not None or len(thoughts) == budget):
            return [pair]
        if inner is None:
            return None
        begun = answer[1:] if thoughts is not None else answer
        inner.consume_tokens(begun[fed:])
        fed = len(begun)
        return bits(inner)

    def bits(matcher: Any) -> list[int]:
        mask = matcher.compute_bitmask()
        return [token for token in range(VOCABULARY) if allows(mask, token)]

    def obey(text: mx.array, logits: mx.array) -> mx.array:
        may = allowed()
        if may is None:
            return logits
        open_to = mx.array([token in may for token in range(VOCABULARY)])
        return mx.where(open_to, logits, -mx.inf)

    history: list[int] = []

    def follow(text: mx.array, logits: mx.array) -> mx.array:
        if history:
            generated.append(int(text[-1]))
        history.append(text.size)
        return obey(text, logits)

    out: list[int] = []
    steps = generate_step(
        mx.array(request.tokens),
        small_model(family),
        max_tokens=request.sampling.max_tokens,
        logits_processors=[follow],
    )
    for token, _ in steps:
        if int(token) == stop:
            break
        out.append(int(token))
    return out


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("family", BUILDERS)
def test_greedy_is_greedy_among_what_may_come(family: str, draft: bool) -> None:
    asked = asking(36, max_tokens=60)
    done = run(engine(family, draft), asked)
    for request in asked:
        assert_obeyed(request, done[request.id])
        assert list(done[request.id].tokens) == by_mlx_lm(family, request), request


def replaying(family: str, texts: dict[str, list[int]], wrong: Callable[[int], bool], **options: Any) -> Engine:
    made = engine(family, draft=True, **options)
    assert made.drafter
    drafts = {id: [(t + 1) % VOCABULARY if wrong(i) else t for i, t in enumerate(text)] for id, text in texts.items()}
    made.drafter = Replay(made.drafter.draft, made.target, made.pool.pages).replay(drafts, lambda i: False)
    return made


def tokens(done: dict[str, Completion]) -> dict[str, tuple[int, ...]]:
    return {id: completion.tokens for id, completion in done.items()}


@pytest.mark.parametrize("family", BUILDERS)
def test_tokens_depend_neither_on_drafts_nor_on_depths_nor_on_company(family: str) -> None:
    asked = asking(36, max_tokens=40, temperature=1.0)
    plain = run(engine(family, max_rows=1), asked)
    for request in asked:
        assert_obeyed(request, plain[request.id])
    ended = [split(request, plain[request.id].tokens) for request in asked if request.thinking == "open"]
    assert {answer is None for _, answer in ended} == {False, True}  # the model came upon its end, or not
    expected = tokens(plain)
    texts = {request.id: [*request.tokens, *expected[request.id]] for request in asked}
    changes = replaying(family, texts, lambda i: i % 4 == 1, max_rows=5)
    changes.scheduler.depths = changing(5)
    unforced = engine(family, draft=True)
    unforced.scheduler.forced = 0
    for made in (engine(family), changes, unforced):
        assert tokens(run(made, asked, every=1)) == expected


CHANGES: tuple[dict[str, Any], ...] = (
    {"presence_penalty": 2.0, "repetition_penalty": 1.5},
    {"frequency_penalty": 2.0, "logprobs": 2},
    {"logprobs": 0, "min_tokens": 20},
)


@pytest.mark.parametrize("family", BUILDERS)
def test_what_rows_have_generated_is_known_though_rounds_are_chosen_from_again(family: str) -> None:
    asked = [
        replace(request, sampling=replace(request.sampling, **CHANGES[i % 3]), grammar=LETTERS)
        for i, request in enumerate(asking(36, temperature=1.0, max_tokens=60))
    ]
    alone = engine(family, max_rows=1)
    alone._waits = True  # so that no round is in flight when thoughts end
    expected = run(alone, asked)
    texts = {request.id: [*request.tokens, *expected[request.id].tokens] for request in asked}
    for made in (
        engine(family),
        replaying(family, texts, lambda i: False),
        replaying(family, texts, lambda i: i % 3 == 1),
    ):
        done = run(made, asked, every=1)
        assert tokens(done) == tokens(expected)
        for id, completion in done.items():
            assert [each.token for each in completion.logprobs] == [each.token for each in expected[id].logprobs]
            pairs = zip(completion.logprobs, expected[id].logprobs, strict=True)
            assert all(abs(one.logprob - other.logprob) < 1e-3 for one, other in pairs)


@pytest.mark.parametrize("family", BUILDERS)
def test_growth_and_preemption_do_not_change_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        replace(request, tokens=(request.tokens * 60)[: 54 + i % 10])  # at the end of their pages
        for i, request in enumerate(asking(24, temperature=1.0))
    ]
    expected = tokens(run(engine(family), asked))
    monkeypatch.setattr("draftmill.engine.schedule.scheduler.HEADROOM", 2)
    texts = {request.id: [*request.tokens, *expected[request.id]] for request in asked}
    for made in (
        engine(family, slots=256, max_rows=6),
        replaying(family, texts, lambda i: i % 5 == 0, slots=256, max_rows=6),
    ):
        assert tokens(run(made, asked)) == expected
        assert made.scheduler.preempted > 0


def test_after_a_failed_round_rows_are_where_they_were(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = asking(12, temperature=1.0)
    expected = tokens(run(engine(), asked))
    assert tokens(run(failing(engine(draft=True), at(45, 140, 290)), asked)) == expected


def test_a_budget_is_used_up_exactly() -> None:
    for budget in (0, 1, 9, 40):
        for draft in (False, True):
            asked = [
                replace(request, thinking="open", grammar=None, sampling=Sampling(60, seed=i, thinking_budget=budget))
                for i, request in enumerate(asking(4))
            ]
            done = run(engine(draft=draft), asked)
            free = run(engine(), [replace(request, sampling=Sampling(60, seed=i)) for i, request in enumerate(asked)])
            for request in asked:
                thoughts, answer = split(request, done[request.id].tokens)
                unbound, _ = split(request, free[request.id].tokens)
                assert thoughts is not None
                assert unbound is not None
                assert thoughts == unbound[:budget]
                if len(unbound) > budget:
                    assert answer is not None
                    assert answer[:1] == number("ĊĊ")


def test_thinking_rows_take_part_in_every_round_beside_others() -> None:
    free = Request("free", (1, 2, 3), Sampling(80, 1.0, seed=5))
    alone = run(engine(), [free])["free"]
    length = len(alone.tokens)
    assert length > 40
    thinking = Request("t", (3, 2, 1), Sampling(length, 1.0, seed=8), PATTERNS, "open")
    budget = replace(thinking, id="b", grammar=None, sampling=replace(thinking.sampling, thinking_budget=1000))
    for other in (thinking, budget):
        made = engine()
        done = run(made, [free, other])
        thoughts, _ = split(other, done[other.id].tokens)
        assert thoughts is not None
        assert made.stats.rounds <= length + 2 + 2 * (len(done[other.id].tokens) - len(thoughts))


def test_no_markers_no_thoughts() -> None:
    made = Grammars(tokenizer("<a>"), VOCABULARY)
    sampling = Sampling(thinking_budget=3)
    assert made.matcher(Request("r", (1,), sampling)) is None
    assert made.matcher(Request("r", (1,), thinking="may")) is None
    with pytest.raises(
        RequestError, match=r"^thinking_budget cannot be enforced: this model's tokenizer has no markers"
    ):
        made.matcher(Request("r", (1,), sampling, thinking="open"))
    with pytest.raises(RequestError, match=r"^a grammar \(regex\) that begins after thoughts cannot be enforced: "):
        made.matcher(Request("r", (1,), grammar=PATTERNS, thinking="may"))


LONG = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>", "t", "h", "i", "n", "k")
"""With these, markers are of several tokens: `<|open|>think<|sep|>`."""


def walked(matcher: Matcher, choose: Callable[[list[int]], int], count: int = 30) -> str:
    """The text of some tokens that a matcher allows, checked as drafts on the way."""
    made, end = tokenizer(*LONG), tokenizer(*LONG).eos_token_id
    taken: list[int] = []
    for _ in range(count):
        mask = matcher.masks([])[0]
        may = [token for token in range(VOCABULARY) if allows(mask, token) and token != end]
        forced = list(matcher.forced)
        if forced:
            assert may == forced[:1]
            assert len(matcher.masks(forced)) == len(forced) + (not matcher.complete)
        if matcher.complete:
            break
        token = choose(may)
        assert token in may
        taken.append(token)
        matcher.advance([token])
    return "".join(made.convert_ids_to_tokens(taken))


def test_markers_of_several_tokens() -> None:
    made = tokenizer(*LONG, template=None)
    ids = {name: made.convert_tokens_to_ids(name) for name in (*LONG, *"abc")}
    assert made.think_end_tokens
    assert len(made.think_end_tokens) == 7

    def matcher(thinking: Any, budget: int | None, grammar: Grammar | None = PATTERNS) -> Matcher:
        sampling = Sampling(thinking_budget=budget)
        made_of = Grammars(made, VOCABULARY).matcher(Request("r", (1,), sampling, grammar, thinking))
        assert made_of
        return made_of

    def saying(*names: str) -> Callable[[list[int]], int]:
        wanted = iter([ids[name] for name in names])
        return lambda may: next(wanted, may[0])

    close = "<|close|>think<|sep|>"
    assert walked(matcher("open", 2), saying("b", "c")).startswith("bc" + close)
    assert walked(matcher("open", 3), saying("b", "<|close|>", "t")).startswith("b" + close)  # goes on with its own
    assert walked(matcher("open", 4), saying("<|sep|>", "<|close|>", "a")).startswith("<|sep|><|close|>a")
    assert walked(matcher("open", 0), saying()).startswith(close)
    natural = saying("a", "<|close|>", *"think", "<|sep|>", "c", "b", "a")
    assert walked(matcher("open", None), natural).startswith("a" + close + "cba")
    may = matcher("may", 1)
    assert walked(may, saying("<|open|>")).startswith("<|open|>think<|sep|>a" + close)
    assert walked(matcher("may", None), saying("b", "b", "b")).startswith("bbb")
    free = matcher("may", 1, None)
    assert walked(free, saying("<|open|>", "t", "b")) == "<|open|>tb" + "a" * 27  # that was no marker
