"""A batch as the API knows it: what it was created with, its status, and when it got there."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from ...client.hook import Event, Status
from .api_errors import ApiError
from .files import expiry
from .forms.translation import ENDPOINTS, Translation
from .records import Record, new_id

PARAMETERS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")

STATUSES = ("validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled")
OPEN = STATUSES[:4]

PRIVATE = ("user", "created", "pair", "adapters", "notes", "paused", "to_tell", "output_lasts", "refused")
"""Fields that are nobody's business but the server's, or are shown by another name."""

TOLD = ("input_file_id", "output_file_id", "error_file_id", "request_counts", "metadata")
"""Fields that receivers are told."""

WINDOW = re.compile(r"([1-9]\d{0,4})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""OpenAI knows the window 24h only; others are ours."""

MOST_PAIRS, MOST_NAME, MOST_VALUE = 16, 64, 512
"""OpenAI's limits of metadata: how many pairs, and characters of a key and of a value."""


@dataclass(frozen=True, kw_only=True)
class BatchRecord(Record):
    """A batch. Its id is also that of the batch in Redis, so two batches made of one file share nothing.

    `pair` is known once the file is validated, and so are `model`, as its requests call the pair (empty if they do so
    by several names), the LoRA `adapters` that models stand for, and the `notes` about what they ask for that is
    ignored; those about what workers could not do follow at the end. `refused` counts the requests that are never
    queued because something is wrong with them; `failed` includes them. OpenAI has no status for a batch that is
    `paused`. One is `to_tell` while a receiver does not know how it ended. Times are Unix seconds; the output files
    stay for `output_lasts` seconds.
    """

    endpoint: str
    input_file_id: str
    completion_window: str
    expires_at: int
    metadata: dict[str, str] | None
    status: str = "validating"
    pair: str = ""
    model: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output_lasts: int | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    refused: int = 0
    completed: int = 0
    failed: int = 0
    paused: bool = False
    to_tell: bool = False
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done for it."""
        return self.status in OPEN

    @property
    def ended_at(self) -> int | None:
        """When it ended; None if something is still to be done."""
        times = (self.completed_at, self.failed_at, self.expired_at, self.cancelled_at)
        return None if self.is_open else max((at for at in times if at is not None), default=int(self.created))

    @property
    def is_ending(self) -> bool:
        """Whether it is to end before all of its requests have."""
        return self.cancelling_at is not None or self.expired_at is not None

    @property
    def translation(self) -> Translation:
        return Translation(self.endpoint, self.pair, self.model, self.adapters)

    def at(self, status: str) -> BatchRecord:
        """The batch at its next status, with the time; one that is being cancelled stays so until it is."""
        stamped = replace(self, **{f"{status}_at": int(time.time())})
        stays = self.status == "cancelling" and status in ("in_progress", "finalizing")
        return self if stays else replace(stamped, status=status)

    def event(self) -> Event | None:
        """What its receiver is to be told; None if there is nothing to tell."""
        if self.is_open or not self.to_tell:
            return None
        shown = self.public()
        return Event(self.id, cast(Status, self.status), {name: shown[name] for name in TOLD})

    def public(self) -> dict[str, Any]:
        shown = asdict(self)
        for name in (*PRIVATE, "total", "completed", "failed"):
            del shown[name]
        return shown | {
            "object": "batch",
            "created_at": int(self.created),
            "model": self.model or self.pair or None,
            "draftmill": {"notes": self.notes, "paused": self.paused and self.is_open},
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
        }


def cancelling(batch: BatchRecord) -> BatchRecord:
    """The batch once its user wants it cancelled; asking twice is harmless."""
    if batch.status == "cancelling":
        return batch
    if batch.status not in ("validating", "in_progress"):
        raise ApiError(400, f"Cannot cancel a batch with status '{batch.status}'.", code="invalid_status")
    return batch.at("cancelling")


def read(asked: dict[str, Any], user: str, least: float) -> BatchRecord:
    """The batch that a request wants to create, which may take `least` seconds even if it asks for fewer.

    Raises ApiError.
    """
    for name in PARAMETERS[:3]:
        if not isinstance(asked.get(name), str):
            message = f"Missing required parameter: '{name}'."
            raise ApiError(400, message, param=name, code="missing_required_parameter")
    if unknown := sorted(set(asked) - set(PARAMETERS)):
        raise ApiError(400, f"'{unknown[0]}' is not supported.", param=unknown[0], code="unknown_parameter")
    endpoint, window = asked["endpoint"], WINDOW.fullmatch(asked["completion_window"])
    if endpoint not in ENDPOINTS:
        message = f"'{endpoint}' is not served; use one of {', '.join(ENDPOINTS)}."
        raise ApiError(400, message, param="endpoint", code="invalid_value")
    if window is None:
        message = f"'{asked['completion_window']}' is no time; use '24h', or another number of s, m, h or d."
        raise ApiError(400, message, param="completion_window", code="invalid_value")
    now = time.time()
    return BatchRecord(
        id=new_id("batch_"),
        user=user,
        created=now,
        endpoint=endpoint,
        input_file_id=asked["input_file_id"],
        completion_window=asked["completion_window"],
        expires_at=int(now + max(least, int(window[1]) * SECONDS[window[2]])),
        metadata=_metadata(asked.get("metadata")),
        output_lasts=expiry(asked.get("output_expires_after"), "output_expires_after"),
    )


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) > MOST_PAIRS:
        raise ApiError(400, f"metadata must be an object of at most {MOST_PAIRS} texts.", param="metadata")
    for name, value in given.items():
        if not isinstance(value, str) or len(value) > MOST_VALUE or len(name) > MOST_NAME:
            message = f"metadata must be texts of at most {MOST_VALUE} characters, by names of at most {MOST_NAME}."
            raise ApiError(400, message, param=f"metadata.{name[:MOST_NAME]}", code="invalid_value")
    return given
