"""`draftmill limit`: how many jobs of one user may run at once."""

from __future__ import annotations

import click

from ...queue import fleet
from ...queue.connect import connect
from .. import options


@click.command("limit")
@click.argument("user", metavar="[USER]", required=False)
@click.argument("jobs", metavar="[JOBS]", required=False, type=click.IntRange(0))
@options.redis_url
def limit_command(user: str | None, jobs: int | None, redis_url: str | None) -> None:
    """Let at most JOBS jobs of USER run at once, 0 for no limit; USER "*" stands for everybody without one.

    Without arguments it lists the limits, and how many jobs of each user run.

    \b
    Example:
      draftmill limit "*" 64
      draftmill limit nightly 8
    """
    redis = connect(redis_url)
    if user is not None:
        if jobs is None:
            raise click.UsageError("say how many JOBS of USER may run, or 0 for no limit")
        fleet.limit(redis, user, jobs)
    for found in fleet.limits(redis):
        most = "none" if found.most is None else found.most
        click.echo(f"{found.user or '(nobody)'}  limit {most}, running {found.running}")
