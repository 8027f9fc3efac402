"""A farm under the real Prometheus: Redis, workers of set speed, the exporter, and the files of `deploy/`."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from draftmill.producer.queue import batches, fleet, wire
from tests.producer.conftest import ROOT
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR, Settings

DEPLOY = ROOT / "deploy"


class Farm:
    """Processes that end with it; each of them is started by its own method."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.redis = server.connect()
        self._stack = ExitStack()
        self._prometheus = ""
        self.exporter = ""
        self.workers: dict[str, subprocess.Popen[str]] = {}

    def start(self, *command: str) -> subprocess.Popen[str]:
        log = self._stack.enter_context((self.folder / f"{Path(command[0]).name}.log").open("a"))
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        self._stack.callback(_end, process)
        return process

    def start_worker(self, host: str, lease: float) -> None:
        """A worker that drafts, draws 30 W and has metrics, on a machine of this name."""
        settings = Settings(
            self.server.url, str(self.folder / host), 8, 0.005, lease, depth=4, host=host, watts=30, metrics=True
        )
        worker = self.workers[host] = self.start(*settings.command())
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"

    def start_exporter(self) -> None:
        program = (sys.executable, "-m", "draftmill", "exporter", "--port", "0", "--redis-url", self.server.url)
        exporter = self.start(*program)
        assert exporter.stdout
        found = re.search(r"http://(\S+)/metrics", exporter.stdout.readline())
        assert found
        self.exporter = found[1]

    def start_prometheus(self) -> None:
        """The configuration of `deploy/`, but for the exporter's address and quicker: it looks every second."""
        shutil.copytree(DEPLOY / "monitoring" / "rules", self.folder / "rules")
        text = (DEPLOY / "monitoring" / "prometheus.yml").read_text()
        assert text.count("exporter:9480") == 2
        text = re.sub(r"(interval): \d+s", r"\1: 1s", text.replace("exporter:9480", self.exporter))
        (self.folder / "prometheus.yml").write_text(text)
        for rules in (self.folder / "rules").iterdir():  # windows of minutes are of seconds here
            rules.write_text(re.sub(r"\[5m\]", "[10s]", rules.read_text()))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._prometheus = f"127.0.0.1:{probe.getsockname()[1]}"
        self.start(
            "prometheus",
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address={self._prometheus}",
        )
        wait(lambda: self.ask("query", query="1"), "Prometheus to answer")

    def ask(self, what: str, **parameters: str) -> Any:
        """What Prometheus's HTTP interface says, or None while it does not answer."""
        try:
            with urlopen(f"http://{self._prometheus}/api/v1/{what}?{urlencode(parameters)}", timeout=5) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def query(self, query: str) -> list[dict[str, Any]]:
        return self.ask("query", query=query)["result"]

    def counter(self, name: str, **labels: str) -> float:
        """A counter's value now, summed over all workers and over all labels that are not given."""
        total = 0.0
        for target in fleet.reports(self.redis):
            with urlopen(f"http://{target.text('metrics')}/metrics") as page:
                families = text_string_to_metric_families(page.read().decode())
            samples = (sample for family in families for sample in family.samples)
            total += sum(
                sample.value
                for sample in samples
                if sample.name == f"draftmill_{name}_total" and labels.items() <= sample.labels.items()
            )
        return total

    def value(self, query: str) -> float:
        """The value of a query that has one."""
        (found,) = self.query(query)
        return float(found["value"][1])

    def submit(self, count: int, tokens: int, batch: str, prompt: str = "say it again", **sampling: Any) -> None:
        info = batches.BatchInfo(batch, PAIR, "normal", count, "test.jsonl", "")
        bodies = [
            wire.JobBody(
                batch=batch,
                custom_id=f"r-{n}",
                pair=PAIR,
                prompts=(prompt,),
                sampling=wire.Sampling(max_tokens=tokens + n % 7, **sampling),
                line=n + 1,
            )
            for n in range(count)
        ]
        batches.create(self.redis, info)
        batches.submit_chunk(self.redis, info, bodies)

    def complete(self, batch: str) -> bool:
        state = batches.status(self.redis, batch)
        return state is not None and state.complete

    def close(self) -> None:
        self._stack.close()
        self.redis.close()


@contextmanager
def farm(server: RedisServer, folder: Path) -> Iterator[Farm]:
    made = Farm(server, folder)
    try:
        yield made
    finally:
        made.close()


def wait(until: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Waits until `until` returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()
