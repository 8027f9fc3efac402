"""The servers by HTTPS, with certificates that openssl made; and certificates that they refuse."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI

from draftmill.producer.queue.errors import UserError
from draftmill.producer.web import tls
from tests.producer.conftest import ROOT, Shell
from tests.producer.web.serving import Server
from tests.producer.web.test_dashboard import Dashboard
from tests.redis_server import RedisServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
KEY = "key-of-ann"


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """`redis.pem` and `redis-key.pem` for 127.0.0.1, by the CA `ca.pem`; a key with a password, `locked.pem`."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name:
        for command in (
            [str(ROOT / "deploy/redis/certificates.sh"), "127.0.0.1"],
            ["openssl", "pkey", "-in", "redis-key.pem", "-aes256", "-passout", "pass:word", "-out", "locked.pem"],
            ["openssl", "genpkey", "-algorithm", "RSA", "-out", "other-key.pem"],
        ):
            subprocess.run(command, cwd=name, check=True, capture_output=True)
        yield Path(name)


def options(folder: Path) -> tuple[str, ...]:
    return "--tls-cert", str(folder / "redis.pem"), "--tls-key", str(folder / "redis-key.pem")


def trust(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.pem"))


def test_openais_client_by_https(redis_server: RedisServer, shell: Shell, certificates: Path) -> None:
    server = Server(shell, redis_server.url, "--api-key-file", shell.write("keys", KEY), *options(certificates))
    server.start(verify=str(certificates / "ca.pem"))
    try:
        assert server.base.startswith("https://127.0.0.1:")
        client = OpenAI(api_key=KEY, base_url=server.base, http_client=DefaultHttpxClient(verify=trust(certificates)))
        assert "smollm2-135m" in [model.id for model in client.models.list()]
        with pytest.raises(httpx.TransportError):
            httpx.get(server.base.replace("https", "http"))
        assert server.stop() == 0
    finally:
        server.kill()


def test_the_page_by_https_gives_cookies_for_https_only(
    redis_server: RedisServer, shell: Shell, certificates: Path
) -> None:
    page = Dashboard(shell, redis_server.url, "--key-file", shell.write("keys", KEY), *options(certificates))
    with httpx.Client(verify=trust(certificates)) as client:
        signed_in = client.post(f"{page.url}/sign-in", data={"key": KEY}, headers={"Origin": page.url})
        assert signed_in.status_code == 303
        assert "secure" in signed_in.headers["set-cookie"].lower()
        assert client.get(page.url).status_code == 200
    assert page.stop() == 0


def test_the_exporter_by_https(redis_server: RedisServer, shell: Shell, certificates: Path) -> None:
    process = shell.start("exporter", "--port", "0", "--redis-url", redis_server.url, *options(certificates))
    try:
        assert process.stdout
        url = process.stdout.readline().removeprefix("exporter on ").strip()
        with httpx.Client(verify=trust(certificates)) as client:
            assert "draftmill_redis_up 1.0" in client.get(url).text
    finally:
        process.kill()
        process.communicate()


def test_what_cannot_be_used_is_named_in_one_line(certificates: Path, shell: Shell, redis_server: RedisServer) -> None:
    cert, key = certificates / "redis.pem", certificates / "redis-key.pem"
    wrong = (
        (cert, None, "--tls-cert needs --tls-key"),
        (None, key, "--tls-key needs --tls-cert"),
        (cert, certificates / "none.pem", "none.pem': no such file"),
        (certificates, key, "it is a folder"),
        (cert, certificates / "other-key.pem", "is not the key of"),
        (cert, certificates / "locked.pem", "has a password"),
        (key, cert, "no certificate and private key"),
    )
    for cert_, key_, message in wrong:
        with pytest.raises(UserError, match=message):
            tls.read(cert_, key_)
    for command in ("serve", "dashboard", "exporter"):
        done = shell(command, "--port", "0", "--tls-cert", str(cert), "--redis-url", redis_server.url)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
