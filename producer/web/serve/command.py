"""`draftmill serve`: OpenAI's Batch API in front of the queue."""

from __future__ import annotations

import fcntl
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ...cli import options
from ...queue.connect import connect, user
from ...queue.errors import UserError, explain_file
from ...queue.paths import data_dir
from .. import listen
from . import keys
from .app import create_app
from .errors import LOG

SHUTDOWN_SECONDS = 5
"""How long requests may go on once the server is told to stop."""


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
    type=click.IntRange(1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long /v1/chat/completions waits for its result.",
)
@options.redis_url
def serve(
    host: str,
    port: int,
    api_key_file: Path | None,
    pairs: tuple[str, ...],
    folder: Path | None,
    timeout: int,
    redis_url: str | None,
) -> None:
    """Serve OpenAI's Batch API, for its official clients as they are.

    \b
    /v1/files             upload (purpose batch), list, retrieve, content, delete; at most 200 MB
    /v1/batches           create, retrieve, list, cancel; at most 50,000 requests, all of one model
    /v1/models            the known pairs, and those that live workers serve
    /v1/chat/completions  one request, queued at high priority and waited for; also /v1/completions

    A request's model names the pair that runs it. Batches run on whatever workers serve that pair, now or later:
    start them with `draftmill worker`. A batch's id is also its id for `draftmill status` and `draftmill cancel`.

    The server may be stopped or killed at any time: started again with the same files and the same Redis, it goes
    on with every unfinished batch. Outputs stay in DIR until they are deleted.

    Keys: users see their own files and batches only, and `draftmill limit NAME JOBS` limits how many jobs of a
    user run at once. A key without a name has a user of its own, derived from the key. Without any keys the
    server listens on this machine's loopback address only. It speaks plain HTTP; put a proxy with TLS in
    front of it where the network is not trusted.

    \b
    Example:
      echo "nightly:$(openssl rand -hex 24)" > keys
      draftmill serve --host 0.0.0.0 --api-key-file keys --redis-url redis://queue.local
      draftmill serve                         for programs on this machine, without keys
      OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python my_batches.py

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 wrong usage, 3 cannot use Redis.
    """
    accepted = keys.read(api_key_file)
    accepted.suffice_for(host, "--api-key-file")
    folder = folder or data_dir() / "serve"
    redis = connect(redis_url)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    LOG.setLevel(logging.INFO)
    with _own(folder), listen.listen(host, port) as listener:
        app = create_app(redis, folder, accepted, user(redis), pairs, timeout)
        LOG.info("serving %s/v1, files in %s", listen.url(listener), folder)
        listen.run(app, listener, SHUTDOWN_SECONDS)
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
