"""What producers and workers agree on: the body of a job, its identity, and every Redis key of the project.

Job bodies are data. A job's RQ function is always `FUNCTION`, a name that is looked up nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .pair_names import canonical

WIRE = 5
"""Version of what producers and workers hand each other through Redis: job bodies, results, keys, scripts. Whoever
changes what the other side reads raises it. It stands in the names of queues and of all keys by which jobs are found,
so workers of one version never see the jobs of another. Heartbeats report it."""

FUNCTION = "draftmill.generate"
"""The only RQ function name a worker accepts. It is never imported."""

PRIORITIES = ("high", "normal", "low")
"""Priorities, the most urgent first; `claim.lua` says what each costs."""

DEFAULT_PAIR = "smollm2-135m"

MAX_LEASES = 3
"""A job that loses this many leases is failed as poison."""

MOST_BODY_BYTES = 16 * 2**20
"""A job's body as JSON; larger ones are refused, by producers and by workers."""

MOST_LINES = 1_000_000
"""Lines of a batch."""

MOST_LINE_NUMBER = 2**32 - 1
"""The largest number of a line: the place of its bit in a batch's bitmaps."""

MOST_ID_CHARACTERS = 512
"""Characters of a custom_id."""

MOST_GRAMMAR_CHARACTERS = 2**17
"""A grammar as text: a JSON schema, a regular expression, choices, a grammar's rules."""

MOST_CHOICES = 128
"""The largest `n`, choices of one prompt."""

MOST_LOGPROBS = 20
"""Likeliest tokens of a position that log-probabilities are given for."""

MOST_TOP_K = 2**31 - 1
"""The largest top_k. Engines compare it with the places of tokens in 32 bits."""

COLDEST = 1e-5
"""A lower temperature means 0. Logits are divided by it in float32, where the quotient would have no end."""

LEAST_TOP_P = 1e-6
"""A smaller top_p means this one. Either leaves the likeliest token alone, as long as a vocabulary is below a million
tokens; but float32 takes the smallest ones for 0, which leaves none."""

BELL_SECONDS = 60
"""How long a call to look for jobs stands for workers that do not wait yet."""

RESULT_TTL = 14 * 24 * 3600
"""Seconds that a complete batch is kept if nothing else was asked for; an incomplete batch does not expire."""

LEAST_KEPT, MOST_KEPT = 60, 10 * 365 * 24 * 3600
"""Seconds that may be asked for instead."""


class JsonSerializer:
    """RQ serializer that carries JSON only, so that reading a job can run no code."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return orjson.dumps(value)

    @staticmethod
    def loads(data: bytes) -> Any:
        return orjson.loads(data)


def _warm(temperature: float) -> float:
    return 0.0 if temperature < COLDEST else temperature


def _wide(top_p: float) -> float:
    return max(top_p, LEAST_TOP_P)


Token = Annotated[int, Field(ge=0, lt=2**31)]
Strings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=16)]
ModelDefault = Literal["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]
"""A sampling parameter for which a model's folder may have a default."""
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class Sampling(BaseModel):
    """Sampling parameters of one request; the names and meanings are those of the OpenAI API, and of vLLM beyond it.

    `temperature` 0 (the default) is greedy; `top_k` 0 means no limit; without a `seed` one is derived from
    the job. `presence_penalty` and `frequency_penalty` look at what has been generated, `repetition_penalty` at the
    prompt, too. `stop_token_ids` end the text as end tokens do; with `ignore_eos` those of the model do not. Before
    `min_tokens` nothing ends it. `bad_words` never come, and if there are `allowed_token_ids`, nothing else does.
    `logprobs` asks for log-probabilities of the tokens chosen, and of so many that are likeliest. After
    `thinking_budget` tokens of thoughts the answer begins. `max_seconds` is ours: how long a worker may be busy with
    the request before it fails. Every value that is admitted here is one that an engine can use in int32 and float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), AfterValidator(_warm)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), AfterValidator(_wide)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=MOST_TOP_K)] = 0
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[Token, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = {}
    allowed_token_ids: tuple[Token, ...] = ()
    bad_words: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Strings = ()
    stop_token_ids: tuple[Token, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Grammar(BaseModel):
    """What the answer must obey: `text` is a JSON schema, a regular expression, a JSON list of choices, or a grammar in
    Lark's notation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["json", "regex", "choice", "lark"]
    text: Annotated[str, Field(max_length=MOST_GRAMMAR_CHARACTERS)]


class Message(BaseModel):
    """One chat message, content flattened to text. `tool_calls` are as in the OpenAI API."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None


class Tools(BaseModel):
    """Functions that the model may call, as in the OpenAI API; if it is `required`, or one is `named`, it must.
    Of several calls a `single` one is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[dict[str, Any], ...]
    required: bool = False
    named: str | None = None
    single: bool = False


