"""Runs the parent of a worker with an engine of set speed; its arguments are `Settings` as JSON, and after how many
rounds the GPU gives up in each life, with a comma between two; the last life goes on. Every second one dies of it.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import orjson
import redis

from draftmill.worker.mac.parent import Parent
from tests.worker.run_worker import Settings


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    settings = Settings(**orjson.loads(sys.argv[1]))
    rounds = [int(count) for count in sys.argv[2].split(",") if count]

    def command(name: str, aborts: int) -> list[str]:
        after = rounds[aborts] if aborts < len(rounds) else 0
        return replace(settings, name=name, aborts=aborts, aborts_after=after, dies=aborts % 2 == 0).command()

    return Parent(command, settings.host or "mini", lambda: redis.Redis.from_url(settings.url)).run()


if __name__ == "__main__":
    sys.exit(main())
