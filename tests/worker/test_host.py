"""Facts of a machine: read from files as Linux writes them, and from what macOS's commands print."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from draftmill.engine.stats import Stats
from draftmill.producer.queue.leases import UNKNOWN, Pace
from draftmill.worker.host import Host, Meter, Power, RowSpeed, Sensors, Thermal, hottest_zone, pressure


def write(folder: Path, files: dict[str, int | str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")


def test_this_machine() -> None:
    host = Host.here()
    assert host.chip
    assert host.os
    assert host.memory > 2**28
    assert Host.here("mini-3", 40, "Apple M4") == Host("mini-3", "Apple M4", host.memory, host.os, 40)
    sensors = Sensors(Host.here(watts=40))
    assert sensors.latest.power_watts == 40
    sensors.start()
    assert sensors.latest.power_watts == 40


def test_a_job_s_part_of_what_the_machine_draws() -> None:
    meter = Meter(stats := Stats())
    before = meter.now
    assert meter.share(before, 10) is None
    meter.beat(None, True)
    assert meter.share(before, 10) is None
    begin = time.monotonic()
    meter.beat(1000, False)
    before = meter.now
    stats.generated_tokens, stats.prefilled_tokens = 30, 10
    time.sleep(0.1)
    quarter = meter.share(before, 10)
    assert 20 < (quarter or 0) <= 250 * (time.monotonic() - begin)
    assert meter.beat(1000, True) == meter.joules >= 4 * (quarter or 0)
    assert (meter.share(before, 10) or 0) > (quarter or 0)


@pytest.mark.parametrize(
    ("said", "thermal"),
    [
        ("com.apple.system.thermalpressurelevel 0", "nominal"),
        ("com.apple.system.thermalpressurelevel 2", "serious"),
        ("com.apple.system.thermalpressurelevel 4", "critical"),
        ("com.apple.system.thermalpressurelevel 30", "critical"),
        ("", "unknown"),
    ],
)
def test_thermal_pressure_of_a_mac(said: str, thermal: Thermal) -> None:
    assert pressure(said) == thermal


def test_thermal_zones_of_linux(tmp_path: Path) -> None:
    assert hottest_zone(tmp_path) == "unknown"
    trips = {"trip_point_0_type": "passive", "trip_point_0_temp": 80_000}
    trips |= {"trip_point_1_type": "critical", "trip_point_1_temp": 95_000}
    write(tmp_path / "thermal_zone0", {"temp": 50_000} | trips)
    write(tmp_path / "thermal_zone1", {"temp": 50_000, "trip_point_0_type": "hot", "trip_point_0_temp": -1})
    assert hottest_zone(tmp_path) == "nominal"
    for temperature, thermal in ((80_000, "fair"), (96_000, "critical")):
        write(tmp_path / "thermal_zone0", {"temp": temperature})
        assert hottest_zone(tmp_path) == thermal


def test_power_of_linux(tmp_path: Path) -> None:
    assert Power(tmp_path).watts() is None
    write(tmp_path, {"hwmon/hwmon0/power1_input": 11_500_000, "hwmon/hwmon1/power1_input": 500_000})
    assert Power(tmp_path).watts() == 12
    energy = "powercap/intel-rapl:0/energy_uj"
    write(tmp_path, {energy: 1_000_000})
    power = Power(tmp_path)
    assert power.watts() is None
    time.sleep(0.1)
    write(tmp_path, {energy: 2_000_000})
    assert 5 < (power.watts() or 0) <= 10
    write(tmp_path, {energy: 5})
    assert power.watts() is None


def test_the_speed_of_a_row_is_that_of_its_last_jobs() -> None:
    speed, stats = RowSpeed(), Stats()

    def run(jobs: int, tokens: int, seconds: float) -> None:
        """Two rows have a job each at a time; a round lasts for one job."""
        for _ in range(jobs // 2):
            stats.generated_tokens += 2 * tokens
            stats.rows += 2
            speed.observe_round(seconds, stats)
            for _ in range(2):
                speed.observe_job(2 * tokens, tokens)

    assert (speed.tokens_per_second, speed.pace) == (0, UNKNOWN)
    run(20, tokens=100, seconds=4)
    assert speed.tokens_per_second == pytest.approx(25)
    assert speed.pace == Pace(0, 0, size=200, seconds=4)
    run(1000, tokens=100, seconds=8)  # it runs hot
    assert speed.tokens_per_second == pytest.approx(12.5, rel=0.01)
    assert speed.pace.seconds == pytest.approx(8, rel=0.01)


def test_jobs_that_still_run_do_not_make_a_job_seem_long() -> None:
    speed, stats = RowSpeed(), Stats()
    stats.generated_tokens, stats.rows = 8 * 100, 8
    speed.observe_round(4.0, stats)
    speed.observe_job(200, 100)  # one of eight
    assert speed.pace == Pace(0, 0, size=200, seconds=4)
