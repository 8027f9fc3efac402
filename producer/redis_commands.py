"""`draftmill redis`: look at the private server, and stop it."""

from __future__ import annotations

import click

from . import server


@click.group("redis")
def redis_group() -> None:
    """Look at this machine's private Redis, or stop it.

    Other commands start it when neither --redis-url nor REDIS_URL names another.
    """


@redis_group.command()
def status() -> None:
    """Say whether it runs, where, and how large it is.

    \b
    Example:
      draftmill redis status
    """
    client = server.running()
    if client is None:
        click.echo(f"not running; its data lie in {server.private_folder()}")
        return
    info = client.info()
    click.echo(f"url     {server.private_url()}")
    click.echo(f"server  {info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}")
    click.echo(f"process {info['process_id']}")
    click.echo(f"memory  {info['used_memory_human']}")
    click.echo(f"data    {server.private_folder()}")


@redis_group.command()
def stop() -> None:
    """Save and stop it. Batches are kept; the next command that needs it starts it again.

    \b
    Example:
      draftmill redis stop
    """
    click.echo("stopped" if server.stop_private() else "not running")
