"""Shell completion, by click's own machinery: of commands, options, and the ids of batches."""

from __future__ import annotations

import os
from contextlib import suppress

import click
import redis as redis_py
from click.shell_completion import CompletionItem, get_completion_class

from ..queue import batches
from ..queue.connect import connect, running
from ..queue.errors import UserError


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete draftmill's commands, options and batch ids.

    bash needs version 4.4, which macOS does not bring; its own shell is zsh.

    \b
    Examples:
      eval "$(draftmill completion zsh)"                          # in ~/.zshrc
      eval "$(draftmill completion bash)"                         # in ~/.bashrc
      draftmill completion fish > ~/.config/fish/completions/draftmill.fish
    """
    kind = get_completion_class(shell)
    assert kind
    click.echo(kind(context.find_root().command, {}, "draftmill", "_DRAFTMILL_COMPLETE").source())


def batch_ids(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The batches that begin so, newest first. Starts no server, and says nothing of one that does not answer."""
    with suppress(UserError, redis_py.RedisError):
        url = context.params.get("redis_url") or os.environ.get("REDIS_URL")
        redis = connect(url) if url else running()
        known = batches.list_batches(redis) if redis else []
        return [CompletionItem(state.id, help=state.source) for state in known if state.id.startswith(incomplete)]
    return []
