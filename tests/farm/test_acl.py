"""The users that `draftmill redis acl` makes: each does its whole job against a real server, and nothing else."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest
import redis as redis_py
from click.testing import CliRunner
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from draftmill.producer.cli.main import main
from draftmill.producer.client.fleet_feeder import FleetFeeder
from draftmill.producer.queue import acl, batches, wire
from draftmill.producer.queue.leases import JobQueue, Outcome
from draftmill.producer.queue.rest import duty, stored
from draftmill.producer.web.dashboard.app import STATIC
from draftmill.producer.web.dashboard.failures import Asked, FailuresPage
from draftmill.producer.web.dashboard.view import Observer
from draftmill.worker.host import host_name
from tests.producer.conftest import ROOT, Shell
from tests.producer.queue.helpers import expire
from tests.producer.web.serving import wait_until
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

PASSWORDS = {name: f"pass-{name}" for name in ("admin", *acl.ROLES)}


class Fleet:
    """A server with the users, and URLs for them."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    def url(self, role: str) -> str:
        return f"unix://{role}:{PASSWORDS[role]}@{quote(str(self.server.socket))}"

    def connect(self, role: str) -> redis_py.Redis:
        return redis_py.Redis.from_url(self.url(role))


@pytest.fixture(scope="module", params=[(7, 2), (6, 2)], ids=["selectors", "flat"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        file = Path(folder, "users.acl")
        file.write_text("\n".join(acl.users(PASSWORDS, request.param)) + "\n")
        server = RedisServer(Path(folder), "--aclfile", str(file))
        server.start()
        yield Fleet(server)
        server.kill()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, tmp_path)


@pytest.fixture
def worker(fleet: Fleet, shell: Shell) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a worker when called; it ends with the test."""
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            settings = Settings(fleet.url("worker"), str(shell.folder / "spool"), round_seconds=0.001)
            process = subprocess.Popen(
                settings.command(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def test_each_role_does_its_whole_job(fleet: Fleet, shell: Shell, worker: Callable[[], subprocess.Popen[str]]) -> None:
    lines = [orjson.dumps({"id": f"r-{n}", "prompt": f"say {n}", "max_tokens": 5}) for n in range(40)]
    shell.write("in.jsonl", b"\n".join(lines))
    for_two = [line.replace(b"{", b'{"model": "other", ', 1) for line in lines[:10]] + lines[10:20]
    shell.write("other.jsonl", b"\n".join(for_two))
    as_producer = ("--redis-url", fleet.url("producer"))
    done = shell("submit", "in.jsonl", "--pair", PAIR, *as_producer)
    assert done.returncode == 0, done.stderr
    batch = done.stdout.strip()
    low = ("--models", "other", "--priority", "low")
    unwanted = shell("submit", "other.jsonl", "--pair", PAIR, *low, *as_producer).stdout.strip()
    assert f"{PAIR}: 0 running, 10 queued" in shell("status", unwanted, *as_producer).stdout
    assert shell("cancel", unwanted, *as_producer).stdout.startswith("Cancelled")
    working = worker()
    collected = shell("collect", batch, "-o", "out.jsonl", "--follow", "--redis-url", fleet.url("collector"))
    assert collected.returncode == 0, collected.stderr
    assert len(shell.lines("out.jsonl")) == 40
    ended = shell("status", unwanted, "--watch", "--redis-url", fleet.url("metrics"))
    assert "20 cancelled" in ended.stdout, ended.stderr
    assert "1 live" in ended.stdout
    working.terminate()
    _, logged = working.communicate(timeout=20)
    assert working.returncode == 0
    assert "Redis:" not in logged
    listed = shell("status", "--redis-url", fleet.url("metrics"))
    assert "collected" in listed.stdout, listed.stderr
    assert shell("forget", batch, "--redis-url", fleet.url("collector")).returncode == 0
    denied = shell("limit", "*", "5", *as_producer)
    assert denied.returncode == 3
    assert "denies a command to this user" in denied.stderr
    assert len(denied.stderr.splitlines()) == 1


def test_a_feeder_does_its_whole_job(fleet: Fleet) -> None:
    info = batches.BatchInfo("b", PAIR, "normal", 2)
    bodies = [wire.JobBody(batch="b", custom_id=f"r-{n}", pair=PAIR, prompts=("x",), line=n) for n in range(2)]
    with fleet.connect("producer") as producer, fleet.connect("feeder") as client, fleet.connect("admin") as admin:
        batches.create(producer, info)
        assert [stored.keep(producer, "b", n, [bodies[n]], 10**6, True).became for n in range(2)] == ["kept", "kept"]
        assert duty.unfed(producer, "b").startswith("2 lines wait")
        feeder = FleetFeeder(client)
        feeder.look()
        assert duty.unfed(producer, "b") == ""
        assert batches.submit_chunk(client, info, bodies).queued == 2
        assert stored.keep(producer, "b", 0, bodies, 10**6, True) == ("known", 2)
        duty.leave(client, feeder.feeder)
        batches.cancel(admin, "b")
    with fleet.connect("collector") as collector:
        assert batches.forget(collector, "b")


def test_two_people_with_one_file_have_two_batches(fleet: Fleet, shell: Shell) -> None:
    shell.write("in.jsonl", '{"id": "a", "prompt": "say it", "max_tokens": 5}\n')
    urls = [fleet.url("producer"), fleet.url("server"), fleet.url("producer")]
    one, other, again = (shell("submit", "in.jsonl", "--pair", PAIR, "--redis-url", url).stdout for url in urls)
    assert one == again != other
    shell("cancel", other.strip(), "--redis-url", fleet.url("server"))
    with fleet.connect("admin") as admin:
        first = batches.status(admin, one.strip())
        assert first
        assert (first.user, first.is_cancelled, first.queued) == ("producer", False, 1)
        batches.cancel(admin, one.strip())
        batches.cancel(admin, other.strip())


def test_a_worker_repairs_what_others_left(fleet: Fleet) -> None:
    """Every way that a job can take: retried, sick, alone, deleted by RQ's tools, marked as cancelled."""
    info = batches.BatchInfo("b", PAIR, "normal", 8)
    bodies = [wire.JobBody(batch="b", custom_id=f"r-{n}", pair=PAIR, prompts=("x",), line=n) for n in range(8)]
    with fleet.connect("admin") as admin, fleet.connect("producer") as producer, fleet.connect("worker") as client:
        batches.create(producer, info)
        assert batches.submit_chunk(producer, info, bodies).new == 8
        w = JobQueue(client, "w", PAIR, 60)
        for _ in range(wire.MAX_LEASES):
            (job,) = w.claim(1)
            w.blame([job])
            w.renew([job])
            admin.hset("draftmill:alive", "60000", 0)
            expire(admin, job)
            w.reap()
            if admin.llen(wire.alone_key(PAIR)):
                admin.rename(f"rq:queue:{wire.queue_name(PAIR, 'b')}", "kept")
        admin.rename("kept", f"rq:queue:{wire.queue_name(PAIR, 'b')}")
        tried, *others = w.claim(3)
        w.blame([], others)
        assert w.commit([Outcome(tried, "retry", b"", reason="x"), Outcome(others[0], "done", b"{}")]) == [True, True]
        assert w.release(others) == 1
        admin.zadd(wire.LATER, {tried.id: 1})
        admin.delete(f"rq:queue:{wire.queue_name(PAIR, 'b')}")
        admin.delete(f"rq:job:{wire.job_id('b', 'r-7')}")
        w.reap()
        producer.hset(wire.batch_key("b"), "cancelled_at", "0")
        w.reap()
        found = batches.status(producer, "b")
        assert found
        assert (found.failed, found.done, found.cancelled, found.complete) == (1, 1, 6, True)
    with fleet.connect("collector") as collector:
        results = batches.read(collector, "b", "0-0", 100)
        batches.acknowledge(collector, "b", results)
        assert len(results) == 8
        assert batches.hold(collector, "b", "t here", 9) is None
        assert batches.forget(collector, "b")


def test_an_operator_does_its_whole_job(fleet: Fleet, worker: Callable[[], subprocess.Popen[str]]) -> None:
    working, host = worker(), host_name()
    for arguments in (
        f"workers --host {host} --wait 20",
        f"workers drain {host} --wait 20",
        f"workers resume {host}",
        f"workers pair {host} {PAIR}",
        f"workers pair {host} --clear",
        "workers require --wire 2",
        "workers require --any",
        "limit * 0",
        "status",
    ):
        done = CliRunner().invoke(main, arguments.split(), env={"REDIS_URL": fleet.url("operator")})
        assert (done.exit_code, done.stderr) == (0, "")
    working.terminate()
    _, logged = working.communicate(timeout=20)
    assert "Redis:" not in logged


def test_a_scheduler_does_its_whole_job(fleet: Fleet, shell: Shell, worker: Callable[[], object]) -> None:
    shell.write("in.jsonl", '{"id": "a", "prompt": "say it", "max_tokens": 5}\n')
    shell.environment["REDIS_URL"] = fleet.url("scheduler")
    out = ("-o", "out/%Y%m%dT%H%M%S.jsonl")
    added = shell("cron", "add", "tick", "--every", "1s", *out, "submit", "in.jsonl", "--pair", PAIR)
    assert added.returncode == 0, added.stderr
    worker()
    with shell.start("cron", "run") as scheduler:
        try:
            deadline = time.monotonic() + 60
            while "1 result in out/20" not in shell("cron", "list").stdout:
                assert time.monotonic() < deadline
            assert shell("cron", "remove", "tick").returncode == 0
            scheduler.terminate()
            _, said = scheduler.communicate(timeout=20)
            assert "denies" not in said
        finally:
            scheduler.kill()


def test_a_producer_lets_failures_run_again_and_a_collector_takes_them_back(
    fleet: Fleet, shell: Shell, worker: Callable[[], object]
) -> None:
    needed = shell.folder / "needed"
    lines = [
        {"id": "a", "prompt": "say it", "max_tokens": 5},
        {"id": "b", "prompt": f"needs:{needed}", "max_tokens": 5},
    ]
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    submit = ("submit", "in.jsonl", "--pair", PAIR, "--redis-url", fleet.url("producer"))
    as_collector = ("--redis-url", fleet.url("collector"))
    batch = shell(*submit).stdout.strip()
    worker()
    assert shell("collect", batch, "-o", "out.jsonl", "--follow", *as_collector).returncode == 4
    for role in ("producer", "collector"):
        assert "1 of 2 lines failed" in shell("failures", batch, "--redis-url", fleet.url(role)).stdout
    needed.touch()
    again = shell(*submit, "--retry-failed")
    assert again.stderr == "Note: 1 failed line queued again\n"
    last = shell("collect", batch, "-o", "out.jsonl", "--follow", *as_collector)
    assert last.stdout == "2 results in out.jsonl\n", last.stderr
    assert not (shell.folder / "out.jsonl.errors.jsonl").exists()
    assert shell("forget", batch, *as_collector).returncode == 0


def test_a_dashboard_does_its_whole_job(fleet: Fleet, shell: Shell) -> None:
    lines = [
        {"id": "a", "prompt": "x " * 1200, "max_tokens": 5},
        {"id": "b", "prompt": "say it", "max_tokens": 100_000},
    ]
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    batch = shell("submit", "in.jsonl", "--pair", PAIR, "--redis-url", fleet.url("producer")).stdout.strip()
    settings = Settings(fleet.url("worker"), str(shell.folder / "spool"), round_seconds=0.001)
    worker = subprocess.Popen(settings.command(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with fleet.connect("dashboard") as client:
            observer = Observer(client)
            wait_until(lambda: [found["state"] for found in observer.look().parts["workers"]] == ["working"])
            wait_until(lambda: [found["custom_id"] for found in observer.look().parts["failures"]] == ["a"])
            assert "line 1 · a · set-speed" in (FailuresPage(client, STATIC).write(Asked(batch)) or "")
            batches.cancel(client, batch)
            wait_until(lambda: observer.look().parts["batches"][0]["cancelled"] == 1)
    finally:
        worker.kill()
        worker.wait()
    assert shell("forget", batch, "--redis-url", fleet.url("collector")).returncode == 0


SUBMIT = {"producer", "feeder", "server", "scheduler"}

TRIALS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "read a prompt": ({"worker"}, ("HGET", "rq:job:b-1", "data")),
    "read what was left to a feeder": ({"feeder", "server", "scheduler"}, ("HGET", "draftmill:rest:b", "0 1")),
    "read results": ({"collector", "server", "scheduler"}, ("XRANGE", "draftmill:results:b", "-", "+")),
    "write a result": ({"worker"}, ("XADD", "draftmill:results:b", "*", "line", "x")),
    "mark a line as ended": ({*SUBMIT, "worker"}, ("SETBIT", "draftmill:ended:b", "1", "1")),
    "end a line": ({"worker"}, ("HDEL", "draftmill:open:b", "b-1")),
    "overwrite a queued prompt": ({*SUBMIT, "worker"}, ("HSET", "rq:job:b-1", "data", "x")),
    "put a job at the end of a queue": (
        {*SUBMIT, "worker"},
        ("RPUSH", "rq:queue:draftmill.2.p:b", "b-1"),
    ),
    "take a job from a queue": ({"worker"}, ("LPOP", "rq:queue:draftmill.2.p:b")),
    "use another application's queue": (set(), ("RPUSH", "rq:queue:default", "x")),
    "cancel a batch": (
        {*SUBMIT, "worker"},
        ("HSET", "draftmill:batch:b", "cancelled_at", "0"),
    ),
    "drop results": ({"collector", "server", "scheduler"}, ("UNLINK", "draftmill:results:b")),
    "add a schedule": ({"scheduler"}, ("HSET", "draftmill:cron", "x", "{}")),
    "take a slot": ({"scheduler"}, ("ZADD", "draftmill:cron:open", "1", "x@1")),
    "cancel a batch, and no more": (
        {*SUBMIT, "worker", "collector", "dashboard"},
        ("HSETNX", "draftmill:batch:b", "cancelled_at", "0"),
    ),
    "read the latest failures": ({"dashboard"}, ("XREVRANGE", "draftmill:failed", "+", "-")),
    "read which lines failed, and why": (
        {*SUBMIT, "worker", "collector", "dashboard"},
        ("HSCAN", "draftmill:failures:b", "0"),
    ),
    "drain the fleet": ({"operator"}, ("HSET", "draftmill:fleet", "drain *", "0")),
    "raise a limit": ({"operator"}, ("HSET", "draftmill:limits", "*", "1000")),
    "read another application's data": (set(), ("GET", "session:1")),
    "write another application's data": (set(), ("SET", "session:1", "x")),
    "list keys": (set(), ("KEYS", "*")),
    "scan keys": (set(), ("SCAN", "0")),
    "drop everything": (set(), ("FLUSHALL",)),
    "change the configuration": (set(), ("CONFIG", "SET", "dir", "/tmp")),
    "load a module": (set(), ("MODULE", "LIST")),
    "make users": (set(), ("ACL", "LIST")),
    "watch commands": (set(), ("MONITOR",)),
    "become a replica": (set(), ("REPLICAOF", "NO", "ONE")),
    "stop the server": (set(), ("SHUTDOWN", "NOSAVE")),
    "disconnect others": (set(), ("CLIENT", "KILL", "TYPE", "normal")),
}
"""What one could want: who may, and a command that does it."""


@pytest.mark.parametrize("fleet", [(7, 2)], ids=["selectors"], indirect=True)
@pytest.mark.parametrize("role", acl.ROLES)
def test_everything_else_is_refused(fleet: Fleet, role: str) -> None:
    with fleet.connect("admin") as admin:
        admin.hset("rq:job:b-1", "data", "a prompt")
    allowed: set[str] = set()
    with fleet.connect(role) as client:
        for trial, (_, command) in TRIALS.items():
            try:
                client.execute_command(*command)
            except NoPermissionError:
                continue
            except redis_py.ResponseError:
                pass
            allowed.add(trial)
        if role in {*SUBMIT, "worker", "collector"}:  # a script may do no more than its caller
            for trial in TRIALS.keys() - allowed:
                arguments = ", ".join(f"'{word}'" for word in TRIALS[trial][1])
                with pytest.raises(redis_py.ResponseError):
                    client.eval(f"return redis.call({arguments})", 0)
    with fleet.connect("admin") as admin:
        admin.delete(*(admin.keys("*") or ["none"]))
    assert allowed == {trial for trial, (roles, _) in TRIALS.items() if role in roles}


@pytest.mark.parametrize("role", acl.ROLES)
def test_without_selectors_too_nobody_manages_the_server(fleet: Fleet, role: str) -> None:
    with fleet.connect(role) as client:
        for trial in list(TRIALS)[list(TRIALS).index("raise a limit") + 1 :]:
            with pytest.raises(NoPermissionError):
                client.execute_command(*TRIALS[trial][1])


def test_nobody_without_a_password(fleet: Fleet) -> None:
    with (
        redis_py.Redis(unix_socket_path=str(fleet.server.socket), retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis_py.AuthenticationError),
    ):
        client.ping()


def test_the_command_prints_a_file_that_the_server_takes_and_passwords_that_fit(shell: Shell) -> None:
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        server.start()
        made = shell("redis", "acl", "--redis-url", server.url)
        server.kill()
        assert made.returncode == 0
        Path(folder, "users.acl").write_text(made.stdout)
        passwords = {url.split("//")[1].partition(":")[0]: url for url in made.stderr.split() if "//" in url}
        server = RedisServer(Path(folder), "--aclfile", str(Path(folder, "users.acl")))
        server.start()
        for name, url in passwords.items():
            password = url.partition(f"{name}:")[2].partition("@")[0]
            assert password not in made.stdout
            assert redis_py.Redis(unix_socket_path=str(server.socket), username=name, password=password).ping()
        server.kill()
        assert passwords.keys() == PASSWORDS.keys()


def test_a_file_made_anew_keeps_passwords_and_other_users(shell: Shell) -> None:
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        server = RedisServer(Path(folder))
        server.start()
        earlier = [*acl.users(PASSWORDS, (7, 2)), "user guest on nopass ~guest:* +get"]
        earlier = [line.replace("on ", "off ", 1) if line.startswith("user metrics") else line for line in earlier]
        file = shell.folder / "earlier.acl"
        file.write_text("user\n" + "\n ".join(line.replace("+evalsha", "") for line in earlier) + "\n")
        made = shell("redis", "acl", "--redis-url", server.url, "--keep", str(file), "--renew", "worker")
        same = shell("redis", "acl", "--redis-url", server.url, "--keep", str(file))
        file.write_text("")
        emptied = shell("redis", "acl", "--redis-url", server.url, "--keep", str(file))
        server.kill()
    assert same.stdout.splitlines() == earlier
    assert same.stderr == ""
    changed = {line.split()[1] for line in set(made.stdout.splitlines()) ^ set(earlier)}
    assert changed == {"worker"}
    assert "redis://worker:" in made.stderr
    assert len(made.stderr.splitlines()) == 1
    assert (emptied.returncode, emptied.stdout) == (2, "")
    assert "has none of draftmill's users" in emptied.stderr
