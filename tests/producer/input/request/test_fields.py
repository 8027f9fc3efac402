"""The table of names: it has all of the APIs, the README shows it, and each name does what it says."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from draftmill.producer.input.request.asked import URLS
from draftmill.producer.input.request.fields import FIELDS, KNOWN, Field
from tests.producer.conftest import ROOT
from tests.producer.input.request.reading import USER, chat, fault, short, text, told

VLLM = """
    messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
    reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k min_p
    repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs
    logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt continue_final_message
    add_special_tokens documents chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs
    structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids
    routed_experts_prompt_start return_token_offsets return_prompt_text return_mm_kwargs cache_salt
    kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval
    prompt suffix prompt_embeds best_of
    guided_json guided_regex guided_choice guided_grammar structural_tag guided_decoding_backend
    guided_whitespace_pattern
"""
"""Fields of ChatCompletionRequest and CompletionRequest in vLLM's documentation; the last lines were in it before."""

SGLANG = """
    messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p user tools tool_choice
    parallel_tool_calls return_hidden_states return_routed_experts routed_experts_start_len
    return_cached_tokens_details return_prompt_token_ids return_token_ids return_meta_info reasoning_effort task top_k
    min_p min_tokens regex ebnf repetition_penalty stop_token_ids stop_regex no_stop_trim ignore_eos
    continue_final_message skip_special_tokens lora_path session_id session_params separate_reasoning stream_reasoning
    chat_template_kwargs max_dynamic_patch min_dynamic_patch use_audio_in_video images_config custom_logit_processor
    custom_params input_ids rid extra_key cache_salt ngram_corpus_id priority bootstrap_host bootstrap_port
    bootstrap_room routed_dp_rank disagg_prefill_dp_rank data_parallel_rank reasoning
    prompt best_of echo suffix json_schema custom_labels
"""
"""Fields of the same two requests in SGLang."""

LLAMA_CPP = """
    prompt temperature dynatemp_range dynatemp_exponent top_k top_p min_p n_predict n_indent n_keep stream stop
    typical_p repeat_penalty repeat_last_n presence_penalty frequency_penalty dry_multiplier dry_base
    dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_probability xtc_threshold mirostat mirostat_tau
    mirostat_eta grammar json_schema seed ignore_eos logit_bias n_probs min_keep t_max_predict_ms id_slot cache_prompt
    return_tokens samplers timings_per_token return_progress post_sampling_probs response_fields lora
    chat_template_kwargs reasoning_format thinking_forced_open parse_tool_calls top_n_sigma
"""
"""Fields of a request in the documentation of llama.cpp's server."""

FUNCTION = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TOOLS: dict[str, Any] = {"tools": [FUNCTION]}
ENDING = {"messages": [USER, {"role": "assistant", "content": "It"}]}

CHANGES: dict[str, Any] = {
    "max_tokens": 7, "max_completion_tokens": 7, "max_new_tokens": 7, "num_predict": 7, "n_predict": 7,
    "max_seconds": 7, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.5, "seed": 5, "stop": "a",
    "stop_sequences": ["a"], "stop_token_ids": [5], "presence_penalty": 0.5, "frequency_penalty": 0.5,
    "repetition_penalty": 1.5, "repeat_penalty": 1.5, "logit_bias": {"5": 1}, "allowed_token_ids": [5],
    "bad_words": ["a"], "ignore_eos": True, "include_stop_str_in_output": True, "min_tokens": 5, "min_new_tokens": 5,
    "thinking_budget": 5, "thinking_token_budget": 5, "thinking_budget_tokens": 5, "n": 2,
    "response_format": {"type": "json_object"}, "guided_json": {"type": "object"}, "guided_choice": ["a"],
    "guided_regex": "a+", "guided_grammar": "start: 'a'", "structured_outputs": {"regex": "a+"}, "regex": "a+",
    "ebnf": "start: 'a'", "grammar": "start: 'a'", "json_schema": {"type": "object"}, "prompt": "other", "echo": True,
    "messages": [{"role": "user", "content": "other"}], "tools": [FUNCTION], "enable_thinking": False,
    "chat_template_kwargs": {"colour": 1}, "reasoning_effort": "low", "thinking": False, "reasoning": {"effort": "low"},
    "add_generation_prompt": False, "control_tokens": True, "adapter": "sql",
}  # fmt: skip
"""A value of each name that changes the job."""

BESIDE: dict[str, tuple[dict[str, Any], Any]] = {
    "best_of": ({"n": 2}, 3),
    "top_logprobs": ({"logprobs": True}, 3),
    "tool_choice": (TOOLS, "required"),
    "parallel_tool_calls": (TOOLS, False),
    "continue_final_message": (ENDING, True),
    "add_special_tokens": ({}, True),
}
"""Names that mean something beside others, or are refused with other values than the usual one."""


@pytest.mark.parametrize(
    "names",
    [
        chat_params.CompletionCreateParamsNonStreaming.__annotations__,
        text_params.CompletionCreateParamsNonStreaming.__annotations__,
        VLLM,
        SGLANG,
        LLAMA_CPP,
    ],
    ids=["openai chats", "openai texts", "vllm", "sglang", "llama.cpp"],
)
def test_no_name_of_an_api_is_missing(names: Any) -> None:
    assert set(names.split() if isinstance(names, str) else names) - FIELDS.keys() == set()


def examples(name: str) -> tuple[dict[str, Any], Any]:
    return BESIDE.get(name, ({}, CHANGES.get(name)))


HONOURED = [field for field in FIELDS.values() if field.does == "honoured" and field.name not in ("model", "logprobs")]


