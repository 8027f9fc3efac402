"""What a user sees: a bar on a terminal, plain lines in a pipe, JSON for scripts, help, and shell completion."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import orjson
import pytest

from draftmill.producer.cli.main import LazyCommand, main
from tests.producer.conftest import Shell
from tests.producer.test_resume import prompts

COLOUR = re.compile(r"\x1b\[(?!0m)[\d;]+m")
SCRIPT = Path(sys.executable).with_name("draftmill")
DRAFTMILL = (sys.executable, "-m", "draftmill")


def on_a_terminal(shell: Shell, *arguments: str, command: Sequence[str] = DRAFTMILL, **environment: str) -> str:
    """What `draftmill`, or another command, shows on a terminal of its own."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=shell.folder,
        env=shell.environment | {"TERM": "xterm-256color", "COLUMNS": "120"} | environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # Linux's way of saying that nobody writes any more
            break
        if not part:
            break
        shown += part
    os.close(controller)
    process.wait()
    return shown.decode()


def test_progress_on_a_terminal_and_in_a_pipe(shell: Shell, worker: Callable[[], None]) -> None:
    arguments = prompts(shell, 300)
    batch = shell("submit", *arguments).stdout.strip()
    worker()
    shown = on_a_terminal(shell, "collect", batch, "-o", "out.jsonl", "--follow", "--leave")
    assert "━" in shown
    assert COLOUR.search(shown)
    assert re.search(r"\d+/300 · .*[\d,]+ tokens/s · \d+:\d\d left", shown)
    assert re.search(r"  [\w-]+-[0-9a-f]{6} · \d+ in flight · [\d,]+ tokens/s", shown)
    assert "300/300 · 1 failed" in shown
    plain = shell("status", batch, "--watch")
    assert "\x1b" not in plain.stdout + plain.stderr
    piped = shell("collect", batch, "-o", "again.jsonl", "--follow", "--leave")
    assert (piped.stderr, piped.stdout.count("\n")) == ("300/300 · 1 failed\n", 1)
    grey = on_a_terminal(shell, "collect", batch, "-o", "grey.jsonl", "--follow", NO_COLOR="1")
    assert "300/300" in grey
    assert not COLOUR.search(grey)


def test_results_show_up_while_a_batch_runs(shell: Shell, worker: Callable[[], None]) -> None:
    batch = shell("submit", *prompts(shell, 400)).stdout.strip()
    collecting = shell.start("collect", batch, "-o", "out.csv", "--follow")
    tail = subprocess.Popen(["tail", "-n", "+1", "-F", shell.folder / "out.csv"], stdout=subprocess.PIPE, text=True)
    worker()
    assert tail.stdout
    seen = [tail.stdout.readline() for _ in range(30)]
    assert collecting.poll() is None
    assert seen[0].startswith("custom_id,text,")
    tail.kill()
    tail.communicate()
    collecting.communicate()


BATCH_KEYS = [
    "batch",
    "state",
    "complete",
    "source",
    "pair",
    "pairs",
    "priority",
    "user",
    "created",
    "collected",
    "lines",
    "submitted",
    "queued",
    "running",
    "done",
    "failed",
    "cancelled",
    "prompt_tokens",
    "completion_tokens",
]


def test_json_for_scripts(shell: Shell, worker: Callable[[], None]) -> None:
    arguments = prompts(shell, 20)
    submitted = orjson.loads(shell("submit", *arguments, "--json").stdout)
    batch = submitted.pop("batch")
    assert submitted == {
        "lines": 20,
        "bad": 0,
        "new": 20,
        "retried": 0,
        "queued_before": 0,
        "ended_before": 0,
        "left": 0,
        "notes": [],
    }
    early = orjson.loads(shell("collect", batch, "-o", "out.parquet", "--json").stdout)
    assert early == {
        "batch": batch,
        "complete": False,
        "out": "out.parquet.partial.jsonl",
        "errors": None,
        "done": 0,
        "failed": 0,
        "bad": 0,
        "missing": 20,
        "notes": [],
    }
    worker()
    watched = [orjson.loads(line) for line in shell("status", batch, "--watch", "--json").stdout.splitlines()]
    assert [state["done"] for state in watched] == sorted(state["done"] for state in watched)
    live = ["tokens_per_second", "tokens_per_round", "watt_hours_per_million_tokens", "workers", "by_pair"]
    assert list(watched[-1]) == [*BATCH_KEYS, *live]
    assert (watched[-1]["complete"], watched[-1]["failed"]) == (True, 1)
    late = orjson.loads(shell("collect", batch, "-o", "out.parquet", "--json").stdout)
    assert late == early | {
        "complete": True,
        "out": "out.parquet",
        "errors": "out.parquet.errors.jsonl",
        "done": 19,
        "failed": 1,
        "missing": 0,
    }
    (listed,) = orjson.loads(shell("status", "--json").stdout)
    assert (list(listed), listed["state"]) == (BATCH_KEYS, "collected")


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command by the words that call it."""
    command = command.load() if isinstance(command, LazyCommand) else command
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            yield from commands(part, *path, name)
    else:
        yield " ".join(path), command


@pytest.mark.parametrize(("name", "command"), list(commands(main)))
def test_help_has_examples_that_fit_and_says_what_each_option_is(name: str, command: click.Command) -> None:
    text = command.get_help(click.Context(command, info_name=name))
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not (option.help or option.hidden)] == []
    calls = re.findall(rf"draftmill {name}( [^#|>)\n]*|$)", text.partition("Example")[2], re.MULTILINE)
    assert calls, "no example"
    known = {word for option in options for word in (*option.opts, *option.secondary_opts)}
    for call in calls:
        own = call.partition(" submit ")[0]  # what `cron add` submits has options of its own
        assert {word for word in shlex.split(own) if word.startswith("-") and word != "-"} <= known


def test_completion_of_commands_options_and_batches(shell: Shell, worker: Callable[[], None]) -> None:
    batch = shell("submit", *prompts(shell, 8)).stdout.strip()

    def complete(*words: str) -> list[str]:
        asked = {"_DRAFTMILL_COMPLETE": "bash_complete", "COMP_WORDS": "draftmill " + " ".join(words)}
        environment = shell.environment | asked | {"COMP_CWORD": str(len(words))}
        done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.split()]

    assert complete("col") == ["collect"]
    assert complete("worker", "--max-r") == ["--max-rows"]
    assert complete("collect", "batch_") == [batch]
    assert complete("submit", "in.jsonl", "--priority", "h") == ["high"]
    shell.environment["REDIS_URL"] = "redis://127.0.0.1:1"
    assert complete("collect", "batch_") == []
    for name in ("bash", "zsh", "fish"):
        assert "_DRAFTMILL_COMPLETE" in shell("completion", name).stdout
    script = f'eval "$({shlex.quote(str(SCRIPT))} completion bash)"; complete -p draftmill'
    loaded = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout == "complete -o nosort -F _draftmill_completion draftmill\n"
