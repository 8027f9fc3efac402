"""Tables that commands print: lines with columns for programs, folded to fit for people, nothing cut for either."""

from __future__ import annotations

import re
import subprocess
import sys

import orjson
import pytest
import redis as redis_py

from draftmill.producer.cli.report import print_table
from draftmill.producer.cli.status import MOST_LISTED
from draftmill.producer.queue import batches
from draftmill.producer.queue.batches import BatchInfo
from tests.producer.cli.test_terminal import COLOUR, on_a_terminal
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer

HEAD = ("WORKER", "STATE", "")
REASON = "serves smollm2-135m, the schedule says qwen3.5-27b from ten in the evening until six in the morning"
ROWS = [("mini-1-ccceb6", "working", ""), ("mini-2", "refusing", REASON), ("[bold]日本", "gone", "no heartbeat")]


def test_in_a_pipe_each_row_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(HEAD, ROWS, styles={"gone": "red"})
    assert capsys.readouterr().out.splitlines() == [
        "WORKER         STATE",
        "mini-1-ccceb6  working",
        f"mini-2         refusing  {REASON}",
        "[bold]日本     gone      no heartbeat",
    ]


def test_what_others_named_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((), [("a\x1b[31m\nb", "\x9b2Jc\u202ed"), ("ok", "é")])
    assert capsys.readouterr().out.splitlines() == ["a [31m b   2Jc d", "ok        é"]


def test_without_a_head_and_with_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((), [("ok", "memory", "24 GiB")])
    print_table(("rows", "mlx"), [("1", "105"), ("16", "1,167")], numbers=True)
    assert capsys.readouterr().out.splitlines() == ["ok  memory  24 GiB", "rows    mlx", "   1    105", "  16  1,167"]


def test_an_empty_table_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEAD[:2], [])
    assert capsys.readouterr().out == "WORKER  STATE\n"


SHOW = f"from draftmill.producer.cli.report import print_table; print_table({HEAD}, {ROWS}, styles={{'gone': 'red'}})"


@pytest.mark.parametrize("width", [20, 60, 80])
def test_on_a_terminal_the_last_column_is_folded(shell: Shell, width: int) -> None:
    shown = on_a_terminal(shell, COLUMNS=str(width), command=[sys.executable, "-c", SHOW])
    assert COLOUR.search(shown)
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    begin = lines[0].index("STATE") + len("refusing  ")
    assert max(map(len, lines)) <= max(width, begin + 24)
    (first,) = [line for line in lines if line.startswith("mini-2         refusing  serves")]
    folded = [line[begin:] for line in lines[lines.index(first) : -1]]
    assert " ".join(folded).split() == REASON.split()
    assert not any(line[:begin].strip() for line in lines[lines.index(first) + 1 : -1])
    assert lines[1] == "mini-1-ccceb6  working"


def test_no_color(shell: Shell) -> None:
    shown = on_a_terminal(shell, NO_COLOR="1", command=[sys.executable, "-c", SHOW])
    assert "gone" in shown
    assert not COLOUR.search(shown.replace("\x1b[1m", ""))


def test_commands_print_them(shell: Shell) -> None:
    """With the widths of what stands in them."""
    shell.write("in.jsonl", '{"prompt": "Why?"}\n')
    batch = shell("submit", "in.jsonl").stdout.strip()
    head, row = shell("status").stdout.splitlines()
    assert row == f"{batch}  queued  0/1    0       smollm2-135m  in.jsonl"
    assert head.split() == ["BATCH", "STATE", "ENDED", "FAILED", "PAIR", "SOURCE"]
    assert head.index("SOURCE") == row.index("in.jsonl")
    pairs = [re.split(r"  +", line) for line in shell("pairs").stdout.splitlines()]
    assert pairs[0] == ["PAIR", "TARGET", "DRAFT", "SOURCES", "ON THIS MACHINE"]
    assert ["smollm2-135m", "smollm2-135m", "in the box"] in [row[:3] for row in pairs]


def test_only_who_prints_one_imports_rich() -> None:
    code = "import sys, draftmill.producer.cli.main; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_status_lists_the_newest_batches(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> None:
    for n in range(MOST_LISTED + 5):
        batches.create(redis, BatchInfo(f"b-{n}", "none", "normal", 1))
    at = ("--redis-url", redis_server.url)
    *listed, last = shell("status", *at).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["BATCH", *(f"b-{n}" for n in range(MOST_LISTED + 4, 4, -1))]
    assert "draftmill status --all" in last
    assert len(shell("status", "--all", *at).stdout.splitlines()) == 1 + MOST_LISTED + 5
    assert len(orjson.loads(shell("status", "--json", *at).stdout)) == MOST_LISTED + 5
    refused = shell("status", "b-1", "--all", *at)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
