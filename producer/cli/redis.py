"""`draftmill redis`: look at the private server, stop it, and make users for a fleet's server."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import click

from ..queue import acl
from ..queue.connect import connect, private_folder, private_url, running, stop_private
from ..queue.errors import UserError
from . import options

USERS = ("admin", *acl.ROLES)
"""Whom the ACL file of a fleet has."""


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
@click.option("--keep", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An earlier such file.")
@click.option(
    "--renew", multiple=True, type=click.Choice(USERS), help="With --keep: a user who gets a new password; repeatable."
)
def acl_command(redis_url: str | None, keep: Path | None, renew: tuple[str, ...]) -> None:
    """Print an ACL file for this Redis, with a user for each role and `default` switched off.

    The file goes to standard output and holds hashes; the passwords are shown once, on standard error.
    Name the file as `aclfile` in redis.conf and restart, or send ACL LOAD.

    With --keep, users have the passwords that they have in an earlier file, and users of your own stay as they are. So
    after an upgrade each role gets its new rights, and nobody a new password.

    \b
    Examples:
      draftmill redis acl --redis-url redis://queue.local > users.acl
      draftmill redis acl --redis-url redis://queue.local --keep users.acl > new.acl
      draftmill redis acl --redis-url redis://queue.local --keep users.acl --renew worker > new.acl
    """
    if renew and not keep:
        raise click.UsageError("--renew is for users of an earlier file; name it with --keep")
    earlier = _users_of(keep) if keep else {}
    kept = dict(map(acl.credentials, earlier.values()))
    kept = {name: known for name, known in kept.items() if name in USERS and name not in renew}
    info = connect(redis_url).info()
    version = tuple(int(part) for part in info["redis_version"].split(".")[:2])
    passwords = {name: secrets.token_urlsafe(24) for name in USERS if name not in kept}
    for line in acl.users(passwords, version, kept):
        click.echo(line)
    for name, line in earlier.items():
        if name not in (*USERS, "default"):
            click.echo(line)
    for name, password in passwords.items():
        click.echo(f"{name:<10}redis://{name}:{password}@HOST:6379", err=True)


def _users_of(file: Path) -> dict[str, str]:
    """The lines of an ACL file by their users; raises UserError if none of these is ours."""
    lines = [line.strip() for line in file.read_text("utf-8", "replace").splitlines()]
    found = {acl.credentials(line)[0]: line for line in lines if re.match(r"user\s+\S", line)}
    if not found.keys() & set(USERS):
        raise UserError(
            f"{str(file)!r} has none of draftmill's users; let standard output go to another file than --keep"
        )
    return found
