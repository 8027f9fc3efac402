"""What users get of a batch: its output file, its error file, the lines in them that no worker wrote, and its usage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from ...input.dataset import BadLine
from ...output.output import Output
from ...queue.ending import CANCELLED
from ...queue.wire import job_id
from .batch_record import BatchRecord
from .files import Files

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


def publish(batch: BatchRecord, output: Output, files: Files) -> BatchRecord:
    """Makes files of what the batch put out, and returns the batch that names them. May be repeated."""
    out, errors = output.path, output.errors.path
    output_id = error_id = None
    if out.stat().st_size:
        output_id = _file_id(batch, "output")
        files.publish(output_id, out, f"{batch.id}_output.jsonl", batch.user)
    if errors.exists() and errors.stat().st_size:
        error_id = _file_id(batch, "error")
        errors = _as_expired(errors) if batch.expired_at else errors
        files.publish(error_id, errors, f"{batch.id}_error.jsonl", batch.user)
    return replace(batch, output_file_id=output_id, error_file_id=error_id, usage=_usage(out))


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


def _usage(out: Path) -> dict[str, Any]:
    """The tokens of all completions."""
    prompt = cached = completion = 0
    with out.open("rb") as lines:
        for line in lines:
            usage = orjson.loads(line)["response"]["body"]["usage"]
            prompt += usage["prompt_tokens"]
            cached += usage["prompt_tokens_details"]["cached_tokens"]
            completion += usage["completion_tokens"]
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
