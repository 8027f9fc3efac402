"""TLS with a real certificate, end to end: submit, a worker and collect over it; and what a client refuses."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.farm.proxy import Proxy
from tests.producer.conftest import ROOT, Shell
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


class Guarded:
    """A server behind TLS: a folder with its certificates, its port, and what speaks TLS."""

    def __init__(self, folder: Path, port: int, by: str) -> None:
        self.folder, self.port, self.by = folder, port, by

    def url(self, host: str = "127.0.0.1", ca: str = "ca.pem") -> str:
        return f"rediss://{host}:{self.port}?ssl_ca_certs={self.folder / ca}"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """`valkey-server` or `redis-server` on the PATH if it has TLS; else Python's TLS in front of a server."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name:
        folder = Path(name)
        for host, below in (("127.0.0.1", "."), ("elsewhere.example", "other")):
            Path(folder, below).mkdir(exist_ok=True)
            subprocess.run(
                [ROOT / "deploy/redis/certificates.sh", host], cwd=folder / below, check=True, capture_output=True
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["--tls-port", str(port), "--tls-cert-file", "redis.pem", "--tls-key-file", "redis-key.pem"]
        options += ["--tls-ca-cert-file", "ca.pem", "--tls-auth-clients", "no"]
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program:
            server = RedisServer(folder, *options, program=program)
            try:
                server.start()
            except RuntimeError:  # built without TLS
                server.kill()
            else:
                yield Guarded(folder, port, program)
                server.kill()
                return
        server = RedisServer(folder)
        server.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "redis.pem", folder / "redis-key.pem")
        proxy = Proxy(server.socket, context)
        yield Guarded(folder, proxy.port, "Python's ssl")
        proxy.close()
        server.kill()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, tmp_path)


def test_a_batch_over_tls(guarded: Guarded, shell: Shell) -> None:
    lines = [orjson.dumps({"id": f"r-{n}", "prompt": f"say {n}", "max_tokens": 5}) for n in range(40)]
    shell.write("in.jsonl", b"\n".join(lines))
    shell.environment["REDIS_URL"] = guarded.url()
    batch = shell("submit", "in.jsonl", "--pair", PAIR).stdout.strip()
    settings = Settings(guarded.url(), str(shell.folder / "spool"), round_seconds=0.001)
    worker = subprocess.Popen(settings.command(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    collected = shell("collect", batch, "-o", "out.jsonl", "--follow")
    worker.terminate()
    _, logged = worker.communicate(timeout=20)
    assert collected.returncode == 0, (guarded.by, collected.stderr, logged)
    assert len(shell.lines("out.jsonl")) == 40


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (lambda g: g.url(ca="other/ca.pem"), "its certificate is not trusted"),
        (lambda g: f"rediss://127.0.0.1:{g.port}", "its certificate is not trusted"),
        (lambda g: g.url(host="localhost"), "its certificate is not trusted"),
        (lambda g: f"redis://127.0.0.1:{g.port}", "Redis at redis://127.0.0.1"),
    ],
    ids=["another CA", "no CA", "another name", "no TLS"],
)
def test_what_a_client_refuses(guarded: Guarded, shell: Shell, url, says: str) -> None:
    done = shell("status", "--redis-url", url(guarded))
    assert done.returncode == 3
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
