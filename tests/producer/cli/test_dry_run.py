"""Datasets on the command line: what a dry run shows, and what goes wrong in one line."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from draftmill.producer.cli.dry_run import MOST_COUNTED, Sizes
from draftmill.producer.cli.progress import speed
from draftmill.producer.queue.wire import JobBody, Sampling
from tests.farm.zygote import forked_worker
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

CSV = "text,stars\n" + "".join(f"it was {n} out of ten,{n % 5}\n" for n in range(40))
TEMPLATE = "In one word: {{ text }}"


def test_a_dry_run_shows_prompts_and_tokens(shell: Shell, boxed_model: Path) -> None:
    arguments = ("--template", TEMPLATE, "--max-tokens", "10", "--dry-run")
    done = shell("submit", shell.write("x.csv", CSV + "bad\n"), *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("--- line 2, id line-2, ")
    assert lines[1] == "user: In one word: it was 0 out of ten"
    assert [line[:5] for line in lines].count("user:") == 3
    assert lines[-5].endswith(
        ": 40 requests for smollm2-135m, 1 bad line left out, first: line 42: has 1 fields, the header has 2"
    )
    shown = [int(line.split()[-2]) for line in lines if line.startswith("---")]
    tokens = int(lines[-4].removeprefix("prompts").removesuffix("tokens").replace(",", ""))
    assert min(shown) * 40 <= tokens <= (max(shown) + 2) * 40
    assert lines[-3:] == [
        "answers  at most 400 tokens, by max_tokens",
        "time     unknown: no Redis runs here; name one with --redis-url",
        "Nothing was submitted: --dry-run",
    ]
    assert shell("redis", "status").stdout.startswith("not running")
    assert shell("run", "x.csv", "-o", "out.jsonl", *arguments).stdout == done.stdout
    assert not (shell.folder / "out.jsonl").exists()


def test_a_dry_run_takes_the_time_from_live_workers(
    shell: Shell, redis: redis_py.Redis, redis_server: RedisServer
) -> None:
    shell.environment["REDIS_URL"] = redis_server.url

    def dry_run() -> str:
        done = shell("submit", shell.write("x.csv", CSV), "--template", TEMPLATE, "--pair", PAIR, "--dry-run")
        prompts, _, time, _ = done.stdout.splitlines()[-4:]
        characters = sum(len(f"In one word: it was {n} out of ten") for n in range(40))
        assert prompts.startswith(f"prompts  {characters:,} characters; characters, because tokens cannot be counted")
        return time

    assert dry_run() == f"time     unknown: no live worker serves {PAIR}"
    with forked_worker(Settings(redis_server.url, str(redis_server.folder / "spool"), round_seconds=0.01)):
        shell("submit", shell.write("y.jsonl", '{"prompt": "say it", "max_tokens": 100000}\n'), "--pair", PAIR)
        deadline = time.monotonic() + 30
        while not speed(redis, PAIR).tokens_per_second and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"tokens/s of the live workers of {PAIR}" in dry_run()


def test_many_prompts_are_judged_by_some() -> None:
    sizes = Sizes(lambda body: sum(len(text) for _, text in body.parts) // 4)
    for n in range(10 * MOST_COUNTED):
        sizes.add(
            JobBody(batch="", custom_id="a", pair=PAIR, prompts=("x" * (400 + n % 7),), sampling=Sampling(max_tokens=9))
        )
    words = str(sizes).split()
    assert words[0] == "about"
    assert abs(int(words[1].replace(",", "")) / (10 * MOST_COUNTED * 100) - 1) < 0.01
    assert MOST_COUNTED <= int(words[-3].replace(",", "")) <= 2 * MOST_COUNTED
    assert sizes.most_answered == 90 * MOST_COUNTED


REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


def test_a_line_that_the_chat_template_refuses_is_counted_as_failing(
    shell: Shell, boxed_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "refusing"
    model.mkdir()
    for file in boxed_model.iterdir():
        (model / file.name).symlink_to(file)
    config = orjson.loads((boxed_model / "tokenizer_config.json").read_bytes()) | {"chat_template": REFUSING}
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
    rows = [{"messages": [user]}, {"messages": [system, user]}, {"messages": [user]}, {"messages": [system, user]}]
    shell.write("x.jsonl", b"".join(orjson.dumps(row | {"max_tokens": 3}) + b"\n" for row in rows))
    done = shell("run", "x.jsonl", "-o", "out.jsonl", "--pair", str(model), "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "--- line 2, id line-2, will fail" in lines
    batch, failing, prompts, answers = lines[-6:-2]
    assert batch.endswith(f": 4 requests for {model}")
    assert failing == (
        "failing  2 requests, first: line 2: the model's chat template refuses these messages: no system messages"
    )
    assert prompts == "prompts  2 tokens"
    assert answers == "answers  at most 6 tokens, by max_tokens"


def test_standard_input_has_a_format(shell: Shell) -> None:
    arguments = ("--template", TEMPLATE, "--pair", "nobody", "--limit", "2")
    named = shell("submit", shell.write("x.csv", CSV), *arguments)
    piped = shell("submit", "-", "--format", "csv", *arguments, stdin=CSV)
    assert named.stdout == piped.stdout
    shell.write("prompt.j2", TEMPLATE + "\n")
    from_file = shell("submit", "x.csv", "--template", "@prompt.j2", *arguments[2:])
    assert from_file.stdout == named.stdout


def test_files_of_options_lose_their_byte_order_mark(shell: Shell) -> None:
    shell.write("x.csv", CSV)
    shell.write("schema.json", '{"type": "object"}')
    shell.write("system.txt", "Be brief.")
    shell.write("prompt.j2", TEMPLATE)
    files = ("--template", "@prompt.j2", "--system", "@system.txt", "--schema", "schema.json")
    plain = shell("submit", "x.csv", *files, "--pair", "nobody", "--dry-run")
    for name in ("schema.json", "system.txt", "prompt.j2"):
        shell.write(name, b"\xef\xbb\xbf" + (shell.folder / name).read_bytes())
    marked = shell("submit", "x.csv", *files, "--pair", "nobody", "--dry-run")
    assert (marked.returncode, marked.stdout) == (0, plain.stdout), marked.stderr
    assert plain.stdout.splitlines()[1:3] == ["system: Be brief.", "user: In one word: it was 0 out of ten"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.csv", "--template", "{{ text }"], "the template is malformed, line 1: unexpected '}'"),
        (
            ["x.csv", "--template", "Sum: {text}"],
            "the template has {text}; a column is written {{ text }}, as in Jinja2",
        ),
        (["x.csv", "--template", "@none.j2"], "cannot read 'none.j2': no such file or folder"),
        (["x.csv", "--template", "x", "--where", "stars ="], "the condition is malformed, line 1: "),
        (["x.csv", "--template", "x", "--id-column", "key"], "x.csv has no usable line; line 2: has no column 'key'"),
        (["x.csv", "--template", "x", "--format", "parquet"], "x.csv is damaged or not a Parquet file: "),
        (["x.csv"], "x.csv has no usable line; line 2: has no prompt (nor messages); a line looks like "),
        (["x.csv", "--template", "{{ text }}", "--limit", "0"], "Invalid value for '--limit': "),
    ],
)
def test_what_is_wrong_is_one_line(shell: Shell, arguments: list[str], message: str) -> None:
    shell.write("x.csv", CSV)
    done = shell("submit", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_missing_package_is_one_line(shell: Shell) -> None:
    shell.write("x.parquet", b"PAR1")
    shell.write("x.jsonl.zst", b"\x28\xb5\x2f\xfd")
    for name, package in (("x.parquet", "pyarrow"), ("x.jsonl.zst", "zstandard")):
        without = f"import sys; sys.modules[{package!r}] = None; from draftmill.producer.cli.main import main; main()"
        command = [sys.executable, "-c", without, "submit", name]
        done = subprocess.run(command, cwd=shell.folder, env=shell.environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == f"Error: this file needs the package {package}: pip install 'draftmill[data]'\n"


def test_what_is_kept_comes_back(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    with forked_worker(Settings(redis_server.url, str(redis_server.folder / "spool"))):
        options = ("--template", TEMPLATE, "--keep", "stars", "--where", "stars | int == 3", "--max-tokens", "2")
        batch = shell("submit", shell.write("x.csv", CSV), *options, "--pair", PAIR).stdout.strip()
        shell("collect", batch, "-o", "out.jsonl", "--follow")
    assert [orjson.loads(line)["keep"] for line in shell.lines("out.jsonl")] == [{"stars": "3"}] * 8