@pytest.mark.parametrize("field", HONOURED, ids=lambda field: field.name)
def test_what_is_honoured_changes_the_job_or_is_refused(field: Field) -> None:
    beside, value = examples(field.name)
    kinds = {"chats": [chat], "texts": [text], "both": [chat, text]}[field.of]
    for read in kinds:
        if read is text and field.name == "add_special_tokens":
            value = False
        given: dict[str, Any] = {**beside, field.name: value}
        if not fault(read, **given):
            assert read(**given) != read(**beside)
        else:
            assert field.name in fault(read, **given)
            assert field.name in ("best_of", "add_special_tokens")
    if field.of != "both":
        other, url = (text, URLS["chats"]) if field.of == "chats" else (chat, URLS["texts"])
        assert fault(other, **{field.name: value}) == f"{field.name} is for {field.of}, those of {url}; remove it"


@pytest.mark.parametrize("field", [f for f in FIELDS.values() if f.does == "refused"], ids=lambda field: field.name)
def test_what_is_refused_is_so_by_name_unless_it_changes_nothing(field: Field) -> None:
    for read in (chat, text):
        assert fault(read, **{field.name: "what?"}) == f'{field.name} = "what?" is not supported; {field.instead}'
        for harmless in (*field.harmless, None):
            assert read(**{field.name: harmless}) == read()
            assert told(read, **{field.name: harmless}) == []
    if field.column:
        assert short(**{field.name: "what?"}) == short()
        note = f'field "{field.name}" is not supported and ignored; it would change the text'
        assert told(short, **{field.name: "what?"}) == [note]
    else:
        assert fault(short, **{field.name: "what?"}).startswith(f'{field.name} = "what?" is not supported')


@pytest.mark.parametrize("field", [f for f in FIELDS.values() if f.does in ("noted", "nothing")], ids=lambda f: f.name)
def test_what_changes_nothing_may_have_any_value(field: Field) -> None:
    for read in (chat, text, short):
        assert read(**{field.name: "what?"}) == read()
        note = f'field "{field.name}" changes nothing here: {field.instead}'
        assert told(read, **{field.name: "what?"}) == ([note] if field.does == "noted" else [])


@pytest.mark.parametrize("name", ["regex", "ebnf", "grammar", "json_schema", "thinking", "reasoning"])
def test_a_common_word_with_a_text_is_a_column_in_a_short_line_and_a_parameter_in_a_request(name: str) -> None:
    assert short(**{name: "a text"}) == short()
    taken = f'field "{name}" is taken for a column and ignored; as a parameter write {FIELDS[name].instead}'
    assert told(short, **{name: "a text"}) == [taken]
    assert chat(**{FIELDS[name].instead: CHANGES[FIELDS[name].instead]}) != chat()
    assert name not in KNOWN
    if not isinstance(CHANGES[name], str):
        assert short(**{name: CHANGES[name]}) != short()


def test_unknown_names_are_noted() -> None:
    for read in (chat, text, short):
        assert told(read, colour=1) == ['field "colour" is unknown and ignored']


def test_two_names_for_one_thing_agree() -> None:
    assert chat(max_tokens=5, max_completion_tokens=5).sampling.max_tokens == 5
    assert fault(chat, max_tokens=5, max_completion_tokens=6) == (
        "max_tokens is 5 and max_completion_tokens is 6; keep one"
    )
    assert fault(chat, thinking_budget=3, thinking={"type": "enabled", "budget_tokens": 4}) == (
        "thinking_budget is 3 and thinking.budget_tokens is 4; keep one"
    )
    assert fault(chat, max_new_tokens=0) == "max_new_tokens is 0; it must be at least 1"


def test_an_adapter_is_named_by_itself_or_behind_the_pair() -> None:
    for read in (chat, text, short):
        pair = read().pair
        assert read(adapter="sql").adapter == read(model=f"{pair}:sql").adapter == "sql"
        assert read(model=f"{pair}:sql", adapter="sql").adapter == "sql"
        assert read(model=pair) == read()
        assert told(read, model=f"{pair}:sql") == told(read, adapter="sql", model=pair) == []
        assert read(model="sql") == read()
        assert told(read, adapter="sql", model="m") == [f'model "m" is ignored: the pair is {pair}']
        assert fault(read, model=f"{pair}:sql", adapter="other") == (
            f'model is "{pair}:sql" and adapter is "other"; keep one'
        )
        assert fault(read, adapter=7) == "adapter is 7; it must be the name of a worker's LoRA adapter"


ROW = re.compile(r"^\| (.+?) \| (.+?) \|$", re.MULTILINE)
NAME = re.compile(r"`([a-z0-9_]+)`(?: \(([^)]+)\))?")


def part(page: str, heading: str) -> str:
    return re.split(r"^#{2,3} ", page.split(f"### {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(page: str, heading: str) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Each name in the first column, with its values in brackets and the second column."""
    found = {}
    for names, says in ROW.findall(part(page, heading))[1:]:
        for name, values in NAME.findall(names):
            assert name not in found
            found[name] = (tuple(orjson.loads(value) for value in values.split(" or ")) if values else (), says)
    return found


def named(does: str) -> dict[str, Field]:
    return {field.name: field for field in FIELDS.values() if field.does == does}


def test_the_readme_shows_the_table() -> None:
    page = (ROOT / "producer/README.md").read_text("utf-8")
    honoured, found = named("honoured"), rows(page, "Fields that are honoured")
    assert found.keys() == honoured.keys()
    for name, (_, says) in found.items():
        assert {"Chats": "chats", "Texts": "texts"}.get(says.partition(":")[0], "both") == honoured[name].of
    refused = {field.name: (field.harmless, field.instead) for field in named("refused").values()}
    assert rows(page, "Fields that are refused") == refused
    others = NAME.findall(part(page, "Fields that change nothing"))
    assert {name for name, _ in others} == named("noted").keys() | named("nothing").keys()
