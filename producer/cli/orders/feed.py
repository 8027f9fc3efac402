"""`draftmill feed`: queues what submitters left to a feeder."""

from __future__ import annotations

import logging

import click

from ...client.fleet_feeder import FleetFeeder, log
from ...client.until_stopped import until_stopped
from ...queue.connect import connect, resolve
from ...queue.urls import masked
from .. import options


@click.command("feed")
@options.redis_url
def feed_command(redis_url: str | None) -> None:
    """Queue the lines that `draftmill submit --detach` left, as workers make room, until stopped.

    One feeder is enough for a fleet, on a machine that stays on. Where `draftmill cron run` or `draftmill serve` runs
    none is needed: they feed too. Of several feeders one works and the others stand by. A feeder may be killed at any
    moment: another goes on, or the same one when it is started again, and no line is queued twice.

    \b
    Example:
      draftmill feed --redis-url redis://queue.local
    """
    url = resolve(redis_url)
    feeder = FleetFeeder(connect(url), log.warning)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)

    def feed() -> None:
        click.echo(f"feeder {feeder.feeder} feeds the batches of {masked(url)}")  # from now on a signal stops it
        feeder.run()

    until_stopped(feed, feeder.ask_to_stop)
