"""Lines that name LoRA adapters, through a real worker with two of them; and what workers refuse."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx_lm
import openai
import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import batches
from tests.engine.models import adapters
from tests.producer.conftest import Shell
from tests.producer.small_model import small_model
from tests.producer.web.serving import Server, create, jsonl, lines, wait
from tests.redis_server import RedisServer

TOKENS, PROMPT = 8, "The harbour at night"


@pytest.fixture(scope="module")
def model(boxed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """With two adapters beside it."""
    path = small_model(boxed_model, tmp_path_factory.mktemp("model"))
    for seed, name in enumerate(("sql", "notes")):
        loaded: Any = mlx_lm.load(path)[0]
        adapters.write(Path(path).with_name(name), loaded, seed, layers=2)
    return path


@pytest.fixture(scope="module")
def expected(model: str) -> dict[str, str]:
    """What mlx-lm says with each of the adapters, and with none."""
    texts = {}
    for name in ("", "sql", "notes"):
        path = str(Path(model).with_name(name)) if name else None
        adapted, tokenizer = mlx_lm.load(model, adapter_path=path)[:2]
        said = mlx_lm.stream_generate(adapted, tokenizer, PROMPT, max_tokens=TOKENS)
        texts[name] = tokenizer.decode([each.token for each in said])
    assert len(set(texts.values())) == 3
    return texts


@pytest.fixture(scope="module")
def redis(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    """As it is: the worker that all tests share is registered there."""
    with redis_server.connect() as client:
        yield client


@pytest.fixture(scope="module")
def fleet(redis_server: RedisServer, model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A worker of the model with both adapters, and commands that use its Redis."""
    folder = tmp_path_factory.mktemp("fleet")
    shell = Shell(folder, folder / "home")
    shell.environment["REDIS_URL"] = redis_server.url
    both = ",".join(f"{name}={Path(model).with_name(name)}" for name in ("sql", "notes"))
    worker = shell.start("worker", "--target", model, "--adapters", both, stderr=subprocess.DEVNULL)
    assert worker.stdout
    assert "LoRA adapters sql, notes, " in worker.stdout.readline()
    yield shell
    worker.kill()
    worker.communicate()


def line(id: str, **body: Any) -> dict[str, Any]:
    asked = {"prompt": PROMPT, "max_tokens": TOKENS, **body}
    return {"custom_id": id, "method": "POST", "url": "/v1/completions", "body": asked}


def test_lines_of_a_file(fleet: Shell, model: str, expected: dict[str, str]) -> None:
    asked = [
        line("none"),
        line("adapter", adapter="sql"),
        line("behind the pair", model=f"{model}:notes"),
        line("model", model="notes"),
        line("other model", model="gpt-4o-mini"),
        line("unknown", adapter="squeal"),
    ]
    submitted = fleet(
        "submit", fleet.write("in.jsonl", jsonl(*asked)), "--pair", model, "--models", f"notes={model}:notes"
    )
    done = fleet("collect", submitted.stdout.strip(), "-o", "out.jsonl", "--follow")
    assert done.returncode == 4, done.stderr
    results = map(orjson.loads, fleet.lines("out.jsonl"))
    answers = {result["custom_id"]: result["response"]["body"] for result in results}
    of = {"none": "", "adapter": "sql", "behind the pair": "notes", "model": "notes", "other model": ""}
    assert {id: answer["choices"][0]["text"] for id, answer in answers.items()} == {
        id: expected[name] for id, name in of.items()
    }
    assert {id: answer["model"] for id, answer in answers.items()} == {
        id: f"{model}:{name}" if name else model for id, name in of.items()
    }
    (failed,) = map(orjson.loads, fleet.lines("out.jsonl.errors.jsonl"))
    reason = "adapter 'squeal' is unknown to this worker: it has sql, notes; name one of them"
    assert (failed["custom_id"], failed["error"]["message"]) == ("unknown", reason)


def answers(shell: Shell, model: str) -> dict[str, tuple[str, str]]:
    """Of each result the adapter that answered, and its text."""
    results = map(orjson.loads, shell.lines("out.jsonl"))
    bodies = {result["custom_id"]: result["response"]["body"] for result in results}
    return {id: (body["model"].removeprefix(model), body["choices"][0]["text"]) for id, body in bodies.items()}