DraftSource = Literal["dflash", "mtp", "lookup"]
"""Where drafts come from: the pair's draft, the target's own MTP head, the row's own text."""


class JobBody(BaseModel):
    """One request in the queue: exactly one of `messages` (chat) and `prompts` (text completion) is set.

    Each prompt is a text or token ids. Each has `n` choices, the first of which takes the seed, the next seed + 1, and
    so on. `echo` repeats the prompt before the answer.

    `template` has what the chat template is told beside the messages (OpenAI-like servers' `chat_template_kwargs`). A
    chat that `continues` goes on within its last message; if it is not `prompted`, the template is not asked to begin
    an answer. Names of control tokens in messages are text, unless they are `trusted`. For the `model_defaults` the
    defaults of the model's folder apply instead of what `sampling` says, where it has one.

    `adapter` names the LoRA adapter that the answer is to have. `drafts` has the sources that may draft for it; by
    default all that a worker has. They change how long it takes, not what it says.

    `line` is the request's line number in the dataset, different for each line of a batch: by it the batch notes what
    has ended, and the result carries it so that output can be put in input order. `keep` has the columns of the
    dataset's row that the result line hands back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: str
    custom_id: str
    pair: Annotated[str, AfterValidator(canonical)]
    messages: tuple[Message, ...] | None = None
    prompts: tuple[str | tuple[Token, ...], ...] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    echo: bool = False
    sampling: Sampling = Sampling()
    grammar: Grammar | None = None
    tools: Tools | None = None
    template: dict[str, Any] = {}
    continues: bool = False
    prompted: bool = True
    trusted: bool = False
    model_defaults: tuple[ModelDefault, ...] = ()
    adapter: str | None = None
    drafts: tuple[DraftSource, ...] | None = None
    line: Annotated[int, Field(ge=0, le=MOST_LINE_NUMBER)] = 0
    keep: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """Tokens that all its choices may come to."""
        return self.sampling.max_tokens * self.n * max(1, len(self.prompts or ()))

    @property
    def parts(self) -> list[tuple[str, str]]:
        """What is asked, for people: each message by its role, or each prompt, token ids as numbers."""
        if self.messages is not None:
            return [(message.role, message.content or "") for message in self.messages]
        return [("text", each if isinstance(each, str) else " ".join(map(str, each))) for each in self.prompts or ()]


def job_id(batch: str, custom_id: str) -> str:
    """The job id of a batch's line: the same line of the same batch always has the same id, in one WIRE.

    It has 96 bits, in letters, digits, `_` and `-`, which RQ allows; the first is no `-`, which begins options. Redis
    writes it some 17 times for each job, so it is short.
    """
    name = f"{WIRE}\0{batch}\0{custom_id}".encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(hashlib.sha256(name).digest()).decode().lstrip("-")[:16]


def batch_of(content: str, user: str) -> str:
    """The id of the batch that `user` makes of a dataset's content.

    Two people with one file have two batches, so that neither can collect or cancel the other's.
    """
    return f"batch_{hashlib.sha256(orjson.dumps([content, user])).hexdigest()[:24]}"


def slug(pair: str) -> str:
    """A pair as it stands in the names of queues and keys; without a colon."""
    name = canonical(pair)
    plain = re.sub(r"[^a-z0-9_.-]+", "_", name.lower())
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"  # no two are the same


def pair_queue(pair: str) -> str:
    """The name under which `rq info` lists the workers of a pair; the queues of its batches begin with it."""
    return f"draftmill.{WIRE}.{slug(pair)}"


def queue_name(pair: str, batch: str) -> str:
    """The RQ queue of a batch's lines for a pair. Workers let the batches of their pair take turns."""
    return f"{pair_queue(pair)}:{batch}"


# Keys that Python reads or writes. All keys, each with its type and owner, stand in `lua/shared/record.lua`.

BATCHES = "draftmill:batches"
"""Sorted set: batch id -> submission time (Unix seconds)."""


def batch_key(batch: str) -> str:
    """Hash: pairs (JSON), the first of them as pair, queue (those of its pairs, spaces between), priority, user,
    source, parameters, total, created, cancelled_at, paused_at, collected_at, generation, wire; kept_for, if that is
    not RESULT_TTL; counters for people to read: failed, cancelled, prompt_tokens, completion_tokens; and `waiting_since
    <slug of a pair>`: when the job that is next in its queue was queued, and `repairing`: since when a worker looks for
    lost jobs, Redis TIME in ms.
    """
    return f"draftmill:batch:{batch}"


def open_key(batch: str) -> str:
    """Hash: job without an outcome -> `<line number> <custom_id>`."""
    return f"draftmill:open:{batch}"


def ended_key(batch: str) -> str:
    """Bitmap by line number: the line has a recorded outcome."""
    return f"draftmill:ended:{batch}"


def handed_key(batch: str) -> str:
    """Bitmap by line number: the line's outcome was acknowledged, and is no longer in the results."""
    return f"draftmill:handed:{batch}"


