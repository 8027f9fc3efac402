"""A primary, its replica and three Sentinels on free ports, with the users that the documentation names."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from draftmill.producer.queue import acl
from tests.redis_server import RedisServer

NAME = "mill"
PASSWORDS = {name: f"pass-{name}" for name in ("admin", *acl.ROLES)}
REPLICATION = (
    "user replica on >pass-replica +psync +replconf +ping",
    "user sentinel on >pass-sentinel allchannels +multi +slaveof +ping +exec +subscribe +config|rewrite +role +publish"
    " +info +client|setname +client|kill +script|kill",
)
SENTINELS = (
    "user default off",
    "user peer on >pass-peer allchannels +@all",
    "user finder on >pass-finder allchannels +client|setinfo +hello +sentinel|masters",
    "sentinel sentinel-user peer",
    "sentinel sentinel-pass pass-peer",
)


class Watched:
    """Two servers, either of which may be the primary, and what watches them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = _free_ports(5)
        self.sentinels: list[subprocess.Popen[bytes]] = []
        users = folder / "users.acl"
        users.write_text("\n".join((*acl.users(PASSWORDS, (7, 2)), *REPLICATION)) + "\n")
        self.servers: dict[int, RedisServer] = {}
        for port in self.ports[:2]:
            (folder / str(port)).mkdir()
            options = ["--port", str(port), "--aclfile", str(users), "--masteruser", "replica"]
            options += ["--masterauth", "pass-replica", "--repl-diskless-sync-delay", "0"]
            self.servers[port] = RedisServer(folder / str(port), *options)

    def start(self, down_after: float) -> None:
        """Returns when a fail-over could begin; a primary that is silent for so many seconds is replaced."""
        first, second = self.servers.values()
        first.start()
        self._follow(second, self.ports[0])
        self.sentinels += [self._sentinel(port, down_after) for port in self.ports[2:]]
        self._wait(self._settled, 30)

    def _follow(self, server: RedisServer, primary: int) -> None:
        options = server.options
        server.options = (*options, "--replicaof", f"127.0.0.1 {primary}")
        server.start()
        server.options = options

    def _sentinel(self, port: int, down_after: float) -> subprocess.Popen[bytes]:
        file = self.folder / f"sentinel-{port}.conf"
        about = {
            f"sentinel monitor {NAME} 127.0.0.1": f"{self.ports[0]} 2",
            f"sentinel down-after-milliseconds {NAME}": int(1000 * down_after),
            f"sentinel failover-timeout {NAME}": 5000,
            f"sentinel auth-user {NAME}": "sentinel",
            f"sentinel auth-pass {NAME}": "pass-sentinel",
        }
        settings = (f"port {port}", "bind 127.0.0.1", *SENTINELS, *(f"{name} {value}" for name, value in about.items()))
        file.write_text("\n".join(settings) + "\n")
        program = next(iter(self.servers.values())).program
        with (self.folder / f"sentinel-{port}.log").open("wb") as log:
            return subprocess.Popen([program, str(file), "--sentinel"], stdout=log, stderr=log)

    def url(self, role: str, query: str = "?sentinel_username=finder&sentinel_password=pass-finder") -> str:
        """For a role of the fleet."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports[2:])
        return f"redis+sentinel://{role}:{PASSWORDS[role]}@{hosts}/{NAME}{query}"

    def admin(self, port: int) -> redis_py.Redis:
        """A client of one of the servers."""
        retry = Retry(NoBackoff(), 0)
        return redis_py.Redis(port=port, username="admin", password="pass-admin", socket_timeout=5, retry=retry)

    def primary(self) -> int:
        """The port of the primary, if all Sentinels agree on it; else 0."""
        named = set()
        for port in self.ports[2:]:
            peer = redis_py.Redis(port=port, username="peer", password="pass-peer", socket_timeout=5)
            with suppress(redis_py.RedisError), peer:
                named.add(peer.sentinel_get_master_addr_by_name(NAME))
        return int(named.pop()[1]) if len(named) == 1 else 0

    def fail_over(self) -> None:
        """Kills the primary, and returns when the other server is it; the first one follows that from now on."""
        before = self.primary()
        self.servers[before].kill()
        self._wait(lambda: self.primary() not in (0, before), 60)
        (after,) = self.servers.keys() - {before}
        self._follow(self.servers[before], after)
        self._wait(self._settled, 60)

    def _settled(self) -> bool:
        """Whether Sentinels know each other and both servers, and the replica has all that the primary has."""
        for port in self.ports[2:]:
            peer = redis_py.Redis(port=port, username="peer", password="pass-peer", socket_timeout=5)
            with peer:
                about: Any = peer.sentinel_master(NAME)
            if about["num-other-sentinels"] < 2 or about["num-slaves"] < 1 or about["flags"] != "master":
                return False
        with self.admin(self.primary()) as client:
            replica = client.info("replication").get("slave0", {})
        return replica.get("state") == "online"

    def _wait(self, until: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(redis_py.RedisError, OSError, KeyError):
                if until():
                    return
            time.sleep(0.1)
        logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
        raise RuntimeError(f"the Sentinels did not agree: {logs}")

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers.values():
            server.kill()


@contextmanager
def watched(down_after: float = 1.0) -> Iterator[Watched]:
    """They run, and can fail over."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        both = Watched(Path(folder))
        try:
            both.start(down_after)
            yield both
        finally:
            both.close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
