"""When the slots of a schedule are, which of the missed ones run, and what a schedule may hold."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from itertools import islice, pairwise

import pytest

from draftmill.producer.cli.cron import check_arguments
from draftmill.producer.cron.schedule import Schedule
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.schedules import spoken

HOUR = 3_600_000


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def cron(expression: str, zone: str = "UTC", **more: str) -> Schedule:
    return Schedule.model_validate(
        {"name": "s", "cron": expression, "timezone": zone, "arguments": ("in.jsonl",)} | more
    )


def every(ms: int, **more: str) -> Schedule:
    return Schedule.model_validate({"name": "s", "every_ms": ms, "arguments": ("in.jsonl",)} | more)


def hours(schedule: Schedule, after: str, count: int) -> list[str]:
    return [spoken(slot)[5:16] for slot in islice(schedule.slots(at(after)), count)]


def test_intervals_count_from_midnight_utc() -> None:
    schedule = every(6 * HOUR)
    assert hours(schedule, "2026-05-01T00:00:00Z", 3) == ["05-01T06:00", "05-01T12:00", "05-01T18:00"]
    assert spoken(schedule.latest(at("2026-05-01T11:59:59Z"))) == "2026-05-01T06:00:00Z"
    assert spoken(next(every(200).slots(400))) == "1970-01-01T00:00:00.600Z"


def test_expressions_are_read_in_their_zone() -> None:
    schedule = cron("0 9 * * mon-fri", "America/New_York")  # 2026-03-06 is a Friday, clocks change on the Sunday
    assert hours(schedule, "2026-03-05T20:00:00Z", 3) == ["03-06T14:00", "03-09T13:00", "03-10T13:00"]
    assert f"{schedule.local(at('2026-03-09T13:00:00Z')):%H:%M %Z}" == "09:00 EDT"


def test_the_hour_that_clocks_skip_ends_in_one_slot() -> None:
    assert hours(cron("30 2 * * *", "Europe/Berlin"), "2026-03-28T12:00Z", 2) == ["03-29T01:00", "03-30T00:30"]
    assert hours(cron("0 * * * *", "Europe/Berlin"), "2026-03-28T23:30Z", 3) == [
        "03-29T00:00",
        "03-29T01:00",
        "03-29T02:00",
    ]


def test_the_hour_that_clocks_repeat_counts_once_unless_all_hours_do() -> None:
    assert hours(cron("30 2 * * *", "Europe/Berlin"), "2026-10-24T12:00Z", 2) == ["10-25T00:30", "10-26T01:30"]
    assert hours(cron("0 * * * *", "Europe/Berlin"), "2026-10-24T23:30Z", 3) == [
        "10-25T00:00",
        "10-25T01:00",
        "10-25T02:00",
    ]


@pytest.mark.parametrize("expression", ["30 2 * * *", "*/30 2 * * *", "0 * * * *", "15 1,2,3 * * *", "0 9 * * 1"])
@pytest.mark.parametrize("day", ["2026-03-28T22:00Z", "2026-10-24T22:00Z"])
def test_backwards_and_forwards_agree(expression: str, day: str) -> None:
    schedule = cron(expression, "Europe/Berlin")
    slots = list(islice(schedule.slots(at(day)), 12))
    for slot, following in pairwise(slots):
        assert slot < following
        assert {schedule.latest(when) for when in (slot, slot + 1, following - 1)} == {slot}


def test_missed_slots() -> None:
    first, now = 0, 3 * HOUR + 59_000  # four slots are due, and the last of them is not late yet
    assert every(HOUR, missed="all").due(first, now) == (0, HOUR)
    assert every(HOUR, missed="one").due(first, now) == (3 * HOUR, 4 * HOUR)
    assert every(HOUR, missed="skip").due(first, now) == (3 * HOUR, 4 * HOUR)
    assert every(HOUR, missed="skip").due(first, now + 2_000) == (None, 4 * HOUR)
    assert every(HOUR, missed="one").due(first, now + 2_000) == (3 * HOUR, 4 * HOUR)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (cron("x"), "--cron 'x': five fields are needed: minute hour day month weekday"),
        (cron("@hourly"), "--cron '@hourly': five fields are needed: minute hour day month weekday"),
        (cron("R * * * *"), "--cron 'R * * * *': five fields are needed: minute hour day month weekday"),
        (cron("0 0 30 2 *"), "--cron '0 0 30 2 *': no such date ever comes"),
        (
            cron("0 * * * *", "Mars/Olympus"),
            "--timezone 'Mars/Olympus' is unknown; name one such as Europe/Berlin, or UTC",
        ),
        (cron("0 * * * *", "../../etc/passwd"), "--timezone '../../etc/passwd' is unknown"),
        (every(HOUR, output="out.jsonl"), "-o 'out.jsonl' is one file for the slots 1970-01-01T01:00:00Z and"),
        (every(HOUR, output="%H.jsonl"), "-o '%H.jsonl' is one file for the slots 1970-01-01T01:00:00Z and 1970-01-02"),
        (every(HOUR, output="%Y-%m-%dT%H"), "-o '%Y-%m-%dT%H' must end in one of .jsonl, .csv, .parquet"),
        (
            every(HOUR, output="../%Y%m%d%H.jsonl"),
            "-o '../1970010101.jsonl' must be a path relative to the scheduler's",
        ),
        (every(HOUR, output="https://h/%Y%m%d%H.jsonl"), "OUT is a URL of https://, and nothing can be written there"),
        (
            every(HOUR, output="s3://b/out.jsonl"),
            "-o 's3://b/out.jsonl' is one file for the slots 1970-01-01T01:00:00Z",
        ),
        (every(HOUR, output="s3://b/../%Y%m%d%H.jsonl"), "-o s3://b/../ must not have . or .. in its path"),
    ],
)
def test_what_cannot_be_is_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(UserError) as error:
        schedule.check(check_arguments)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'INPUT'; see `draftmill submit --help`"),
        (("in.jsonl", "--nope"), "No such option '--nope'"),
        (("in.jsonl", "--help"), "No such option '--help'"),
        (("in.jsonl", "--max-tokens", "0"), "Invalid value for '--max-tokens': 0 is not in the range"),
        (("-",), "INPUT '-' must be a path relative to the scheduler's folder, and inside it"),
        (("/etc/passwd",), "INPUT '/etc/passwd' must be a path relative to"),
        (("~/.ssh/id_rsa",), "INPUT '~/.ssh/id_rsa' must be a path relative to"),
        (("notes/../../x.jsonl",), "INPUT 'notes/../../x.jsonl' must be a path relative to"),
        (("https://ann:pw@host/x.jsonl",), "INPUT https://host/x.jsonl has a login or a query, and everybody can read"),
        (("https://host/x.jsonl?sig=1",), "INPUT https://host/x.jsonl?*** has a login or a query"),
        (("https://host/a/%2e%2E/x.jsonl",), "INPUT https://host/a/%2e%2E/x.jsonl must not have . or .. in its path"),
        (("https://host/a/../x.jsonl",), "INPUT https://host/a/../x.jsonl must not have . or .. in its path"),
        (("ftp://host/x.jsonl",), "draftmill reads no URL of ftp://"),
        (("in.jsonl", "--redis-url", "redis://other"), "a schedule cannot have --redis-url: it is submitted to the"),
        (("in.jsonl", "--template", "@/etc/passwd"), "--template @ '/etc/passwd' must be a path relative to"),
        (("in.jsonl", "--schema", "/etc/passwd"), "--schema '/etc/passwd' must be a path relative to"),
        (("in.jsonl", "--json"), "a schedule cannot have --json: the scheduler prints what it does itself"),
        (("in.jsonl", "--slot", "x"), "a schedule cannot have --slot: each slot is a batch of its own already"),
    ],
)
def test_a_schedule_holds_arguments_of_submit_and_nothing_else(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        Schedule(name="s", every_ms=HOUR, arguments=arguments).check(check_arguments)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("url", "is_below"),
    [
        ("https://host/data/x.jsonl", True),
        ("https://host/data/deep/x.jsonl", True),
        ("https://host/database/x.jsonl", False),
        ("https://host.example/data/x.jsonl", False),
        ("http://host/data/x.jsonl", False),
        ("s3://bucket/x.jsonl", True),
        ("s3://bucket2/x.jsonl", False),
    ],
)
def test_a_scheduler_reads_urls_below_those_that_it_was_given(url: str, is_below: bool) -> None:
    check_arguments((url,))
    with nullcontext() if is_below else pytest.raises(UserError, match="is below no --urls of this scheduler"):
        check_arguments((url,), ("https://host/data/", "s3://bucket"))
    with pytest.raises(UserError, match=f"start it with --urls {url[: url.rindex('/')]}"):
        check_arguments((url,), ())


@pytest.mark.parametrize(
    ("out", "is_below"),
    [
        ("s3://bucket/answers/%Y/%m%dT%H.jsonl", True),
        ("s3://bucket/answers/x-%Y%m%dT%H.parquet", True),
        ("s3://bucket/answers%Y/%m%dT%H.jsonl", False),  # only the slots of some years would be below
        ("s3://bucket/%Y%m%dT%H.jsonl", False),
        ("gs://bucket/answers/%Y%m%dT%H.jsonl", False),
    ],
)
def test_a_scheduler_writes_to_urls_below_those_that_it_was_given(out: str, is_below: bool) -> None:
    schedule = every(HOUR, output=out)
    schedule.check(check_arguments)
    with nullcontext() if is_below else pytest.raises(UserError, match="is below no --out-urls of this scheduler"):
        schedule.check(check_arguments, ("s3://bucket/answers", "s3://bucket/answers1970"))
    with pytest.raises(UserError, match="start it with --out-urls"):
        schedule.check(check_arguments, ())
