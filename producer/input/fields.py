"""The fields of a line: which are served, which are refused, which are ignored with a note, and which change nothing.

A field whose support is new moves from one of these tables to `SERVED`.
"""

from __future__ import annotations

from typing import Any

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "max_seconds")
SERVED = frozenset((*SAMPLING, "max_completion_tokens", "model", "prompt", "messages", "response_format"))

WHOLE = ("max_tokens", "top_k", "seed")
"""Sampling parameters that are whole numbers."""

MUST_BE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
"""OpenAI parameters that would change the output and that are not served, with the harmless values."""

UNSERVED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "do_sample": (),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "ebnf": (),
    "enable_thinking": (),
    "grammar": ("",),
    "guided_choice": ([],),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "max_new_tokens": (),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "n_predict": (),
    "no_stop_trim": (False,),
    "num_predict": (),
    "reasoning": (),
    "reasoning_effort": (),
    "regex": (),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "stop_regex": ([], ""),
    "stop_sequences": ([],),
    "stop_token_ids": ([],),
    "structural_tag": (),
    "structured_outputs": (),
    "system": (),
    "tfs_z": (1,),
    "thinking": (),
    "thinking_budget": (),
    "top_a": (0,),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": (),
    "xtc_probability": (0,),
}
"""Parameters of newer or other APIs (vLLM, SGLang, llama.cpp) that would change the text and that are not served, with
the harmless values. In a file, where they may as well be columns of a dataset, they are noted; a server refuses them.
"""

CHANGE_NOTHING = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "stream_options",
        "parallel_tool_calls",
        "prediction",
    )
)
"""OpenAI parameters that do not change the text."""

KNOWN = frozenset((*SERVED, *MUST_BE, *CHANGE_NOTHING, "id", "custom_id", "method", "url", "body"))
"""Every name that is a field wherever it stands; those of UNSERVED may be columns of a dataset."""

TEXTS = frozenset(("prompt", "stop", "model", "user", "suffix"))
"""Parameters that are texts in a table, too."""

CELLS = frozenset((*SERVED, *MUST_BE, *UNSERVED, *CHANGE_NOTHING)) - TEXTS
"""Parameters that are JSON in the cells of a table: numbers, a list of messages."""
