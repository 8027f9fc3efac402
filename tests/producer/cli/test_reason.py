"""`--retry-failed --reason`: only the failures that have something to do with what was mended run again."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest

from tests.producer.conftest import Shell
from tests.worker.run_worker import PAIR


def failures(shell: Shell) -> list[str]:
    return sorted(orjson.loads(line)["custom_id"] for line in shell.lines("out.jsonl.errors.jsonl"))


def test_failures_for_one_reason_run_again(shell: Shell, worker: Callable[[], None]) -> None:
    needed = shell.folder / "needed"
    prompts = {"long": "x " * 1200, "lacking": f"needs:{needed}"}
    lines = [{"id": name, "prompt": prompt, "max_tokens": 2} for name, prompt in prompts.items()]
    shell.write("in.jsonl", b"\n".join(map(orjson.dumps, lines)))
    submit = ("submit", "in.jsonl", "--pair", PAIR)
    batch = shell(*submit).stdout.strip()
    worker()
    collect = ("collect", batch, "-o", "out.jsonl", "--follow")
    assert shell(*collect).returncode == 4
    assert failures(shell) == ["lacking", "long"]
    needed.touch()
    for reason, count in (("no such reason", "0 failed lines"), ("NO SUCH FILE", "1 failed line")):
        again = shell(*submit, "--retry-failed", "--reason", reason)
        assert again.stderr == f"Note: {count} queued again\n"
        assert shell(*collect).returncode == 4
    assert failures(shell) == ["long"]
    assert len(shell.lines("out.jsonl")) == 1


@pytest.mark.parametrize("command", [("submit", "in.jsonl"), ("run", "in.jsonl", "-o", "out.jsonl")])
def test_a_reason_alone_is_refused(shell: Shell, command: tuple[str, ...]) -> None:
    refused = shell(*command, "--reason", "memory")
    assert refused.returncode == 2
    assert "it needs --retry-failed" in refused.stderr
