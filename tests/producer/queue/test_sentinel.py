"""Redis Sentinel, real: what it names is found, and found again after a fail-over; the rest is refused in one line."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.retry import Retry

from draftmill.producer.queue import connect
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.servers import sentinel
from draftmill.worker.spool import spool_folder
from tests.producer.conftest import ROOT, Shell
from tests.redis_server import fresh_server
from tests.sentinels import Watched, watched
from tests.worker.run_worker import PAIR, Settings

NEVER_AGAIN = Retry(NoBackoff(), 0)

PATIENT = 600.0
"""Seconds of silence that those Sentinels bear which are to do nothing."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, tmp_path)


@pytest.fixture(scope="module")
def still() -> Iterator[Watched]:
    with watched(PATIENT) as both:
        yield both


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def written(out: Path) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()] if out.exists() else []


def test_a_batch_outlives_its_primary(shell: Shell) -> None:
    """The worker and who collects are the same processes all along."""
    names = [f"r-{n}" for n in range(200)]
    shell.write("in.jsonl", "".join(f'{{"id": "{name}", "prompt": "a", "max_tokens": 6}}\n' for name in names))
    out = shell.folder / "out.jsonl"
    with watched() as both:
        submit = ("submit", "in.jsonl", "--pair", PAIR, "--redis-url", both.url("producer"))
        batch = shell(*submit).stdout.strip()
        collecting = shell.start("collect", batch, "-o", str(out), "--follow", "--redis-url", both.url("collector"))
        settings = Settings(both.url("worker"), str(shell.folder / "spool"), rows=2, round_seconds=0.01)
        command = settings.command()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as worker:
            try:
                wait_until(lambda: len(written(out)) > 40)
                both.fail_over()
                assert len(written(out)) < 200  # it was under load
                again = shell(*submit)
                assert again.stdout.strip() == batch, again.stderr
                said = collecting.communicate(timeout=60)[1]
                assert collecting.returncode == 0, said
                assert worker.poll() is None
            finally:
                collecting.kill()
                worker.kill()
                collecting.wait()
                logged = worker.communicate()[1]
    assert sorted(written(out)) == sorted(names), logged
    assert not any("pass-" in text for text in (said, again.stderr, logged))


def test_answers_of_a_replica_let_the_client_look_again(still: Watched) -> None:
    """Its connection ends, and no new one is opened to a server that is a replica, whatever Sentinels say of it."""
    client = connect.without_retries(connect.connect(still.url("admin")))
    client.set("x", "1")
    with still.admin(still.ports[0]) as admin:
        admin.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(redis_py.ConnectionError):
                client.set("x", "2")
            with pytest.raises(redis_py.ConnectionError, match="it is a replica"):
                client.get("x")
        finally:
            admin.replicaof("NO", "ONE")
    assert client.get("x") == b"1"


def test_a_call_that_waits_and_scripts_end_like_any_other_command(still: Watched) -> None:
    client = connect.without_retries(connect.connect(still.url("admin")))
    write = "return redis.call('SET', 'x', ARGV[1])"
    client.eval(write, 0, "1")
    with still.admin(still.ports[0]) as admin:
        admin.config_set("min-replicas-to-write", "2")
        with pytest.raises(redis_py.ConnectionError):
            client.eval(write, 0, "2")
        admin.config_set("min-replicas-to-write", "0")
        client.eval(write, 0, "3")
        with ThreadPoolExecutor() as threads:
            waits = threads.submit(client.blpop, ["nothing"], 60)
            wait_until(lambda: admin.info("clients")["blocked_clients"] == 1)
            with client.pipeline(transaction=False) as pipe:
                pipe.ping()
                pipe.execute()
                admin.replicaof("127.0.0.1", "1")
                try:
                    with pytest.raises(redis_py.ConnectionError):
                        pipe.eval(write, 0, "4").eval(write, 0, "5").execute(raise_on_error=False)
                    with pytest.raises(redis_py.ConnectionError):
                        waits.result(10)
                finally:
                    admin.replicaof("NO", "ONE")
    assert client.get("x") == b"3"


