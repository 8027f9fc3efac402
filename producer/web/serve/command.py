"""`draftmill serve`: OpenAI's Batch API in front of the queue."""

from __future__ import annotations

import fcntl
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ...cli import options
from ...client.fleet_feeder import FleetFeeder
from ...client.hook import Hook
from ...queue.connect import connect, user
from ...queue.errors import UserError, explain_file
from ...queue.pair_names import KNOWN, canonical
from ...queue.paths import data_dir
from ...queue.wire import MOST_KEPT
from .. import keys, listen
from .. import tls as tls_files
from .api_errors import LOG
from .app import Settings, create_app
from .files import SOONEST

SHUTDOWN_SECONDS = 5
"""How long requests may go on once the server is told to stop."""


def _aliases(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """The pairs of further names; raises BadParameter."""
    found: dict[str, str] = {}
    for each in given:
        name, pair = each.partition("=")[::2]
        if not name or not pair:
            raise click.BadParameter(f"{each!r} is no NAME=PAIR, such as gpt-4o-mini=qwen3-4b")
        if canonical(name) in KNOWN:
            raise click.BadParameter(f"{name!r} is the name of a pair; choose another")
        if found.setdefault(name, canonical(pair)) != canonical(pair):
            raise click.BadParameter(f"{name!r} stands for two pairs; keep one")
    return found


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keys that are accepted, one a line: KEY, or NAME:KEY, which makes NAME the user. "
    f"Without it {keys.VARIABLE} may hold one.",
)
@click.option(
    "--pair",
    "pairs",
    multiple=True,
    metavar="NAME",
    help="A model to accept even while no live worker serves it, beside those of `draftmill pairs`; repeatable.",
)
@click.option(
    "--files",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where uploads, outputs and batches are kept. Default: under the user's data folder.",
)
@click.option(
    "--timeout",
    type=options.Duration(1),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="How long /v1/chat/completions waits for its result.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME=PAIR",
    callback=_aliases,
    help="A further name for a pair, such as gpt-4o-mini=qwen3-4b, so that programs may keep theirs; repeatable.",
)
@click.option(
    "--window",
    type=options.Duration(),
    default="0s",
    metavar="TIME",
    help="How long batches may take, such as 7d, if that is longer than the completion_window that they name.",
)
@click.option(
    "--retention",
    type=options.Duration(SOONEST, MOST_KEPT),
    metavar="TIME",
    help="How long files, and batches once they have ended, are kept, such as 30d. Default: until they are deleted.",
)
@options.notify
@tls_files.options
@options.redis_url
def serve(
    host: str,
    port: int,
    api_key_file: Path | None,
    pairs: tuple[str, ...],
    aliases: dict[str, str],
    folder: Path | None,
    timeout: float,
    window: float,
    retention: float | None,
    hook: Hook | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    redis_url: str | None,
) -> None:
    """Serve OpenAI's Batch API, for its official clients as they are.

    \b
    /v1/files             upload (purpose batch), list, retrieve, content, delete; at most 200 MB
    /v1/batches           create, retrieve, list, cancel; at most 50,000 requests, all of one model
    /v1/models            the known pairs, those that live workers serve, and aliases
    /v1/chat/completions  one request, queued at high priority and waited for; also /v1/completions, /v1/responses
    /healthz              200 if Redis answers; needs no key
    /metrics              for Prometheus

    A request's model names the pair that runs it, or an --alias of it. Batches run on whatever workers serve that
    pair, now or later: start them with `draftmill worker`. A batch's id is also its id for `draftmill status` and
    `draftmill cancel`.

    The server may be stopped or killed at any time: started again with the same files and the same Redis, it goes
    on with every unfinished batch. Outputs stay in DIR until they are deleted, or for --retention.

    --notify tells one receiver of each batch that has ended, until it was told, as OpenAI's webhooks do.

    Keys: users see their own files and batches only, and `draftmill limit NAME JOBS` limits how many jobs of a
    user run at once. A key without a name has a user of its own, derived from the key. Without any keys the
    server listens on this machine's loopback address only. An address that shows too many wrong keys has to wait.
    Where the network is not trusted, name a certificate with --tls-cert and --tls-key.

    \b
    Example:
      echo "nightly:$(openssl rand -hex 24)" > keys
      draftmill serve --host 0.0.0.0 --api-key-file keys --redis-url redis://queue.local
      draftmill serve --alias gpt-4o-mini=qwen3-4b --window 7d
      draftmill serve                         for programs on this machine, without keys
      OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python my_batches.py

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 wrong usage, 3 cannot use Redis.
    """
    accepted = keys.read(api_key_file)
    accepted.suffice_for(host, "--api-key-file")
    tls = tls_files.read(tls_cert, tls_key)
    folder = folder or data_dir() / "serve"
    redis = connect(redis_url)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    LOG.setLevel(logging.INFO)
    with _own(folder), listen.listen(host, port) as listener:
        kept_for = math.inf if retention is None else retention
        app = create_app(
            redis, folder, Settings(accepted, user(redis), pairs, aliases, timeout, window, kept_for, hook)
        )
        LOG.info("serving %s/v1, files in %s", listen.url(listener, tls), folder)
        feeder = FleetFeeder(redis)
        feeder.start()
        listen.run(app, listener, SHUTDOWN_SECONDS, tls)
        feeder.stop()
        LOG.info("stopped; started again, unfinished batches go on")


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """Keeps a second server out of the folder. Uploads are spooled into it: /tmp may be small, or in memory."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(explain_file(error, "cannot keep files in", folder)) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another server uses {str(folder)!r}; name another folder with --files") from None
        tempfile.tempdir = str(folder)
        yield
