"""Stop strings: a row ends with the first token after which its text has one, whatever the tokens are made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper, load
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from draftmill.engine.text import Text

SNIPPETS = (
    "the end.\n\nUser: e e e",
    "naïve café, déjà vu",
    "日本語のテキスト、終わり。",
    "🙂👩‍👩‍👧 ok\x85\u00a0",
    "### 1 ### 2",
    "Ω≈ç√∫ " + "é" * 9,
)


def byte_level(boxed_model: Path) -> Any:
    """SmolLM2's: bytes, among them control tokens that a text leaves out."""
    return load(boxed_model)


def byte_fallback(_: Path) -> Any:
    """As SentencePiece makes them: pieces of characters, bytes for all others, and no space at a text's beginning."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "▁e", "e", "é", "end", ".", "▁###", "##", "日本", "▁\ufffd", "a", "▁a"]
    model = models.BPE({word: token for token, word in enumerate(words)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))


def some_tokens(tokenizer: Any, parts: list[int], draw: random.Random) -> list[int]:
    """Pieces of real text cut anywhere, single tokens, `parts` of characters and control tokens."""
    tokens: list[int] = []
    while len(tokens) < 40:
        kind = draw.random()
        if kind < 0.35:
            snippet = tokenizer.encode(draw.choice(SNIPPETS), add_special_tokens=False)
            begin = draw.randrange(len(snippet))
            tokens += snippet[begin : begin + draw.randint(1, 12)]
        elif kind < 0.7:
            tokens += draw.choices(parts, k=draw.randint(1, 4))
        elif kind < 0.8:
            tokens.append(draw.randrange(3))
        else:
            tokens.append(draw.randrange(len(tokenizer)))
    return tokens


def some_stops(whole: str, draw: random.Random) -> tuple[str, ...]:
    """Mostly what the text has somewhere, or nearly has."""
    stops: list[str] = []
    for _ in range(draw.randint(1, 4)):
        begin = draw.randrange(len(whole))
        found = whole[begin : begin + draw.choice([1, 1, 2, 3, 5, 9])]
        stops.append(found + draw.choice(["", "", "x", "é"]) if draw.random() < 0.9 else draw.choice(SNIPPETS)[:3])
    return tuple(stops)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_text_ends_with_the_first_token_after_which_it_has_a_stop_string(
    make: Callable[[Path], Any], boxed_model: Path
) -> None:
    tokenizer, draw = make(boxed_model), random.Random(7)
    text = Text(tokenizer)
    parts = [token for token in range(min(len(tokenizer), 2000)) if not text.piece(token).whole]
    ended = late = 0
    for _ in range(150):
        tokens = some_tokens(tokenizer, parts, draw)
        texts = [text.decode(tokens[:count]) for count in range(len(tokens) + 1)]
        stop = some_stops(texts[-1], draw)
        expected = next((n for n, known in enumerate(texts) if n and any(s in known for s in stop)), None)
        counts = range(1, len(tokens) + 1)
        found = next((n for n in counts if text.stopped(tokens[:n], stop)), None)
        assert found == expected, (tokens, stop)
        if found:
            cut = text.shown(tokens[:found], stop)
            assert not any(string in cut for string in stop)
            assert texts[found].startswith(cut)
            ended, late = ended + 1, late + (found > 12)
    assert ended > 100
    assert late > 20


class Counting:
    """A tokenizer that counts what it decodes."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.decoded += len(tokens)
        return self.tokenizer.decode(tokens, **options)


def test_most_tokens_need_no_decoding(boxed_model: Path) -> None:
    tokenizer = Counting(load(boxed_model))
    text = Text(tokenizer)
    tokens = text.encode(" ".join(SNIPPETS[:2]) * 40).tokens
    stop = ("\n\nQuestion:", "<|im_end|>", "終")
    for _ in range(2):  # the first time what each token is has to be found out
        tokenizer.decoded = 0
        assert not any(text.stopped(tokens[:count], stop) for count in range(1, len(tokens) + 1))
    assert tokenizer.decoded < len(tokens)


def test_a_long_run_of_bytes_is_not_decoded_from_its_beginning(boxed_model: Path) -> None:
    tokenizer = Counting(load(boxed_model))
    text = Text(tokenizer)
    tokens = text.encode("ፀ" * 300).tokens  # of which no token has a whole one
    assert not any(text.piece(token).whole for token in tokens[3:])
    tokenizer.decoded = 0
    assert not any(text.stopped(tokens[:count], ("ፁ",)) for count in range(1, len(tokens) + 1))
    assert tokenizer.decoded < 12 * len(tokens)
