"""Every name that a request may have, and what becomes of it: the one table of this, which the README shows.

The names are those of OpenAI's chat and text completions, of vLLM and SGLang beyond them, some of llama.cpp, Hugging
Face and Ollama, and ours. What a name that is honoured means is told by the modules beside this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Does = Literal["honoured", "refused", "noted", "nothing"]
Of = Literal["both", "chats", "texts"]
CHATS, TEXTS, BOTH = "chats", "texts", "both"


@dataclass(frozen=True)
class Field:
    """A name, and what becomes of its value.

    It is "honoured"; or "refused" by name; or "noted", because it changes no text but something else that was asked
    for; or changes "nothing". Values in `harmless` say nothing, and null never does. `of` says which requests have it;
    in the others it is refused. `instead` is what to do about a refusal.

    A `column` may as well be data of a row. In short lines and tables it is noted instead of refused; one that is
    honoured elsewhere is so there if its value is true, false or an object, and else noted, with the name to use
    `instead`. `plain` fields hold texts in the cells of a table, the others JSON.
    """

    name: str
    does: Does
    harmless: tuple[Any, ...] = ()
    of: Of = BOTH
    instead: str = "remove it"
    column: bool = False
    plain: bool = False


def _honoured(*names: str, of: Of = BOTH, plain: bool = False, **harmless: tuple[Any, ...]) -> list[Field]:
    return [Field(name, "honoured", harmless.get(name, ()), of, plain=plain) for name in (*names, *harmless)]


def _word(name: str, instead: str, of: Of = BOTH, plain: bool = False) -> Field:
    """Honoured, but such a common word that it may be a column."""
    return Field(name, "honoured", of=of, instead=instead, column=True, plain=plain)


def _refused(instead: str, of_openai: bool = False, **harmless: tuple[Any, ...]) -> list[Field]:
    return [
        Field(name, "refused", values, instead=instead, column=not of_openai, plain=name == "suffix")
        for name, values in harmless.items()
    ]


def _nothing(*names: str) -> list[Field]:
    return [Field(name, "nothing", plain=name == "user") for name in names]


_HONOURED = [
    *_honoured("model", "adapter", "stop", plain=True),
    *_honoured("max_tokens", "max_completion_tokens", "max_new_tokens", "num_predict", "n_predict", "max_seconds"),
    *_honoured("temperature", "top_p", "top_k", "min_p", "seed", "stop_sequences", "stop_token_ids"),
    *_honoured("presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty"),
    *_honoured("logit_bias", "allowed_token_ids", "bad_words", "ignore_eos", "include_stop_str_in_output"),
    *_honoured("min_tokens", "min_new_tokens", "thinking_budget", "thinking_token_budget", "thinking_budget_tokens"),
    *_honoured("n", "best_of", "logprobs", "add_special_tokens"),
    *_honoured("response_format", "guided_json", "guided_choice", "structured_outputs"),
    *_honoured("guided_regex", "guided_grammar", plain=True),
    _word("regex", "guided_regex", plain=True),
    _word("ebnf", "guided_grammar", plain=True),
    _word("grammar", "guided_grammar", plain=True),
    _word("json_schema", "guided_json"),
    *_honoured("prompt", of=TEXTS, plain=True),
    *_honoured(of=TEXTS, echo=(False,)),
    *_honoured("messages", of=CHATS),
    *_honoured("tool_choice", of=CHATS, top_logprobs=(0,), tools=([],), parallel_tool_calls=(True,)),
    *_honoured("enable_thinking", of=CHATS, chat_template_kwargs=({},)),
    *_honoured("reasoning_effort", of=CHATS, plain=True),
    _word("thinking", "enable_thinking", CHATS),
    _word("reasoning", "reasoning_effort", CHATS),
    *_honoured(of=CHATS, continue_final_message=(False,), add_generation_prompt=(True,)),
    *_honoured("control_tokens", of=CHATS),
]

_REFUSED = [
    *_refused("use tools", True, functions=([],), function_call=("none", "auto")),
    *_refused("answers come whole; remove it", True, stream=(False,)),
    *_refused("put it into the prompt", True, suffix=("",)),
    *_refused("only text is generated; remove it", True, modalities=(["text"],), audio=()),
    *_refused("remove it", True, web_search_options=(), moderation=()),
    *_refused("say it in the prompt", verbosity=("medium",)),
    *_refused("make a system message of it", system=()),
    *_refused("put their texts into a message", documents=([],)),
    *_refused("the model's own template is used; remove it", chat_template=()),
    *_refused("use temperature, where 0 is greedy", do_sample=()),
    *_refused("use max_seconds", t_max_predict_ms=(0, -1)),
    *_refused("use logprobs", n_probs=(0,), prompt_logprobs=(), logprob_token_ids=(), post_sampling_probs=(False,)),
    *_refused("use n", n_cmpl=(1,)),
    *_refused("use stop", stop_regex=([], "")),
    *_refused("use include_stop_str_in_output", no_stop_trim=(False,)),
    *_refused("penalties see all tokens; remove it", repeat_last_n=(-1,)),
    *_refused("shorten the prompt", truncate_prompt_tokens=()),
    *_refused("use prompt", prompt_embeds=(), input_ids=()),
    *_refused("special tokens never stand in the text; remove it", skip_special_tokens=(True,)),
    *_refused("use response_format", structural_tag=(), guided_whitespace_pattern=(), whitespace_pattern=()),
    *_refused(
        "thoughts come as reasoning_content; remove it",
        include_reasoning=(True,),
        separate_reasoning=(True,),
        reasoning_format=("auto", "deepseek"),
        thinking_forced_open=(False,),
    ),
    *_refused(
        "answers have texts, not ids; remove it",
        return_token_ids=(False,),
        return_tokens=(False,),
        return_tokens_as_token_ids=(False,),
    ),
    *_refused(
        "it is not computed; remove it",
        return_prompt_token_ids=(False,),
        return_prompt_text=(False,),
        return_hidden_states=(False,),
        return_routed_experts=(False,),
        return_meta_info=(False,),
        return_cached_tokens_details=(False,),
        response_fields=([],),
    ),
    *_refused("name it as adapter", lora=([],), lora_path=()),
    *_refused(
        "remove it",
        use_beam_search=(False,),
        length_penalty=(1,),
        early_stopping=(False,),
        logits_processors=([],),
        custom_logit_processor=(),
        custom_params=({},),
        vllm_xargs=({},),
        repetition_detection=(),
        watermarking=(False,),
        session_params=({},),
        task=(),
        typical_p=(1,),
        typ_p=(1,),
        top_a=(0,),
        top_n_sigma=(-1,),
        tfs_z=(1,),
        dry_multiplier=(0,),
        dynatemp_range=(0,),
        xtc_probability=(0,),
        mirostat=(0,),
        samplers=(),
        min_keep=(0,),
        n_indent=(0,),
        parse_tool_calls=(True,),
    ),
]

_NOTED = [
    Field("priority", "noted", (0,), instead="a batch has one, --priority", column=True),
    Field("cache_salt", "noted", (), instead="requests of a worker share prefixes", column=True),
]

_NOTHING = [
    *_nothing("user", "metadata", "store", "service_tier", "safety_identifier", "stream_options", "prediction"),
    *_nothing("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "cache_prompt", "id_slot"),
    *_nothing("request_id", "rid", "session_id", "extra_key", "custom_labels", "ngram_corpus_id"),
    *_nothing("kv_transfer_params", "ec_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"),
    *_nothing("routed_dp_rank", "disagg_prefill_dp_rank", "data_parallel_rank", "guided_decoding_backend"),
    *_nothing("stream_interval", "stream_reasoning", "timings_per_token", "return_progress"),
    *_nothing("return_token_offsets", "return_mm_kwargs", "routed_experts_prompt_start", "routed_experts_start_len"),
    *_nothing("media_io_kwargs", "mm_processor_kwargs", "images_config", "max_dynamic_patch", "min_dynamic_patch"),
    *_nothing("use_audio_in_video", "spaces_between_special_tokens", "truncation_side", "n_keep"),
    *_nothing("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "dynatemp_exponent"),
    *_nothing("xtc_threshold", "mirostat_tau", "mirostat_eta"),
]
"""Of those in the last lines, each matters only beside another name that is refused."""

FIELDS = {field.name: field for field in (*_HONOURED, *_REFUSED, *_NOTED, *_NOTHING)}
"""All names."""

LINE = frozenset(("id", "custom_id", "method", "url", "body"))
"""Names of a line around its request."""

KNOWN = LINE | {name for name, field in FIELDS.items() if not field.column}
"""Every name that is a field wherever it stands; the others may be columns of a dataset."""

NAMES = LINE | FIELDS.keys()

PLAIN = frozenset(name for name, field in FIELDS.items() if field.plain)
"""Fields that are texts in a table, too."""

CELLS = FIELDS.keys() - PLAIN
"""Fields that are JSON in the cells of a table: numbers, a list of messages."""
