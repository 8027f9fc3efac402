"""What operators do to live workers: drain them, restart them, ask for a version or a pair; and who is gone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import orjson
import pytest
from click.testing import CliRunner, Result
from rq import Worker

from draftmill.producer.cli.main import main
from draftmill.producer.queue import fleet, wire
from draftmill.producer.queue.fleet import Orders, Shift
from draftmill.worker.duty import duty
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR
from tests.worker.test_worker import all_done, some_done

Command = Callable[..., Result]


@pytest.fixture
def draftmill(mill: Mill) -> Command:
    """Calls `draftmill workers` within this process."""

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["workers", *arguments], env={"REDIS_URL": mill.server.url, "COLUMNS": "200"})

    return call


def workers(mill: Mill) -> dict[str, fleet.Report]:
    return {report.name: report for report in fleet.reports(mill.redis)}


def by_process(mill: Mill, process: subprocess.Popen[str]) -> str:
    """The name of the worker that this process is."""
    for name in workers(mill):
        if int(mill.redis.hget(f"rq:worker:{name}", "pid") or 0) == process.pid:
            return name
    raise AssertionError(f"no worker is process {process.pid}")


def wait(until: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def joined(mill: Mill, count: int) -> Callable[[], bool]:
    return lambda: len(workers(mill)) == count


def test_two_workers_are_upgraded_one_after_the_other_while_a_batch_runs(mill: Mill, draftmill: Command) -> None:
    mill.submit(1500, tokens=8)
    processes = [mill.start(), mill.start()]
    mill.wait(some_done)
    wait(joined(mill, 2))
    for process in processes:
        name = by_process(mill, process)
        drained = draftmill("drain", name, "--wait", "60")
        assert (drained.exit_code, drained.stderr) == (0, "")
        report = workers(mill)[name]
        assert (report.state, report.reason) == ("drained", "drained by an operator")
        done = int(report.number("done"))
        running = mill.status().done
        # The other one goes on, if it has not come to the end meanwhile.
        mill.wait(lambda status, running=running: status.complete or status.done > running + 20)
        assert workers(mill)[name].number("done") == done
        assert mill.stop(process)[0] == 0
        assert draftmill("resume", name).exit_code == 0
        mill.start()
    mill.wait(all_done)
    assert len(mill.lines()) == 1500
    assert (mill.status().done, mill.status().failed) == (1500, 0)


def test_a_machine_stays_drained_when_its_worker_is_started_again(mill: Mill, draftmill: Command) -> None:
    first = mill.start()
    wait(joined(mill, 1))
    (report,) = workers(mill).values()
    assert draftmill("drain", report.host).exit_code == 0
    mill.stop(first)
    mill.submit(4)
    mill.start()
    time.sleep(0.5)
    assert mill.status().running + mill.status().done == 0
    assert "drained: " + report.host in draftmill().stdout
    assert draftmill("resume", "--all").exit_code == 0
    mill.wait(all_done)


def test_what_takes_longer_than_the_drain_time_is_handed_back(mill: Mill) -> None:
    mill.submit(4, tokens=400)  # 2 s
    process = mill.start(drain=0.3)
    mill.wait(lambda status: status.running == 4)
    fleet.drain(mill.redis, [by_process(mill, process)])
    mill.wait(lambda status: status.queued == 4, seconds=4)
    assert not fleet.running(mill.redis)
    (report,) = workers(mill).values()
    wait(lambda: fleet.reports(mill.redis)[0].state == "drained")
    assert report.number("failed") == 0
    fleet.resume(mill.redis, [by_process(mill, process)])
    mill.wait(all_done, seconds=15)


def test_a_killed_worker_is_gone_within_two_leases(mill: Mill, draftmill: Command) -> None:
    mill.submit(2000)
    victim, _ = mill.start(lease=1), mill.start(lease=1)
    wait(lambda: len(workers(mill)) == 2 and all(report.number("rounds") for report in workers(mill).values()))
    name = by_process(mill, victim)
    victim.kill()
    killed = time.monotonic()
    wait(lambda: workers(mill)[name].gone, seconds=2)
    assert time.monotonic() - killed < 2
    listed = draftmill()
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith(name)]
    assert row.split()[1] == "gone"
    assert row.endswith("no heartbeat")
    states = {row["worker"]: row["state"] for row in orjson.loads(draftmill("--json").stdout)}
    assert sorted(states.values()) == ["gone", "working"]
    mill.start(lease=1)
    wait(lambda: len(workers(mill)) == 2 and name not in workers(mill))


def test_a_worker_of_another_version_or_pair_says_so_and_takes_nothing(mill: Mill, draftmill: Command) -> None:
    assert draftmill("require", "99").exit_code == 0
    mill.submit(4)
    mill.start()
    wait(joined(mill, 1))
    (report,) = workers(mill).values()
    wait(lambda: "the fleet requires 99" in fleet.reports(mill.redis)[0].reason)
    assert draftmill("pair", report.host, "another").stdout == f"{report.host}  another  always\n"
    assert draftmill("require", "--any").exit_code == 0
    reason = f"serves {PAIR}, the schedule says another"
    wait(lambda: fleet.reports(mill.redis)[0].reason == reason)
    listed = draftmill().stdout
    assert " refusing " in listed
    assert reason in listed
    assert mill.status().running + mill.status().done == 0
    assert draftmill("pair", report.host, "--clear").stdout == f"{report.host}  any pair\n"
    mill.wait(all_done)


def test_every_version_that_a_worker_reports_can_be_required(mill: Mill, draftmill: Command) -> None:
    mill.start()
    wait(joined(mill, 1))
    (listed,) = orjson.loads(draftmill("--json").stdout)
    here = {name: str(listed[field]) for name, field in fleet.VERSIONED.items()}
    assert here["wire"] == str(wire.WIRE)
    options = ("--mlx", here["mlx"], "--rq", here["rq"], "--wire", here["wire"])
    said = ", ".join(f"{name} {version}" for name, version in here.items())
    assert draftmill("require", here["draftmill"], *options).stdout == f"required: {said}; here: {said}\n"
    assert f"required: {said}" in draftmill().stdout
    mill.submit(4)
    mill.wait(all_done)

    assert draftmill("require", "--mlx", "99", "--wire", "98").exit_code == 0
    reason = f"has mlx {here['mlx']} and wire {here['wire']}; the fleet requires 99 and 98"
    wait(lambda: fleet.reports(mill.redis)[0].reason == reason)
    assert fleet.reports(mill.redis)[0].state == "refusing"
    mill.submit(4, batch="later")
    time.sleep(0.5)
    assert mill.status("later").running + mill.status("later").done == 0
    assert draftmill("require").stdout == f"required: mlx 99, wire 98; here: {said}\n"
    assert draftmill("require", here["draftmill"]).stdout == f"required: draftmill {here['draftmill']}; here: {said}\n"
    mill.wait(all_done, batch="later")


def test_orders_that_make_no_sense_stop_nobody(mill: Mill) -> None:
    process = mill.start()
    wait(joined(mill, 1))
    mill.redis.hset(wire.FLEET, "pairs *", "qwen3-4b")
    time.sleep(1.2)
    mill.submit(4)
    mill.wait(all_done)
    assert "makes no sense: HGETALL draftmill:fleet" in mill.stop(process)[1]


def test_mistakes_are_one_line(mill: Mill, draftmill: Command) -> None:
    for arguments, said in (
        (("drain", "nobody"), "no worker and no machine is called 'nobody'"),
        (("drain",), "name workers or machines, or say --all"),
        (("resume", "nobody"), "'nobody' is not drained by that name; drained: nothing"),
        (("require", "0.2.0", "--any"), "give versions or --any"),
        (("require", "--wire", "two"), "'two' is not a valid integer"),
        (("pair", "mini", "x", "--from", "22:00"), "--from and --until belong together"),
        (("pair", "mini", "x", "--from", "25:00", "--until", "6:00"), "'25:00' is no time of day"),
    ):
        failed = draftmill(*arguments)
        assert failed.exit_code == 2
        assert said in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    absent = draftmill("--host", "mini")
    assert (absent.exit_code, absent.stdout) == (4, "No workers here. Start one: draftmill worker\n")


def test_hours_of_a_pair() -> None:
    shifts = [Shift("night", "22:00", "06:00"), Shift("day"), Shift("noon", "12:00", "13:00")]
    said = {clock: fleet.pair_now(shifts, clock) for clock in ("21:59", "22:00", "05:59", "06:00", "12:30")}
    assert list(said.values()) == ["day", "night", "night", "day", "noon"]
    assert fleet.pair_now([Shift("night", "22:00", "06:00")], "12:00") == ""


def test_what_orders_mean() -> None:
    mine = {"draftmill": "1", "wire": "3"}
    assert duty(Orders(), mine, "Qwen3-4B", auto=True).takes_jobs
    assert duty(Orders({"draftmill": "1"}, "qwen3-4b"), mine, "Qwen3-4B", auto=False).takes_jobs
    assert duty(Orders(pair="b"), mine, "a", auto=True).restart
    assert duty(Orders(pair="b"), mine, "a", auto=False).state == "refusing"
    assert duty(Orders({"draftmill": "2"}, drained=True), mine, "a", auto=False).state == "refusing"
    assert duty(Orders({"draftmill": "1", "wire": "4"}), mine, "a", auto=False).state == "refusing"
    assert duty(Orders(drained=True), mine, "a", auto=False).state == "draining"


def test_watt_hours() -> None:
    def report(name: str, speed: float, watts: str) -> fleet.Report:
        return fleet.Report(name, 0, {"tokens_per_second": str(speed), "power_watts": watts, "lease": "60"})

    one = report("a", 100, "36")
    assert one.watt_hours_per_million == pytest.approx(100)
    fleet_of_three = [one, report("b", 300, "36"), report("c", 50, ""), report("d", 0, "36")]
    assert fleet.watt_hours_per_million(fleet_of_three) == pytest.approx(50)
    assert fleet.watt_hours_per_million([report("c", 50, "")]) is None


def test_a_report_is_whole_again_at_the_next_beat_whatever_redis_lost(mill: Mill, draftmill: Command) -> None:
    mill.start(lease=2)
    wait(joined(mill, 1))
    (name,) = workers(mill)
    ours, rqs = wire.worker_key(name), f"rq:worker:{name}"
    fields = {key: set(mill.redis.hkeys(key)) for key in (ours, rqs)}
    seen = mill.redis.hget(ours, "seen") or b""

    def lag() -> None:
        """As if Redis had failed over to a replica that lagged behind."""
        mill.redis.hset(ours, "seen", seen)
        mill.redis.hset(ours, "chip", "earlier")

    for lose in (lambda: mill.redis.delete(ours), lambda: mill.redis.delete(rqs), mill.redis.flushall, lag):
        time.sleep(0.6)  # a beat, which tells what has changed
        lose()
        wait(lambda: all(fields[key] <= set(mill.redis.hkeys(key)) for key in fields), seconds=1)
        wait(lambda: mill.redis.hget(ours, "chip") != b"earlier", seconds=1)
        assert list(workers(mill)) == [name]
        assert {name} == {worker.name for worker in Worker.all(mill.redis)}
        assert mill.redis.ttl(rqs) > 40
    assert draftmill().exit_code == 0


def test_a_beat_says_what_has_changed(mill: Mill) -> None:
    mill.start(lease=2)
    wait(joined(mill, 1))
    (name,) = workers(mill)
    mill.submit(4)
    mill.wait(all_done)
    wait(lambda: workers(mill)[name].number("done") == 4, seconds=1)
    wait(lambda: mill.redis.hget(f"rq:worker:{name}", "successful_job_count") == b"4", seconds=1)
