"""What the service costs: the same requests by the engine alone, and through Redis and a worker.

`python -m tests.benchmarks.overhead` in the root of the repository. Both sides are processes that have loaded the
same random model, new ones for each pair of runs; a run lasts from the first request to the last recorded result.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson
import redis as redis_py

from draftmill.engine.request import Completion, Request, Sampling
from draftmill.producer.queue import batches, wire
from draftmill.worker.blas import preload
from draftmill.worker.worker import MillWorker
from tests.redis_server import RedisServer, fresh_server
from tests.worker.set_speed_engine import SetSpeedEngine

ROOT = Path(__file__).parents[2]
LAYERS, HIDDEN, HEAD_DIM = 8, 512, 64
FAST = 0.0005
"""Seconds of a fast round."""


class Cost(NamedTuple):
    """Of one run: wall seconds, and the CPU seconds of all processes of that side."""

    seconds: float
    cpu: float


class Side:
    """A process that says that it is ready on its first line, and what it has used of the CPU."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if "ready" not in self.read():
            raise click.ClickException("it ended before it was ready: " + " ".join(command))

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


class Direct(Side):
    def __init__(self, model: Path, rows: int, tokens: int, prompts: Path) -> None:
        super().__init__(
            "tests.benchmarks.overhead",
            "--direct",
            str(model),
            str(prompts),
            "--rows",
            str(rows),
            "--tokens",
            str(tokens),
        )

    def run(self) -> tuple[Cost, int]:
        """Costs and generated tokens."""
        assert self.process.stdin
        before = cpu_seconds(self.process.pid)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, generated = orjson.loads(self.read())
        return Cost(seconds, cpu_seconds(self.process.pid) - before), generated


def run_directly(model: Path, file: Path, rows: int, tokens: int) -> None:
    """What `Direct` runs: an engine without a queue. Each line on standard input starts a run of the file's prompts."""
    preload()
    from draftmill.engine.engine import Engine
    from draftmill.engine.models.pairs import Pair
    from draftmill.producer.queue.paths import cache_dir

    prompts = orjson.loads(file.read_bytes())
    engine = Engine.load(Pair(str(model), str(model)), cache_dir(), max_rows=rows)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin, generated = time.perf_counter(), engine.stats.generated_tokens
        for n, prompt in enumerate(prompts):
            engine.add(Request(str(n), engine.text.encode(prompt).tokens, Sampling(max_tokens=tokens, ignore_eos=True)))
        while engine.busy:
            engine.step()
        seconds = time.perf_counter() - begin
        print(orjson.dumps([seconds, engine.stats.generated_tokens - generated]).decode(), flush=True)


class Service(Side):
    def __init__(self, server: RedisServer, redis: redis_py.Redis, model: Path, rows: int) -> None:
        options = ["--pair", str(model), "--redis-url", server.url, "--max-rows", str(rows)]
        super().__init__("draftmill", "worker", *options)
        assert server.process
        self.pids = (self.process.pid, server.process.pid)
        self.redis, self.pair = redis, str(model)

    def run(self, prompts: list[str], tokens: int, name: str = "overhead") -> tuple[Cost, int]:
        """Costs and generated tokens of a batch called `name`, all of whose answers have so many tokens."""
        batch = batches.BatchInfo(name, self.pair, "normal", len(prompts))
        key, last, missing = wire.results_key(batch.id), b"0-0", len(prompts)
        before, begin = sum(map(cpu_seconds, self.pids)), time.perf_counter()
        batches.create(self.redis, batch)
        batches.submit_chunk(self.redis, batch, self._bodies(batch.id, prompts, tokens))
        while missing:
            found: Any = self.redis.xread({key: last}, block=5000)
            for _, entries in found:
                last, missing = entries[-1][0], missing - len(entries)
        cost = Cost(time.perf_counter() - begin, sum(map(cpu_seconds, self.pids)) - before)
        status = batches.status(self.redis, batch.id)
        assert status
        return cost, status.completion_tokens

    def _bodies(self, batch: str, prompts: list[str], tokens: int) -> list[wire.JobBody]:
        sampling = wire.Sampling(max_tokens=tokens, ignore_eos=True)
        return [
            wire.JobBody(batch=batch, custom_id=str(n), pair=self.pair, prompts=(prompt,), sampling=sampling, line=n)
            for n, prompt in enumerate(prompts, 1)
        ]


