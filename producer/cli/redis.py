"""`draftmill redis`: look at the private server, stop it, and make users for a fleet's server."""

from __future__ import annotations

import secrets

import click

from ..queue import acl
from ..queue.connect import connect, private_folder, private_url, running, stop_private
from . import options


@click.group("redis")
def redis_group() -> None:
    """Look at this machine's private Redis, or stop it; make users for the Redis of a fleet.

    Other commands start it when neither --redis-url nor REDIS_URL names another.
    """


@redis_group.command()
def status() -> None:
    """Say whether it runs, where, and how large it is.

    \b
    Example:
      draftmill redis status
    """
    client = running()
    if client is None:
        click.echo(f"not running; its data is in {private_folder()}")
        return
    info = client.info()
    click.echo(f"url     {private_url()}")
    click.echo(f"server  {info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}")
    click.echo(f"process {info['process_id']}")
    click.echo(f"memory  {info['used_memory_human']}")
    click.echo(f"data    {private_folder()}")


@redis_group.command()
def stop() -> None:
    """Save and stop it. Batches are kept; the next command that needs it starts it again.

    \b
    Example:
      draftmill redis stop
    """
    click.echo("stopped" if stop_private() else "not running")


@redis_group.command("acl")
@options.redis_url
def acl_command(redis_url: str | None) -> None:
    """Print an ACL file for this Redis, with a user for each role and `default` switched off.

    The file goes to standard output and holds hashes; the passwords are shown once, on standard error.
    Name the file as `aclfile` in redis.conf and restart, or send ACL LOAD.

    \b
    Example:
      draftmill redis acl --redis-url redis://queue.local > users.acl
    """
    info = connect(redis_url).info()
    version = tuple(int(part) for part in info["redis_version"].split(".")[:2])
    passwords = {name: secrets.token_urlsafe(24) for name in ("admin", *acl.ROLES)}
    for line in acl.users(passwords, version):
        click.echo(line)
    for name, password in passwords.items():
        click.echo(f"{name:<10}redis://{name}:{password}@HOST:6379", err=True)
