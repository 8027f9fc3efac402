"""What users get of a batch: its output file, its error file, the lines in them that no worker wrote, and its usage."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ...input.dataset import BadLine, key_of
from ...input.notes import of_answers
from ...input.sources import BOM
from ...output.formats import notes_in
from ...output.output import Output
from ...queue.ending import CANCELLED
from ...queue.wire import job_id
from .batch_record import BatchRecord
from .files import Files
from .forms.translation import Translation

EXPIRED = "batch_expired"


@dataclass(frozen=True)
class Refused(BadLine):
    """A request with something wrong in it: the answer is that of the API, 400 and an error."""

    batch: str = ""

    def record(self) -> dict[str, Any]:
        id = job_id(self.batch, self.custom_id or "")
        error = {"message": self.reason, "type": "invalid_request_error", "param": None, "code": "invalid_request"}
        return {
            "id": f"batch_req_{id}",
            "custom_id": self.custom_id,
            "response": {"status_code": 400, "request_id": f"req_{id}", "body": {"error": error}},
            "error": {"code": error["code"], "message": self.reason},
        }


@dataclass(frozen=True)
class Unqueued(BadLine):
    """A request that was not queued yet when its batch was cancelled."""

    batch: str = ""

    def record(self) -> dict[str, Any]:
        id = job_id(self.batch, self.custom_id or "")
        error = {"code": CANCELLED, "message": self.reason}
        return {"id": f"batch_req_{id}", "custom_id": self.custom_id, "response": None, "error": error}


def publish(batch: BatchRecord, output: Output, source: Path, files: Files) -> BatchRecord:
    """Makes files of what the batch put out, and returns the batch that names them. May be repeated.

    `source` has the requests.
    """
    out, errors, lasts = output.path, output.errors.path, batch.output_lasts
    output_id = error_id = None
    if out.stat().st_size:
        output_id = _file_id(batch, "output")
        answers = _translated(out, source, batch.translation) if batch.translation.changes_answers else out
        files.publish(output_id, answers, f"{batch.id}_output.jsonl", batch.user, lasts)
    if errors.exists() and errors.stat().st_size:
        error_id = _file_id(batch, "error")
        errors = _as_expired(errors) if batch.expired_at else errors
        files.publish(error_id, errors, f"{batch.id}_error.jsonl", batch.user, lasts)
    usage, notes = _told(out)
    notes = [*batch.notes, *of_answers(notes)]
    return replace(batch, output_file_id=output_id, error_file_id=error_id, usage=usage, notes=notes)


def _file_id(batch: BatchRecord, kind: str) -> str:
    """The same for the same batch, so that publishing twice makes one file."""
    return f"file-{hashlib.sha256(f'{batch.id}/{kind}'.encode()).hexdigest()[:24]}"


def _as_expired(errors: Path) -> Path:
    """The error file of a batch that expired: its requests were cancelled, but not by its user."""
    expired = errors.with_name("expired.jsonl")
    message = "this request could not be executed before the completion window expired"
    with errors.open("rb") as source, expired.open("wb") as target:
        for raw in source:
            line = orjson.loads(raw)
            if line["error"]["code"] == CANCELLED:
                line["error"] = {"code": EXPIRED, "message": message}
            target.write(orjson.dumps(line) + b"\n")
    return expired


def _translated(out: Path, source: Path, translation: Translation) -> Path:
    """The output file with answers as their endpoint has them and as the requests call the model."""
    answers = out.with_name("answers.jsonl")
    with out.open("rb") as lines, answers.open("wb") as target, source.open("rb") as requests:
        places = _places(requests) if translation.needs_requests else {}
        for raw in lines:
            line = orjson.loads(raw)
            asked: dict[str, Any] = {}
            if places:
                requests.seek(places[key_of(line["custom_id"])])
                asked = orjson.loads(requests.readline())["body"]
            line["response"]["body"] = translation.answer(asked, line["response"]["body"])
            target.write(orjson.dumps(line) + b"\n")
    return answers


def _places(requests: BinaryIO) -> dict[int, int]:
    """Where the request of each key of a custom_id begins. Together, requests may be too large for the memory."""
    places: dict[int, int] = {}
    place = len(BOM) if requests.read(len(BOM)) == BOM else 0
    requests.seek(place)
    for raw in requests:
        if raw.strip():
            places[key_of(orjson.loads(raw)["custom_id"])] = place
        place += len(raw)
    return places


def _told(out: Path) -> tuple[dict[str, Any], Counter[str]]:
    """The tokens of all completions, and in how many of them each note of a worker stands."""
    prompt = cached = completion = reasoning = 0
    notes: Counter[str] = Counter()
    with out.open("rb") as lines:
        for raw in lines:
            line = orjson.loads(raw)
            notes.update(notes_in(line))
            usage = line["response"]["body"]["usage"]
            prompt += usage["prompt_tokens"]
            cached += usage["prompt_tokens_details"]["cached_tokens"]
            completion += usage["completion_tokens"]
            reasoning += (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }
    return usage, notes
