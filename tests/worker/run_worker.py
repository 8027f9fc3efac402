"""Runs a worker with an engine of set speed as a process: URL, spool, rows, seconds a round, lease, drain."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import redis

from draftmill.worker.worker import MillWorker
from tests.worker.set_speed_engine import SetSpeedEngine

PAIR = "set-speed"


def main() -> None:
    url, spool, rows, round_seconds, lease, drain = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    engine = SetSpeedEngine(int(rows), float(round_seconds))
    worker = MillWorker(
        engine, PAIR, redis.Redis.from_url(url, socket_timeout=10), Path(spool), float(lease), float(drain)
    )
    print("ready", flush=True)
    sys.exit(0 if worker.work() else 130)


if __name__ == "__main__":
    main()
