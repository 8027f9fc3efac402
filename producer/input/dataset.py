"""Reads a dataset as a stream of jobs and bad lines, in memory that does not grow with the prompts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from ..queue.errors import UserError
from ..queue.pair_names import canonical
from ..queue.wire import MOST_BODY_BYTES, MOST_LINES, JobBody
from . import lines
from .chunks import Chunk, Cutter
from .defaults import Defaults
from .notes import Notes
from .request.faults import Fault, show
from .rows import RowOptions, Rows
from .sources import name_of, open_source

NOT_IN_ID: Any = {"batch": True, "line": True, "drafts": True, "sampling": {"max_seconds"}}
AT_FIRST = {"max_tokens", "temperature", "top_p", "top_k", "seed", "stop"}
"""Sampling parameters of the first version."""

BAD_LINE = "invalid_line"
"""Error code of a line of the dataset that never reached the queue."""


def key_of(custom_id: str) -> int:
    """64 bits that stand for a custom_id, so that those of a million lines take less than 100 MB.

    That two of a million lines have the same ones happens once in 30 million files.
    """
    return int.from_bytes(hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run."""

    number: int
    reason: str
    custom_id: str | None = None

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"

    @property
    def id(self) -> str:
        """What it is known by in the error file."""
        return f"line-{self.number}"

    def record(self) -> dict[str, Any]:
        """The line of the error file, in the form of an OpenAI Batch error line."""
        return {
            "id": self.id,
            "custom_id": self.custom_id,
            "response": None,
            "error": {"code": BAD_LINE, "message": str(self)},
        }


@dataclass
class Survey:
    """What the first pass over a dataset learns.

    `content` is a name for the jobs and their pair: the same work has the same one wherever it is submitted, and
    whatever other lines stand between. `identity` derives from it and from the number of each line, by which the queue
    knows lines. `digests` are those of each chunk, and `size` is of all jobs together, as JSON; `keys` stand for the
    custom_ids of all, and `pairs` has the pairs of all, each once.
    """

    content: str = ""
    identity: str = ""
    good: int = 0
    size: int = 0
    bad_lines: list[BadLine] = field(default_factory=list[BadLine])
    digests: list[bytes] = field(default_factory=list[bytes])
    keys: array[int] = field(default_factory=lambda: array("Q"))
    notes: Notes = field(default_factory=Notes)
    pairs: list[str] = field(default_factory=list[str])

    @property
    def bad(self) -> int:
        return len(self.bad_lines)

    @property
    def first_bad(self) -> BadLine | None:
        return self.bad_lines[0] if self.bad_lines else None


