"""The small model of the tests with what larger ones have: thoughts, tools, and a chat template that knows both."""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.producer.small_model import small_model

MARKERS = {
    "<repo_name>": "<think>",
    "<reponame>": "</think>",
    "<file_sep>": "<tool_call>",
    "<filename>": "</tool_call>",
}
"""Tokens that the small model has no use for, and what they are here."""

TEMPLATE = """
{%- if tools %}<|im_start|>system
Functions, which you call as <tool_call>{"name": …, "arguments": …}</tool_call>:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content or '' }}
{%- for tool_call in message.tool_calls or [] %}
{%- set tool_call = tool_call.function or tool_call %}<tool_call>
{"name": {{ tool_call.name | tojson }}, "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


def talking_model(boxed: Path, folder: Path) -> str:
    """Makes one in `folder` of the unpacked default model; returns its path, which is its name as a pair."""
    small_model(boxed, folder)
    path = folder / "tokenizer.json"
    tokenizer = orjson.loads(path.read_bytes())
    for token in tokenizer["added_tokens"]:
        if token["content"] in MARKERS:
            token |= {"content": MARKERS[token["content"]], "special": False}
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {MARKERS.get(text, text): token for text, token in vocabulary.items()}
    path.write_bytes(orjson.dumps(tokenizer))
    path = folder / "tokenizer_config.json"
    config = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps(config | {"chat_template": TEMPLATE}))
    return str(folder)