def leased_key(queue: str) -> str:
    """Sorted set of RQ's: `<job>:<token>` of the jobs of this queue that are leased -> when that expires, see
    record.lua.
    """
    return f"rq:wip:{queue}"


def results_key(batch: str) -> str:
    """Stream in completion order, one entry per outcome that nobody acknowledged: `line` is the JSON output line, `n`
    the body's `line`, `job` the job.
    """
    return f"draftmill:results:{batch}"


def failures_key(batch: str) -> str:
    """Hash: job -> "failed <n> <entry> <reason>…" | "cancelled <n> <entry> <reason>…": lines that could be retried,
    where their error line stands or stood in the results, its first characters, and more for people, see
    `failed/failures.py`.
    """
    return f"draftmill:failures:{batch}"


def bad_key(batch: str) -> str:
    """List: the error lines of the dataset's lines that cannot run, as the submission found them."""
    return f"draftmill:bad:{batch}"


def holder_key(batch: str) -> str:
    """String that expires: the OUT that collects the batch, `<token> <place>`."""
    return f"draftmill:holder:{batch}"


def rest_key(batch: str) -> str:
    """Hash: `<number> <lines>` of a chunk -> its lines that a feeder is to queue, see `rest/stored.py`."""
    return f"draftmill:rest:{batch}"


RESTS = "draftmill:rests"
"""Sorted set: batch of which a feeder is to queue lines -> bytes of their chunks."""

FEEDER = "draftmill:feeder"
"""String that expires: the feeder that queues them."""

RUNNING = f"draftmill:running:{WIRE}"
"""Hash: queue in which jobs are leased, or were a moment ago -> user of its batch."""

LATER = f"draftmill:later:{WIRE}"
"""Sorted set: job that is to be tried again -> when, Redis TIME in ms."""

FAILED = "draftmill:failed"
"""Stream: the latest failures of all batches, for people to read: `batch`, `custom_id`, `worker`, `reason`."""

LIMITS = "draftmill:limits"
"""Hash: user, or `*` for all others -> most jobs of that user that may run at once."""

SPENT = "draftmill:spent"
"""Hash: `prompt <user>` or `generated <user>` -> tokens of the user's lines that ended; `metered <user>` -> generated
ones of them for which a machine said how much it drew, `millijoules <user>` -> how much. Since Redis is there."""


def alone_key(pair: str) -> str:
    """List of the pair's jobs that must run alone, the head first."""
    return f"draftmill:alone:{WIRE}:{slug(pair)}"


def waiting_keys(pair: str) -> tuple[str, ...]:
    """Keys of which one is there while jobs of the pair are queued: turns, parked flows, jobs that must run alone."""
    return *(f"draftmill:{kind}:{WIRE}:{slug(pair)}" for kind in ("turns", "parked")), alone_key(pair)


def bell_key(pair: str) -> str:
    """List with an entry for each worker that is to wake and look for jobs of the pair; expires."""
    return f"draftmill:bell:{WIRE}:{slug(pair)}"


def paces_key(pair: str) -> str:
    """Hash: worker that takes jobs of the pair -> `<tokens a second of a row> <rows> <gone when>`; expires."""
    return f"draftmill:paces:{WIRE}:{slug(pair)}"


WORKERS = "draftmill:workers"
"""Sorted set: worker -> its last heartbeat, Redis TIME in seconds. Who vanished a day ago is no longer in it."""

FLEET = "draftmill:fleet"
"""Hash: what operators ask of the fleet. `version`, `mlx`, `rq`, `wire`: which versions may take jobs, each if it is
asked for; `drain <worker|host|*>`: since when (Unix seconds); `pairs <host|*>`: which pairs at what hours, JSON."""


def worker_key(worker: str) -> str:
    """Hash, a day after the last heartbeat it expires: what a worker reports of itself.

    `host`, `chip`, `memory` (bytes), `os`, `thermal` (nominal, fair, serious, critical, unknown), `memory_pressure`
    (normal, warning, critical, unknown), `swapped` (bytes) and `power_watts` (both empty if unknown); `version`, `mlx`,
    `rq`, `wire`, `pair`; `adapters` (those of LoRA, commas between); `check` (how near its logits are to mlx-lm's, or
    that they are mlx-lm's: "plain: no adapter for phi3") and `stock` (operations that the check found wrong and that
    run as stock MLX, or empty); `state` (working, draining, drained, refusing) and its `reason`; `lease` (seconds of
    silence after which it counts as gone), `seen` and `started` (Redis TIME in seconds), `metrics` (host:port for
    Prometheus, or empty); `in_flight`, `done`, `failed`, `tokens_per_second`; and counters since it started:
    `generated_tokens`, `rounds`, `row_rounds`, `drafted`, `accepted`, `energy_joules` (while jobs were in flight).
    """
    return f"draftmill:worker:{worker}"