def test_run_has_adapters_that_lines_name(shell: Shell, model: str, expected: dict[str, str]) -> None:
    both = ",".join(f"{name}={Path(model).with_name(name)}" for name in ("sql", "notes"))
    asked = [line(f"{name}{n}", **({"adapter": name} if name else {})) for n in range(3) for name in expected]
    path = shell.write("in.jsonl", jsonl(*asked, line("unknown", adapter="squeal")))
    done = shell("run", path, "-o", "out.jsonl", "--pair", model, "--adapters", both)
    assert done.returncode == 4, done.stderr
    assert answers(shell, model) == {
        f"{name}{n}": (f":{name}" if name else "", text) for n in range(3) for name, text in expected.items()
    }
    (failed,) = map(orjson.loads, shell.lines("out.jsonl.errors.jsonl"))
    assert failed["custom_id"] == "unknown"


def test_run_has_an_adapter_for_all_lines_which_make_another_batch(
    shell: Shell, model: str, expected: dict[str, str]
) -> None:
    path = shell.write("in.jsonl", jsonl(line("a"), line("b")))
    command = ["run", path, "-o", "out.jsonl", "--pair", model]
    folder = Path(model).with_name("notes")
    done = shell(*command, "--adapter", str(folder))
    assert done.returncode == 0, done.stderr
    assert answers(shell, model) == dict.fromkeys("ab", (":notes", expected["notes"]))
    other = shell(*command)
    assert other.returncode == 2
    assert "--adapter was notes, is not given" in other.stderr
    refused = shell(*command, "--adapter", f"{folder}/nowhere", "--force")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"Error: {folder}/nowhere has no adapter_config.json: name a ")


def test_the_server_has_adapters_as_models(fleet: Shell, model: str, expected: dict[str, str]) -> None:
    server = Server(fleet, fleet.environment["REDIS_URL"])
    server.start()
    try:
        client = server.client()
        assert {model, "sql", f"{model}:notes"} < {each.id for each in client.models.list()}
        assert client.models.retrieve("sql").id == "sql"
        assert client.models.retrieve(model).id == model
        answer = client.completions.create(model="sql", prompt=PROMPT, max_tokens=TOKENS)
        assert (answer.model, answer.choices[0].text) == ("sql", expected["sql"])
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="squeal", prompt=PROMPT)
        models = {"a": "sql", "b": f"{model}:notes", "c": model}
        asked = jsonl(*(line(id, model=name) for id, name in models.items()))
        batch = wait(client, create(client, asked, endpoint="/v1/completions").id)
        bodies = {id: each["response"]["body"] for id, each in lines(client, batch.output_file_id).items()}
        texts = {"a": expected["sql"], "b": expected["notes"], "c": expected[""]}
        assert {id: body["choices"][0]["text"] for id, body in bodies.items()} == texts
        assert {id: body["model"] for id, body in bodies.items()} == models
    finally:
        assert server.stop() == 0


def test_workers_show_their_adapters(fleet: Shell, redis: redis_py.Redis, model: str) -> None:
    assert [report["adapters"] for report in batches.workers(redis)] == ["sql,notes"]
    assert [each["adapters"] for each in orjson.loads(fleet("workers", "--json").stdout)] == [["sql", "notes"]]
    assert f"{model} (sql, notes)" in fleet("workers").stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--adapter", "a", "--adapters", "a=b"], "--adapter is for all lines: give either --adapter or --adapters"),
        (["--adapters", "sql"], "'sql' is not NAME=PATH; a name has letters, digits, '.', '_' and '-'"),
        (["--adapters", "a:b=c"], "'a:b=c' is not NAME=PATH"),
        (["--adapters", "a=b,a=c"], "'a' is named twice"),
        (["--adapter", "nowhere"], "nowhere has no adapter_config.json: name a folder that mlx_lm.lora has written"),
    ],
)
def test_what_is_no_adapter_is_refused_before_the_models_load(
    fleet: Shell, model: str, options: list[str], reason: str
) -> None:
    refused = fleet("worker", "--target", model, *options)
    assert refused.returncode == 2
    assert reason in " ".join(refused.stderr.split())  # click folds its lines
