"""Runs a worker with an engine of set speed, as a process of its own: URL, rows, seconds a round, lease."""

from __future__ import annotations

import logging
import sys

import redis

from draftmill.worker.worker import MillWorker
from tests.worker.set_speed_engine import SetSpeedEngine

PAIR = "set-speed"


def main() -> None:
    url, rows, round_seconds, lease = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    engine = SetSpeedEngine(int(rows), float(round_seconds))
    worker = MillWorker(engine, PAIR, redis.Redis.from_url(url, socket_timeout=10), float(lease))
    print("ready", flush=True)
    sys.exit(0 if worker.work() else 130)


if __name__ == "__main__":
    main()
