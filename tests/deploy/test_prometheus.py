"""The files for Prometheus and Grafana, under Debian's prometheus and promtool and over a live farm of two workers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from draftmill.producer.queue import batches, fleet
from tests.deploy.farm import DEPLOY, Farm, farm, wait
from tests.redis_server import fresh_server
from tests.worker.run_worker import PAIR

TESTS = Path(__file__).parent
MONITORING = DEPLOY / "monitoring"
COMPOSE = DEPLOY / "docker" / "compose.yaml"
LEASE = 5.0

with_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="no prometheus and promtool on PATH: apt-get install prometheus",
)


def boards() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (MONITORING / "grafana" / "dashboards").glob("*.json")}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"]
    return group["rules"]


@with_prometheus
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", str(MONITORING / "prometheus.yml")),
        ("test", "rules", str(TESTS / "rules_test.yml"), str(TESTS / "long_rules_test.yml")),
    ],
)
def test_promtool_passes(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_unit_test_and_its_place_in_the_guide() -> None:
    tested = (TESTS / "rules_test.yml").read_text() + (TESTS / "long_rules_test.yml").read_text()
    guide = re.findall(r"^#+ (\w+)$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    for alert in alerts():
        assert f"alertname: {alert['alert']}\n" in tested
        assert alert["alert"] in guide
        assert alert["annotations"]["runbook"].startswith(f"deploy/README.md#{alert['alert'].lower()}: ")


def test_compose_mounts_what_is_there() -> None:
    """Docker is not at hand in the tests: the file is read, not run."""
    compose = yaml.safe_load(COMPOSE.read_text())
    services = compose["services"]
    assert set(services) == {"redis", "exporter", "prometheus", "grafana"}
    for service in services.values():
        for source, target, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            assert target.startswith("/")
            assert source in compose["volumes"] or (COMPOSE.parent / source).exists() or source == "./users.acl"
    copied = re.findall(r"^COPY (.+) \S+$", services["exporter"]["build"]["dockerfile_inline"], re.MULTILINE)
    assert all((DEPLOY.parent / name).exists() for line in copied for name in line.split())
    assert "-r deploy/lock/serve.txt" in services["exporter"]["build"]["dockerfile_inline"]
    assert "exporter:9480" in (MONITORING / "prometheus.yml").read_text()


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "draftmill.yml").read_text())["providers"]
    mounted = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]["volumes"]
    assert f"../monitoring/grafana/dashboards:{provider['options']['path']}:ro" in mounted
    assert set(boards()) == {"fleet.json", "mac.json", "pair.json"}
    for board in boards().values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        assert all(panel["datasource"]["uid"] == source["uid"] for panel in board["panels"])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Two workers, which the tests share in this order: at rest, at work, one killed. Each does with a new farm."""
    with fresh_server() as server, farm(server, tmp_path_factory.mktemp("farm")) as made:
        made.start_exporter()
        made.start_prometheus()
        for host in ("mini-1", "mini-2"):
            made.start_worker(host, LEASE)
        wait(lambda: len(made.query('up{job="draftmill"} == 1')) == 2, "two workers to be scraped")
        yield made


@with_prometheus
def test_counters_are_the_sums_over_result_lines(live: Farm) -> None:
    live.submit(60, 30, "good")
    wait(lambda: live.complete("good"), "the batch to end")
    sums = usage_of(live, "good")
    assert sums["accepted"] > 0
    assert {kind: live.counter("result_tokens", kind=kind) for kind in sums} == sums
    assert live.counter("generated_tokens") == sums["completion"]
    assert live.counter("prompt_tokens") == sums["prompt"]
    assert live.counter("spec_draft_tokens") == sums["drafted"]
    assert live.counter("spec_accepted_tokens") == live.counter("spec_accepted_tokens_per_position") == sums["accepted"]
    assert live.counter("jobs") == live.counter("jobs", outcome="done") == 60
    query = 'sum(draftmill_result_tokens_total{kind="completion"})'
    wait(lambda: live.value(query) == sums["completion"], "Prometheus to have looked again")

    # What fails is counted by its reason; its tokens were generated and are in no result.
    live.submit(20, 100_000, "late", max_seconds=0.2)
    live.submit(5, 10, "refused", prompt="word " * 2000)
    wait(lambda: live.complete("late") and live.complete("refused"), "the batches to end")
    assert {kind: live.counter("result_tokens", kind=kind) for kind in sums} == sums
    assert live.counter("generated_tokens") > sums["completion"]
    assert live.counter("jobs", outcome="failed") == live.counter("failures") == 25
    assert live.counter("failures", reason="deadline_exceeded") == 20
    assert live.counter("failures", reason="invalid_request") == 5


@with_prometheus
def test_every_query_of_every_dashboard_has_data(live: Farm) -> None:
    live.submit(6000, 200, "more")
    values = {"$host": "mini-1", "$pair": PAIR, "$__rate_interval": "10s"}
    queries = set()
    for board in boards().values():
        for panel in board["panels"]:
            for query in (target["expr"] for target in panel["targets"]):
                for name, value in values.items():
                    query = query.replace(name, value)
                queries.add(query)
        for variable in board["templating"]["list"]:
            assert live.query(f"draftmill_worker_info{{{variable['name']}!=''}}")
    assert len(queries) > 50

    def silent() -> list[str]:
        return [query for query in queries if not live.query(query)]

    with suppress(AssertionError):
        wait(lambda: not silent(), "data")
    assert silent() == []
    records = [rule["record"] for rule in recording_rules()]
    assert [record for record in records if not live.query(record)] == []
    assert 2 < live.value("fleet:draftmill_tokens_per_round:ratio_rate5m") < 4
    wait(lambda: live.value("draftmill_queue_depth") > 1000, "the exporter to have looked since")


@with_prometheus
def test_a_killed_worker_is_told_of_within_two_lease_times(live: Farm) -> None:
    def alarmed() -> list[str]:
        alerts = live.ask("alerts")["alerts"]
        return [alert["labels"]["host"] for alert in alerts if alert["labels"]["alertname"] == "WorkerGone"]

    assert alarmed() == []
    live.workers["mini-2"].kill()
    killed = time.monotonic()

    def told() -> bool:
        down = [series["metric"]["host"] for series in live.query('up{job="draftmill"} == 0')]
        gone = [report.host for report in fleet.reports(live.redis) if report.gone]
        counted = live.value('draftmill_workers{state="gone"}')
        return alarmed() == down == gone == ["mini-2"] and counted == 1

    wait(told, "the alert", seconds=20)
    assert time.monotonic() - killed < 2 * LEASE
    live.start_worker("mini-2", LEASE)
    wait(lambda: not alarmed(), "the alert to end: the Mac has another worker")


def recording_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules" / "recording.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def usage_of(live: Farm, batch: str) -> dict[str, float]:
    """The sums of what the result lines of a batch say of tokens."""
    sums: Counter[str] = Counter()
    for result in batches.results(live.redis, batch):
        usage = orjson.loads(result.line)["response"]["body"]["usage"]
        drafts = usage["completion_tokens_details"]
        sums["prompt"] += usage["prompt_tokens"]
        sums["completion"] += usage["completion_tokens"]
        sums["accepted"] += drafts["accepted_prediction_tokens"]
        sums["drafted"] += drafts["accepted_prediction_tokens"] + drafts["rejected_prediction_tokens"]
    return dict(sums)