def cpu_seconds(pid: int, children: bool = False) -> float:
    """User and system time of a process, of all its threads, and of `children` that have ended; NaN without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("nan")
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


SMALL = dict(
    model_type="llama",
    hidden_size=HIDDEN,
    intermediate_size=3 * HIDDEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=HIDDEN // HEAD_DIM,
    num_key_value_heads=HIDDEN // HEAD_DIM // 2,
)


def write_model(folder: Path, changes: dict[str, Any] = SMALL, half: bool = False) -> None:
    """An mlx-lm folder with the default model's tokenizer, a changed configuration, and random weights."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    from draftmill.engine.models.boxed import unbox
    from draftmill.producer.queue.paths import cache_dir

    boxed = unbox(cache_dir())
    shutil.copytree(boxed, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = orjson.loads((folder / "config.json").read_bytes())
    config.pop("quantization")
    config |= changes
    (folder / "config.json").write_bytes(orjson.dumps(config))
    mx.random.seed(0)
    model, arguments = _get_classes(config)
    made = model(arguments.from_dict(config))
    if half:
        made.set_dtype(mx.bfloat16)
    weights = dict(tree_flatten(made.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


@contextmanager
def both(jobs: int, tokens: int, rows: int) -> Iterator[tuple[Direct, Service, list[str]]]:
    """Both sides, loaded, and their prompts."""
    prompts = [f"Question {n}: " + "why is the sky blue? " * (1 + n % 7) for n in range(jobs)]
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name:
        folder = Path(name)
        write_model(folder / "model")
        (folder / "prompts.json").write_bytes(orjson.dumps(prompts))
        server = RedisServer(folder)
        server.start()
        try:
            with server.connect() as redis:
                direct = Direct(folder / "model", rows, tokens, folder / "prompts.json")
                service = Service(server, redis, folder / "model", rows)
                yield direct, service, prompts
                direct.stop()
                service.stop()
        finally:
            server.kill()


@click.command()
@click.option("--jobs", type=click.IntRange(1), default=64, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Of each job.")
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True, help="At a time, on both sides.")
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each side.")
@click.option("--direct", type=(Path, Path), hidden=True, help="Model and prompts of a process without a queue.")
@click.option("--fast", is_flag=True, help="Instead: what a worker costs where rounds take half a millisecond.")
def main(jobs: int, tokens: int, rows: int, pairs: int, direct: tuple[Path, Path] | None, fast: bool) -> None:
    """Compare the engine alone with Redis, worker and engine."""
    if direct:
        return run_directly(*direct, rows, tokens)
    if fast:
        return fast_rounds(pairs)
    found: list[tuple[Cost, Cost]] = []
    click.echo(f"{jobs} jobs of {tokens} tokens, {rows} rows: seconds, CPU seconds in brackets\n")
    click.echo("pair   engine alone         service           ratio")
    for n in range(pairs):
        with both(jobs, tokens, rows) as (alone, service, prompts):
            runs = [alone.run, lambda: service.run(prompts, tokens)]
            results = {side: runs[side]() for side in ((0, 1) if n % 2 == 0 else (1, 0))}
        generated = {results[0][1], results[1][1]}
        if len(generated) > 1:
            raise click.ClickException(f"the sides generated different numbers of tokens: {generated}")
        found.append((results[0][0], results[1][0]))
        show(str(n + 1), *found[-1])
    medians = [Cost(*map(statistics.median, zip(*side, strict=True))) for side in zip(*found, strict=True)]
    show("median", *medians)


class Timed(SetSpeedEngine):
    """An engine of fast rounds, each of which it waits for; it knows when the first began and when the last ended."""

    began = ended = 0.0

    def __init__(self) -> None:
        super().__init__(FAST_ROWS, FAST)

    def step(self) -> list[Completion]:
        self.began = self.began or time.perf_counter()
        completions = super().step()
        self.ended = time.perf_counter()
        return completions

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Ahead(Timed):
    """The same, but as draftmill's engine does, it hands over the next round before it waits for the one before."""

    _over = 0.0

    def wait(self) -> None:
        handed, over = time.perf_counter(), self._over
        self._over = max(over, handed) + FAST
        time.sleep(max(0.0, over - handed))


class FastRun(NamedTuple):
    """Of one run with fast rounds: `seconds` by the clock from the first round to the last, how many `rounds`, and the
    processor seconds of the main `thread` and of the `others`.
    """

    seconds: float
    rounds: int
    thread: float
    others: float


FAST_ROWS = 32
FAST_TOKENS = [256 + 37 * n % 512 for n in range(256)]
"""Of each job: they end one by one."""


def fast_alone(engine: Timed) -> FastRun:
    """The bare loop over an engine."""
    prompt = engine.text.encode("say hello").tokens
    for n, tokens in enumerate(FAST_TOKENS):
        engine.add(Request(str(n), prompt, Sampling(max_tokens=tokens)))
    process, thread = time.process_time(), time.thread_time()
    while engine.busy:
        engine.step()
    return measured(engine, process, thread)


def fast_service(engine: Timed, server: RedisServer, redis: redis_py.Redis) -> FastRun:
    """The same requests through Redis and a worker."""
    batch = batches.BatchInfo("fast", "fast", "normal", len(FAST_TOKENS))
    batches.create(redis, batch)
    same: Any = dict(batch=batch.id, pair="fast", prompts=("say hello",))
    bodies = [
        wire.JobBody(custom_id=str(n), line=n, sampling=wire.Sampling(max_tokens=tokens), **same)
        for n, tokens in enumerate(FAST_TOKENS, 1)
    ]
    batches.submit_chunk(redis, batch, bodies)
    worker = MillWorker(engine, "fast", server.connect(), server.folder / "spool")

    def stop() -> None:
        while (status := batches.status(redis, batch.id)) and not status.complete:
            time.sleep(0.5)
        worker.request_shutdown()

    threading.Thread(target=stop, daemon=True).start()
    process, thread = time.process_time(), time.thread_time()
    worker.work()
    return measured(engine, process, thread)


def measured(engine: Timed, process: float, thread: float) -> FastRun:
    """A run that has ended, and what the clocks of this process said before it."""
    thread = time.thread_time() - thread
    return FastRun(engine.seconds, engine.stats.rounds, thread, time.process_time() - process - thread)


def fast_rounds(turns: int) -> None:
    """What the service costs where rounds take half a millisecond, by engines of set speed; both sides in turns."""
    click.echo(f"{len(FAST_TOKENS)} jobs, {FAST_ROWS} rows: seconds, rounds in brackets")
    for kind, name in ((Timed, "each round waited for"), (Ahead, "one round ahead")):
        click.echo(f"\n{name}\nturn   engine alone         service           ratio")
        found = [fast_turn(kind, turn) for turn in range(1, turns + 1)]
        alone, service = zip(*found, strict=True)
        ratio = statistics.median(theirs.seconds / own.seconds for own, theirs in found)
        main = [1e6 * statistics.median(run.thread / run.rounds for run in side) for side in (alone, service)]
        others = 100 * statistics.median(run.others / run.seconds for run in service)
        click.echo(
            f"median ratio {ratio:.3f}; main thread: {main[0]:.0f} us of CPU a round alone, {main[1]:.0f} in a worker"
        )
        click.echo(f"other threads: {others:.1f} % of a core")


def fast_turn(kind: type[Timed], turn: int) -> tuple[FastRun, FastRun]:
    """A run of each side with engines of one kind; every second turn begins with the service."""
    alone = None if turn % 2 == 0 else fast_alone(kind())
    with fresh_server() as server, server.connect() as redis:
        service = fast_service(kind(), server, redis)
    alone = alone or fast_alone(kind())
    cells = [f"{run.seconds:7.2f} ({run.rounds:6})" for run in (alone, service)]
    click.echo(f"{turn:<6} {cells[0]:<20} {cells[1]:<17} {service.seconds / alone.seconds:.3f}")
    return alone, service


def show(name: str, alone: Cost, service: Cost) -> None:
    ratios = service.seconds / alone.seconds, service.cpu / alone.cpu
    cells = [f"{cost.seconds:7.2f} ({cost.cpu:6.2f})" for cost in (alone, service)]
    click.echo(f"{name:<6} {cells[0]:<20} {cells[1]:<17} {ratios[0]:.3f} ({ratios[1]:.3f})")


if __name__ == "__main__":
    main()
