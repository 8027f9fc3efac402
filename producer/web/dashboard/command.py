"""`draftmill dashboard`: a live page about batches and workers."""

from __future__ import annotations

import logging
from pathlib import Path

import click
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...cli import options
from ...queue.connect import connect, resolve
from ...queue.urls import masked
from .. import keys, listen
from .. import tls as tls_files
from .app import LOG, create_app

SHUTDOWN_SECONDS = 2
"""How long requests may go on once the dashboard is told to stop; pages let go within a second."""


@click.command("dashboard")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keys to sign in with, one a line: KEY or NAME:KEY. Who has signed in may cancel batches. "
    f"Without it {keys.VARIABLE} may hold one.",
)
@tls_files.options
@options.redis_url
def dashboard(
    host: str,
    port: int,
    key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    redis_url: str | None,
) -> None:
    """Serve a live page: batches, workers, the latest failures, and charts of the last hour.

    It shows nothing of prompts and results but the names that users gave: source files, custom ids, users. The charts
    begin when the dashboard starts; several dashboards of one Redis do not disturb each other.

    Without keys the page is read-only and for this machine only. With keys everybody signs in with one first, and may
    then cancel batches. Who shows too many wrong keys has to wait. Where the network is not trusted, name a certificate
    with --tls-cert and --tls-key.

    \b
    Examples:
      draftmill dashboard                     http://127.0.0.1:8080, read-only
      echo "ann:$(openssl rand -hex 24)" > keys
      draftmill dashboard --host 0.0.0.0 --key-file keys --redis-url redis://dashboard:PASSWORD@queue.local

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 wrong usage, 3 cannot use Redis.
    """
    accepted = keys.read(key_file)
    accepted.suffice_for(host, "--key-file")
    tls = tls_files.read(tls_cert, tls_key)
    redis = connect(redis_url)
    redis.set_retry(Retry(NoBackoff(), 1))  # the page says so, and looks again in a second
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    LOG.setLevel(logging.INFO)
    with listen.listen(host, port) as listener:
        app = create_app(redis, f"Redis at {masked(resolve(redis_url))}", accepted)
        LOG.info("dashboard at %s, %s", listen.url(listener, tls), "for those with a key" if accepted else "read-only")
        listen.run(app, listener, SHUTDOWN_SECONDS, tls)
