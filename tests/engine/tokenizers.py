"""Small tokenizers of the kinds that models have, and templates like theirs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper, load
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftmill.engine.models import boxed
from draftmill.producer.queue.paths import cache_dir

QWEN = """{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
"""What matters here of Qwen3's template: it takes thoughts out of earlier answers, and begins answers without one."""

LLAMA = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content | trim + ' [/INST]' }}
{%- else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""
"""Of the kind of Llama 2's: trimmed contents, and markers that are no tokens of their own."""


@cache
def smollm() -> TokenizerWrapper:
    return load(boxed.unbox(cache_dir()))


TOOLS = """{%- if tools %}
{{- '<|im_start|>system\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call></tool_call> around JSON.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last or message.reasoning_content %}
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
"""Of the kind of Qwen3's: tools, calls of them and their results, and thinking that may be switched off."""

OPENS = TOOLS.replace("{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}", "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else %}{{- '<think>\\n' }}{%- endif %}")  # fmt: skip
"""As Qwen3.5's and DeepSeek's do, it begins the thoughts itself."""


def with_template(template: str, parser: str | None = "json_tools") -> TokenizerWrapper:
    """Qwen3's tokens with a template, and one of mlx-lm's parsers of calls."""
    module: Any = import_module(f"mlx_lm.tool_parsers.{parser}") if parser else None
    tokenizer = TokenizerWrapper(
        _qwen("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        tool_call_start=module and module.tool_call_start,
        tool_call_end=module and module.tool_call_end,
        tool_parser=module and module.parse_tool_call,
    )
    tokenizer.chat_template = template
    return tokenizer


@cache
def qwen() -> TokenizerWrapper:
    """Bytes, with Qwen3's tokens: those of turns are special, those of thoughts are not."""
    return TokenizerWrapper(_qwen(), chat_template=None)


def _qwen(*tools: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={unit: index for index, unit in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    plain = ("<think>", "</think>", *tools, "  ")
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@cache
def llama() -> TokenizerWrapper:
    """Bytes below words that begin with ▁, as SentencePiece has them."""
    words = ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for name in ("<s>", "</s>", "<unk>"):
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    return TokenizerWrapper(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )
