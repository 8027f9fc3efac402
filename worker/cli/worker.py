"""`draftmill worker`: loads a pair once and works on its queues until it is told to stop."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext

import click
from redis.backoff import NoBackoff
from redis.retry import Retry

from ...engine.depth.command_buffers import SECONDS, launches
from ...producer.cli import options
from ...producer.cli.options import Duration
from ...producer.queue.connect import connect
from ...producer.queue.errors import BUG, GPU_GAVE_UP, INTERRUPTED, RESTART, UserError, explain_file
from ...producer.queue.fleet import scheduled_pair
from ...producer.queue.pair_names import canonical
from ...producer.queue.paths import cache_dir, data_dir
from ...producer.queue.wire import DEFAULT_PAIR
from ..host import Host, boot, host_name
from ..mac.lives import LifeFile, look_back
from ..mac.memory import Relief
from ..mac.parent import Parent, bounded


class Bytes(click.ParamType):
    """A number of bytes such as 900M, 4G or 1.5GiB; K, M, G and T are powers of 1,024."""

    name = "bytes"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is no size; write for example 900M or 4G", param, ctx)
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


@click.command()
@click.option("--pair", help=f"Pair to serve: a name, a target's folder or hub id, or auto.  [default: {DEFAULT_PAIR}]")
@click.option("--target", help="Target to serve without its known draft: a folder or hub id.")
@click.option("--draft", help="Draft of that target: a folder or hub id.")
@click.option(
    "--depth",
    type=click.IntRange(0),
    help="Drafted tokens of a row to verify; 0 decodes plainly. [default: chosen each round]",
)
@click.option(
    "--drafts",
    type=options.Drafts(),
    metavar="SOURCE,…",
    help="Where drafts may come from: dflash (the pair's draft), mtp (without one, the target's own MTP head), lookup "
    "(each row's own text), none. [default: all]",
)
@click.option("--draft-bits", type=click.Choice(["4", "8"]), help="Quantise the draft as it is loaded.")
@options.lora
@click.option("--redis-url", envvar="REDIS_URL", help="Redis of the fleet; by default this machine's own.")
@click.option(
    "--max-rows", type=click.IntRange(1, 1024), help="Rows at a time.  [default: as many as have room, 32 at most]"
)
@click.option("--memory", type=Bytes(), help="For keys and values, such as 4G; by default what can be spared.")
@click.option(
    "--lease",
    type=Duration(1, 86400),
    default="1m",
    show_default=True,
    metavar="TIME",
    help="After which others take over the jobs of a worker that fell silent.",
)
@click.option(
    "--drain",
    type=Duration(0, 86400),
    default="5m",
    show_default=True,
    metavar="TIME",
    help="What a stop may take to finish what runs; then it is handed back.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics; 0 takes a free port.")
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve metrics on, and at which Prometheus reaches this machine; at 0.0.0.0 by its host name.",
)
@click.option("--host", metavar="NAME", help="Name of this machine in the fleet; default: its host name.")
@click.option("--watts", type=click.FloatRange(0, min_open=True), help="What this machine draws at work, if you know.")
@click.option(
    "--log", "log_file", metavar="FILE", help="Log to FILE, which may be moved away; default: standard error."
)
@click.option(
    "--gpu-seconds",
    type=click.FloatRange(0, 60, min_open=True),
    help="On a Mac: longest that a command buffer may keep the GPU; macOS ends long ones while a display is on.  "
    f"[default: {SECONDS}]",
)
@click.option(
    "--life", type=(str, int), hidden=True, help="Of a worker that a parent has started: name, aborts so far."
)
@click.option("--until-closed", is_flag=True, hidden=True, help="Hand back and end when standard input closes.")
def worker(
    pair: str | None,
    target: str | None,
    draft: str | None,
    depth: int | None,
    drafts: tuple[str, ...] | None,
    draft_bits: str | None,
    lora: options.Lora,
    redis_url: str | None,
    max_rows: int | None,
    memory: int | None,
    lease: float,
    drain: float,
    metrics_port: int | None,
    metrics_host: str,
    host: str | None,
    watts: float | None,
    log_file: str | None,
    gpu_seconds: float | None,
    life: tuple[str, int] | None,
    until_closed: bool,
) -> None:
    """Load a pair of target and draft, and generate: take its jobs from the queue until stopped.

    SIGTERM or Ctrl-C finishes what is running, for --drain at most, and ends; a second one hands it back to
    the queue and ends at once. A worker that is killed loses nothing: others take over its jobs after --lease.

    With --pair auto the pair is what `draftmill workers pair` says for this machine. When that changes, the worker
    finishes what runs and ends with exit code 75, for launchd or systemd to start it again.

    On a Mac the worker is a process of its own below this one. If macOS takes the GPU from it, its jobs go back at
    once, and it is started again with shorter command buffers (--gpu-seconds).

    \b
    Examples:
      draftmill worker
      draftmill worker --pair qwen3-4b --redis-url redis://queue.local --metrics-port 9481
      draftmill worker --target mlx-community/Qwen3-4B-4bit --draft z-lab/Qwen3-4B-DFlash-b16
      draftmill worker --pair qwen3-4b --depth 0 --memory 8G          # plain decoding in 8 GiB
      draftmill worker --pair qwen3-8b --drafts lookup                # copies from each text, without the draft
      draftmill worker --adapters sql=adapters/sql,notes=adapters/notes
      draftmill worker --pair auto --watts 65
    """
    if pair and (target or draft):
        raise UserError("--pair names both models: give either --pair or --target and --draft")
    if draft and not target:
        raise UserError("--draft needs the --target that it was made for")
    if depth is not None and drafts is not None:
        raise UserError("--depth is a fixed number of the draft's tokens: give either --depth or --drafts")

    if sys.platform == "darwin" and not life:
        sys.exit(_work_below(redis_url, host or host_name(), log_file, until_closed))
    from ..blas import preload
    from ..cuda import MANY, suit_rounds

    suit_rounds(max_rows or MANY)
    slow = preload()
    if until_closed:
        threading.Thread(target=_end_with_input, daemon=True).start()
    _log_to(log_file)
    log = logging.getLogger("draftmill.worker")
    if slow:
        log.warning(slow)

    connection = connect(redis_url)
    connection.set_retry(Retry(NoBackoff(), 1))  # the worker waits by itself, and says so

    machine, auto = host or host_name(), pair == "auto"
    if auto and not (pair := scheduled_pair(connection, machine)):
        raise UserError(f"no pair is scheduled for {machine}; say which: draftmill workers pair {machine} PAIR")

    from ...engine.models import boxed

    name = canonical(pair or target or DEFAULT_PAIR)
    with boxed.unboxing(cache_dir()) if name == boxed.NAME else nullcontext():
        import mlx.core as mx

        from ...engine.load import load_engine
        from ...engine.models.folder import locate
        from ...engine.models.pairs import Pair, resolve
        from ...engine.request import Adapters, DeviceFailed, EngineFailed
        from .. import model_defaults
        from ..spool import spool_folder
        from ..worker import MillWorker

    accelerator = None if mx.default_device() == mx.cpu else mx.device_info().get("device_name")
    facts = Host.here(machine, watts, str(accelerator) if accelerator else None)
    try:
        models = Pair(target, target, draft) if target else resolve(name)
        if drafts and "dflash" in drafts and not models.draft:
            raise UserError(f"{name} has no draft: name it with --draft, or leave dflash out of --drafts")
        bits = int(draft_bits) if draft_bits else None
        served = Adapters(lora.folders, lora.default)
        engine = load_engine(models, cache_dir(), max_rows, memory, depth, bits, served, drafts)
        defaults = model_defaults.read(locate(models.target, cache_dir()))
    except boxed.ModelError as error:
        raise UserError(str(error)) from error
    name_of_life, aborts = life or (None, 0)
    if mx.metal.is_available():
        engine.keep_within(bounded(gpu_seconds or SECONDS, aborts), launches())
    elif gpu_seconds:
        raise UserError("--gpu-seconds is for Metal, which this machine has not: leave it out")
    lives, this_boot = data_dir() / "lives", boot()
    if look_back(lives, this_boot):
        engine.resize(0.5)
    mx.set_cache_limit(engine.workspace)  # what MLX keeps of freed memory: a round takes no more, pools that grew do
    try:
        spool = spool_folder(data_dir(), connection)
        mill = MillWorker(engine, name, connection, spool, lease, drain, facts, auto, defaults, name_of_life, aborts)
    except OSError as error:
        raise UserError(explain_file(error, "cannot keep results in", error.filename or data_dir())) from error
    mill.relief, life_file = Relief(engine.share, time.monotonic()), LifeFile(lives, mill.name, this_boot)
    mill.sensors.heard = lambda reading: life_file.note(reading.memory)
    if metrics_port is not None:
        mill.metrics.watch_mlx()
        try:
            mill.metrics.serve(metrics_host, metrics_port)
        except OSError as error:
            where = f"{metrics_host}:{metrics_port}"
            raise UserError(f"cannot serve metrics on {where}: {error.strerror}; choose another port") from error
    if engine.drafter and models.advice:
        log.warning(models.advice)
    loras = f"LoRA adapters {', '.join(served.folders)}, " if served.folders else ""
    numbers = f", {engine.precision}" if engine.precision else ""
    ready = f"worker {mill.name} is ready: {name}, {loras}{engine.drafting}, up to {engine.max_rows} rows{numbers}"
    click.echo(ready)
    sys.stdout.flush()
    log.info(ready)
    try:
        ended_well = mill.work()
    except DeviceFailed as error:
        raise UserError(f"{error}; this worker ends, and its jobs go back", GPU_GAVE_UP) from error
    except EngineFailed as error:
        raise UserError(f"the engine cannot go on, so this worker ends and its jobs go back: {error}", BUG) from error
    finally:
        life_file.close()
    if mill.restart:
        sys.exit(RESTART)
    if not ended_well:
        sys.exit(INTERRUPTED)


def _work_below(redis_url: str | None, host: str, log_file: str | None, until_closed: bool) -> int:
    """Be the parent: start this command again, as often as that is of use; returns the exit code."""
    if until_closed:
        threading.Thread(target=_end_with_input, daemon=True).start()
    _log_to(log_file)

    def command(name: str, aborts: int) -> list[str]:
        return [sys.executable, *sys.orig_argv[1:], "--until-closed", "--life", name, str(aborts)]

    return Parent(command, host, lambda: connect(redis_url)).run()


def _log_to(file: str | None) -> None:
    """Warnings go to standard error, a little more to a file; that may be rotated at any time."""
    if file is None:
        return logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    try:
        handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(explain_file(error, "cannot log to", file)) from error
    logging.basicConfig(format="%(asctime)s %(message)s", handlers=[handler], level=logging.WARNING)
    logging.getLogger("draftmill").setLevel(logging.INFO)


def _end_with_input() -> None:
    """Signals this process when standard input, a pipe, has lost its writer: `run` is gone, even by kill -9."""
    os.read(sys.stdin.fileno(), 1)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