class Dataset:
    """A dataset to be run by `pair` where its lines name no other. Iterating reads it from the start; it may be read
    several times.

    `source` is a path, a URL or "-" (standard input), of any format that `sources` reads. The system message of
    `defaults` is a template over a row's columns, as is that of `options`. `rewrite` makes of a line the one that is
    read, with notes about what it ignored, or raises Fault. `tell` hears how far a URL is fetched.
    """

    def __init__(
        self,
        source: str,
        pair: str,
        defaults: Defaults,
        options: RowOptions | None = None,
        rewrite: Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]] | None = None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.name = name_of(source)
        self.pair = canonical(pair)
        self.defaults = defaults
        self.options = options or RowOptions()
        self._rewrite = rewrite or (lambda line: (line, []))
        self.notes = Notes()
        self._rows = Rows(open_source(source, self.options.format, tell), self.options, defaults.system)

    def __iter__(self) -> Iterator[JobBody | BadLine]:
        seen: set[int] = set()
        for item in self._items():
            if isinstance(item, JobBody):
                key = key_of(item.custom_id)
                if key in seen:
                    reason = f"custom_id {item.custom_id!r} was already used by an earlier line"
                    item = BadLine(item.line, reason, item.custom_id)
                seen.add(key)
            yield item

    def _items(self) -> Iterator[JobBody | BadLine]:
        """All lines, those that have the custom_id of an earlier one among them."""
        self.notes = Notes()
        for number, row in self._rows:
            yield BadLine(number, str(row)) if isinstance(row, Fault) else self._read(row, number)

    def _read(self, row: dict[str, Any], number: int) -> JobBody | BadLine:
        name = None
        try:
            name = self._rows.custom_id(row, number)
            asked = self._rows.asked(row)
            defaults = replace(self.defaults, system=asked.system)
            line, said = self._rewrite(asked.line)
            self.notes.unknown.update(said)
            body = lines.job_body(line, name, number, self.pair, defaults, self.notes)
            return self._keeping(body, asked.keep)
        except Fault as fault:
            return BadLine(number, str(fault), name)

    def _keeping(self, body: JobBody, keep: dict[str, Any] | None) -> JobBody:
        """The job with the columns that it hands back. What templates and columns add may have made it too large."""
        defaults = self.defaults
        if keep is None and self.options.template is None and defaults == Defaults(defaults.sampling):
            return body
        body = body.model_copy(update={"keep": keep})
        if len(_identity(body)) > MOST_BODY_BYTES:
            raise Fault(f"becomes longer than {MOST_BODY_BYTES:,} bytes")
        return body

    def survey(self, slot: str | None = None) -> Survey:
        """Reads the dataset once: what identifies it, and what is wrong with it.

        With a `slot` the same lines are other work for each one. How long a line may take is no part of its identity.
        """
        survey, cutter, content = Survey(), Cutter(), hashlib.sha256()
        for item in self:
            if isinstance(item, BadLine):
                survey.bad_lines.append(item)
                continue
            if item.pair not in survey.pairs:
                content.update(b"" if survey.pairs else item.pair.encode())
                survey.pairs.append(item.pair)
            survey.good += 1
            if survey.good > MOST_LINES:
                raise UserError(f"{self.name} has more than {MOST_LINES:,} lines, the most of a batch; split the file")
            survey.keys.append(key_of(item.custom_id))
            identity = _identity(item)
            content.update(identity + b"\n")
            if digest := cutter.add(_numbered(item, identity)):
                survey.digests.append(digest)
        if digest := cutter.end():
            survey.digests.append(digest)
        survey.size = cutter.size
        survey.content = f"batch_{content.hexdigest()[:24]}"
        if slot is not None:
            survey.content = f"batch_{hashlib.sha256(f'{survey.content} {slot}'.encode()).hexdigest()[:24]}"
        survey.identity = f"{survey.content} {hashlib.sha256(b''.join(cutter.groups)).hexdigest()}"
        survey.notes = self.notes
        for name in self.defaults.models:
            if name not in self.notes.models:
                self.notes.surprises[f"no line names the model {show(name)}"] = 0
        if not survey.good:
            self._refuse(survey)
        return survey

    def chunks(self, survey: Survey) -> Iterator[Chunk]:
        """The jobs again, each chunk exactly as it was surveyed; raises UserError if it is not."""
        expected, cutter, jobs, size = iter(survey.digests), Cutter(), list[JobBody](), 0
        bad = {line.number for line in survey.bad_lines}
        for body in self._items():
            if isinstance(body, BadLine) or body.line in bad:
                continue
            jobs.append(body)
            if digest := cutter.add(_numbered(body, _identity(body))):
                self._check(digest, expected)
                yield Chunk(jobs, cutter.size - size)
                jobs, size = [], cutter.size
        if digest := cutter.end():
            self._check(digest, expected)
        self._check(None, expected)
        if jobs:
            yield Chunk(jobs, cutter.size - size)

    def _check(self, digest: bytes | None, expected: Iterator[bytes]) -> None:
        """Compares the digest of a chunk, or None at the end, with that of the survey."""
        if digest != next(expected, None):
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(
            f"{self.name} changed while it was submitted; what is queued is of the file as it was at first; "
            "the same command takes the file as it is now"
        )

    def _refuse(self, survey: Survey) -> None:
        if survey.first_bad is None and self.options.where is not None:
            raise UserError(f"{self.name} has no row for which {self.options.where!r} holds")
        hint = f"a line looks like {EXAMPLE}, or a --template makes prompts of other columns"
        if survey.first_bad is None:
            raise UserError(f"{self.name} is empty; {hint}")
        hint = "" if self.options.template is not None else f"; {hint}"
        raise UserError(f"{self.name} has no usable line; {survey.first_bad}{hint}")


def _numbered(body: JobBody, identity: bytes) -> bytes:
    """What of a job must not change between two readings."""
    return b"%d %b\n" % (body.line, identity)


def _identity(body: JobBody) -> bytes:
    """What of a job its batch's id derives from.

    Of what the first version had, all; of what came later, what is not as it is by default. So the same lines have the
    same id in each version.
    """
    given = body.model_dump(mode="json", exclude=NOT_IN_ID, exclude_defaults=True)
    prompts, grammar = given.pop("prompts", None), body.grammar
    if prompts and len(prompts) == 1 and isinstance(prompts[0], str):
        given["prompt"] = prompts[0]
    elif prompts:
        given["prompts"] = prompts
    if grammar and grammar.kind == "json":
        given["json_schema"] = given.pop("grammar")["text"]
    sampling = body.sampling.model_dump(mode="json", include=AT_FIRST) | given.pop("sampling", {})
    first = {name: given.pop(name, None) for name in ("custom_id", "pair", "messages", "prompt")}
    return orjson.dumps(first | {"sampling": sampling} | given)


EXAMPLE = orjson.dumps({"id": "1", "prompt": "Why is the sky blue?"}).decode()
