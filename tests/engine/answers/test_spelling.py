"""Tokens are spelled as they read: their bytes, one after the other, are those of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftmill.engine.answers.spelling import spelling
from draftmill.engine.text import Text
from tests.engine.tokenizers import llama, qwen, smollm


@pytest.mark.parametrize("make", [smollm, qwen, llama])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_add_up_to_the_text(make: Any, data: st.DataObject) -> None:
    text = Text(make())
    written = "a" + data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.just("für 東京 🗼 ▁"))
    tokens = [token for token in text.tokenizer.encode(written, add_special_tokens=False)]
    spelled = [spelling(token, text) for token in tokens]
    joined = b"".join(each.bytes or b"" for each in spelled).decode(errors="replace")  # some have no token for a byte
    assert joined.lstrip() == text.decode(tokens).lstrip()  # some put a space before the first word
    for each in spelled:
        assert each.bytes is not None
        assert each.text == each.bytes.decode(errors="replace")


def test_control_tokens_have_their_names() -> None:
    text = Text(smollm())
    assert spelling(2, text) == ("<|im_end|>", b"<|im_end|>")


def test_a_token_of_a_single_byte_is_that_byte() -> None:
    text = Text(llama())
    token = text.tokenizer.convert_tokens_to_ids("<0xE6>")
    assert spelling(token, text) == ("\ufffd", b"\xe6")