def test_results_of_one_farm_wait_in_one_folder_whichever_server_is_its_primary(still: Watched, tmp_path: Path) -> None:
    one = spool_folder(tmp_path, connect.connect(still.url("worker")))
    hosts = [f"127.0.0.1:{port}" for port in still.ports[2:]]
    turned = still.url("worker").replace(",".join(hosts), ",".join(reversed(hosts)))
    assert spool_folder(tmp_path, connect.connect(turned)) == one
    other = sentinel.client(f"redis+sentinel://{','.join(hosts)}/other", NEVER_AGAIN, 1)
    assert spool_folder(tmp_path, other) != one


REFUSED = (
    "a Sentinel refuses the user name or password; give them as ?sentinel_username=NAME&sentinel_password=PASSWORD"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pass-finder", "wr0ng"), REFUSED),
        (("?sentinel_username=finder&sentinel_password=pass-finder", ""), REFUSED),
        (("/mill", "/none"), "its Sentinels name no primary 'none' that is up; check"),
        (("pass-producer", "wr0ng"), "refuses the user name or password; give them as redis://USER"),
    ],
)
def test_what_is_not_found_is_said_in_one_line(
    still: Watched, shell: Shell, change: tuple[str, str], message: str
) -> None:
    done = shell("status", "--redis-url", still.url("producer").replace(*change))
    assert done.returncode == 3
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "pass-" not in done.stderr
    assert "wr0ng" not in done.stderr


def test_sentinels_that_are_away(shell: Shell) -> None:
    done = shell("status", "--redis-url", "redis+sentinel://:s3cr3t@127.0.0.1:1,[::1]:1/mill/0")
    assert done.returncode == 3
    assert done.stderr == (
        "Error: cannot reach Redis at redis+sentinel://:***@127.0.0.1:1,[::1]:1/mill/0: none of its Sentinels answers; "
        "check that it runs, then run the same command again\n"
    )


def test_one_that_answers_is_enough(still: Watched) -> None:
    url = still.url("admin").replace("127.0.0.1", "127.0.0.1:1,127.0.0.1", 1)
    assert connect.connect(url).ping()


def test_a_url_says_all_that_a_client_needs() -> None:
    place = sentinel.place(
        "rediss+sentinel://a%40b:p%2Fw@h1:1,[::1]:2,h3/the.mill/4"
        "?sentinel_username=s&sentinel_password=x%26y&ssl_ca_certs=/ca.pem&socket_timeout=3"
    )
    assert place.sentinels == (("h1", 1), ("::1", 2), ("h3", 26379))
    assert place.service == "the.mill"
    assert place.settings == {
        **{"username": "a@b", "password": "p/w", "db": 4},
        **{"ssl_ca_certs": "/ca.pem", "socket_timeout": 3.0},
    }
    assert place.to_sentinels == {"username": "s", "password": "x&y", "ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert connect.user_of("redis+sentinel://ann:pw@h/mill") == "ann"
    secure = sentinel.client("rediss+sentinel://h/mill", NEVER_AGAIN, 1)
    assert issubclass(secure.connection_pool.connection_class, SSLConnection)


def test_a_cluster_is_refused_by_name() -> None:
    with (
        fresh_server("--cluster-enabled", "yes") as server,
        pytest.raises(UserError, match="is a cluster, and") as told,
    ):
        connect.connect(server.url)
    assert told.value.exit_code == 3
    assert "a primary with replicas and Sentinels" in told.value.message


def test_a_redis_whose_managers_keep_config_to_themselves(shell: Shell) -> None:
    """What INFO says is checked, and nothing needs CONFIG."""
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    with fresh_server("--rename-command", "CONFIG", "") as server:
        assert shell("submit", "in.jsonl", "--pair", PAIR, "--redis-url", server.url).returncode == 0
    options = ("--rename-command", "CONFIG", "", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with fresh_server(*options) as server, pytest.raises(UserError, match="set that where it is managed"):
        connect.connect(server.url)
