"""What is submitted, by honest and hostile hands: sizes, speed, memory, and files submitted again and again."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import orjson

from draftmill.producer.client.patience import Patience
from draftmill.producer.client.submission import plan, submit
from draftmill.producer.input.dataset import BadLine, Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.queue import batches, fleet, wire
from tests.farm.farm import ROOT, Farm
from tests.farm.figure import Figure
from tests.worker.run_worker import PAIR


def interrupted_submits(full: bool) -> Figure:
    """One file, submitted by two at a time that are killed and interrupted at random; then collected."""
    lines, cuts = (10_000, 12) if full else (400, 2)
    dice = random.Random(11)
    with Farm(rows=64, round_seconds=0.002, lease=3) as farm:
        source, out = farm.folder / "in.jsonl", farm.folder / "out.jsonl"
        source.write_text("".join(f'{{"id": "r-{n}", "prompt": "say {n}", "max_tokens": 4}}\n' for n in range(lines)))
        command = [sys.executable, "-m", "draftmill", "submit", str(source), "--pair", PAIR]
        environment = os.environ | {"REDIS_URL": farm.server.url, "DRAFTMILL_HOME": str(farm.folder)}

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

        farm.start()
        for _ in range(cuts):
            pair = [start(), start()]
            for process in pair:
                time.sleep(0.5 + dice.random())
                process.send_signal(dice.choice([signal.SIGKILL, signal.SIGINT]))
            for process in pair:
                process.communicate()
        last = [start(), start()]
        (batch,) = {process.communicate()[0].strip() for process in last}
        farm.wait(lambda: farm.status(batch).complete, 120)
        collect = [sys.executable, "-m", "draftmill", "collect", batch, "-o", str(out), "--follow"]
        code = subprocess.run(collect, cwd=ROOT, env=environment, capture_output=True).returncode
        ids = [orjson.loads(line)["custom_id"] for line in out.read_bytes().splitlines()]
    text = f"{2 * cuts} submits cut; {len(ids):,} results, {len(set(ids)):,} of them distinct"
    return Figure(text, (code, len(ids), len(set(ids))) == (0, lines, lines))


class Bomb:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def hostile_data(dice: random.Random, mark: Path, id: str) -> bytes:
    """The `data` of a job that no producer of ours would write."""
    function, body = wire.FUNCTION, {"batch": "b", "custom_id": id, "pair": PAIR, "prompt": "x"}
    names = ["os.system", "subprocess.call", "builtins.eval", "draftmill.worker.cli.worker.worker", f"{function}.x", ""]

    def packed(value: object) -> bytes:
        return zlib.compress(orjson.dumps(value))

    def deep(depth: int) -> bytes:
        return zlib.compress(b'["draftmill.generate",null,' + b"[" * depth + b"]" * depth + b",{}]")

    kinds = [
        lambda: pickle.dumps(Bomb(mark)),
        lambda: zlib.compress(pickle.dumps((function, None, (Bomb(mark),), {}))),
        lambda: packed([dice.choice(names), None, [f"touch {mark}"], {}]),
        lambda: packed([dice.choice(names), None, [body], {}]),
        lambda: packed([function, "builtins.object", [body], {}]),
        lambda: packed([function, None, [body], {"on_success": "os.system"}]),
        lambda: packed([function, None, [body | {"callback": "os.system"}], {}]),
        lambda: packed([function, None, [body | {"webhook": "http://127.0.0.1/"}], {}]),
        lambda: packed([function, None, [body | {"messages": [{"role": "user", "content": "both"}]}], {}]),
        lambda: packed([function, None, [body | {"sampling": {"max_tokens": dice.choice([0, -1, 10**9, "x"])}}], {}]),
        lambda: packed([function, None, [body | {"pair": "another"}], {}]),
        lambda: packed([function, None, [body | {"prompt": "x" * (wire.MOST_BODY_BYTES + 2**16)}], {}]),
        lambda: zlib.compress(b"\0" * (4 * wire.MOST_BODY_BYTES)),
        lambda: deep(dice.choice([2_000, 100_000])),
        lambda: zlib.compress(orjson.dumps([function, None, [body], {}]).replace(b'"x"', b'"\xff\xfe"')),
        lambda: zlib.compress(b'["draftmill.generate",null,[{"prompt":"\\ud800"}],{}]'),
        lambda: zlib.compress(orjson.dumps([function, None, [body], {}]))[:-4],
        lambda: dice.randbytes(dice.randint(0, 300)),
    ]
    return dice.choice(kinds)()


def hostile_jobs(full: bool) -> Figure:
    """Bodies and whole jobs that somebody wrote into Redis, among honest ones."""
    count, honest = (1000, 200) if full else (120, 20)
    dice = random.Random(13)
    with Farm(rows=4, round_seconds=0.002) as farm:
        mark, queue = farm.folder / "mark", wire.queue_name(PAIR, "b")
        farm.submit(honest)
        ids = []
        for n in range(count):
            id = f"hostile-{n}" if n % 10 else f"b-\udcff{n}"  # a tenth have names that are not even text
            key = f"rq:job:{id}".encode("utf-8", "surrogateescape")
            data = hostile_data(dice, mark, f"h-{n}")
            fields: dict[Any, Any] = {"data": data, "status": "queued", "origin": queue}
            fields["success_callback_name"] = "os.system"
            if n % 2:
                fields |= {"queued": dice.choice([b"\xff", "1 512 x", "1 512 0"]), "leases": b"\xff", "lease": " "}
                if n % 4 == 1:  # as if it had been submitted; the others are never run
                    line = dice.choice([1000 + n, -1, 1e300, "x"])
                    farm.redis.hset(wire.open_key("b"), id, f"{line} h-{n}")
            farm.redis.hset(key, mapping=fields)
            if n % 10:
                ids.append(key)
            farm.redis.lpush(f"rq:queue:{queue}", key.removeprefix(b"rq:job:"))
        farm.redis.set("rq:job:no-hash", "x")
        farm.redis.lpush(f"rq:queue:{queue}", "no-hash", "no-such-job")
        pid = farm.start()
        farm.wait(lambda: farm.redis.llen(f"rq:queue:{queue}") == 0 and not fleet.running(farm.redis), 120)
        refused = sum(farm.redis.hget(key, "status") == b"failed" for key in ids)
        lines = [orjson.loads(result.line) for result in batches.results(farm.redis, "b")]
        done = sum(line["error"] is None for line in lines)
        alive, ran = farm.alive(pid), mark.exists()
    what = "something" if ran else "nothing"
    text = f"{refused + count - len(ids):,} of {count:,} refused, {what} run; {done} honest done"
    return Figure(
        text + ("; worker alive" if alive else ""), refused == len(ids) and done == honest and alive and not ran
    )


def hostile_lines(full: bool) -> Figure:
    """Lines of a dataset: oversize, too deep, not UTF-8, not JSON; read by the producer."""
    count = 1000 if full else 200
    dice = random.Random(17)
    kinds = [
        lambda: b'{"prompt": "' + b"x" * wire.MOST_BODY_BYTES + b'"}',
        lambda: b'{"prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        lambda: b'{"prompt": "\xff\xfe"}',
        lambda: b'{"prompt": "\\ud800"}',
        lambda: pickle.dumps({"prompt": "x"}, protocol=0).replace(b"\n", b" "),
        lambda: b'{"prompt": {"$function": "os.system"}}',
        lambda: b'{"id": "' + b"i" * 600 + b'", "prompt": "x"}',
        lambda: b'{"prompt": "x", "max_tokens": 1e99}',
        lambda: b'{"prompt": "x", "tools": [{"type": "function", "function": "os.system"}]}',
        lambda: b'{"custom_id": "x", "body": {"messages": "os.system"}}',
        lambda: dice.randbytes(100).replace(b"\n", b"").replace(b"\r", b"") + b"\0",
    ]
    with Farm() as farm:
        file = farm.folder / "in.jsonl"
        with file.open("wb") as out:
            for n in range(count):
                kind = kinds[0] if n < 3 else dice.choice(kinds[1:])
                out.write(kind() + b"\n")
            out.write(b'{"id": "good", "prompt": "x"}\n')
        items = list(Dataset(str(file), PAIR, Defaults()))
    bad = sum(isinstance(item, BadLine) for item in items)
    return Figure(f"{bad:,} of {count:,} refused, each by one line", (bad, len(items)) == (count, count + 1))


def speed(full: bool) -> Figure:
    """Jobs a second through one worker whose engine costs nothing, and lines submitted a second."""
    jobs = 20_000 if full else 500
    with Farm(rows=32, round_seconds=0, lease=10) as farm:
        file = farm.folder / "in.jsonl"
        file.write_text("".join(f'{{"id": "r-{n}", "prompt": "say {n}", "max_tokens": 1}}\n' for n in range(jobs)))
        begin = time.monotonic()
        dataset = Dataset(str(file), PAIR, Defaults())
        submission = plan(dataset, dataset.survey(), "soak")
        submit(Patience(farm.redis), submission)
        batch = submission.info.id
        submitted = jobs / (time.monotonic() - begin)
        farm.start()
        farm.wait(lambda: farm.status(batch).done > 0, 20)
        begin, done = time.monotonic(), farm.status(batch).done
        farm.wait(lambda: farm.status(batch).complete, 120)
        through = (jobs - done) / (time.monotonic() - begin)
    text = f"{through:,.0f} jobs/s through one worker, {submitted:,.0f} lines/s read and submitted"
    return Figure(text, through >= 500 and submitted >= 3_000)


def leaks(full: bool) -> Figure:
    """Redis's memory before, and after jobs went through and their results were collected and dropped.

    Before, a few went through as well, so that Redis has met all scripts; both times the worker has left, so that
    the buffers of its connections do not count. The server's own log of slow commands, 2 KB an entry, is off.
    """
    rounds, each, first = (10, 10_000, 1_000) if full else (2, 500, 500)
    with Farm("--slowlog-log-slower-than", "-1", rows=32, round_seconds=0) as farm:

        def through(name: str, count: int) -> None:
            farm.submit(count, batch=name, tokens=1)
            farm.wait(lambda: farm.status(name).complete, 120)
            found = list(batches.results(farm.redis, name))
            assert len(found) == count
            batches.acknowledge(farm.redis, name, found)

        worker = farm.start()
        through("warm-up", first)
        farm.stop(worker)
        before, keys = _settled(farm), _lasting_keys(farm)
        peak, worker = 0, farm.start()
        for number in range(rounds):
            through(f"b{number}", each)
            peak = max(peak, int(farm.redis.info("memory")["used_memory_peak"]))
        farm.stop(worker)
        after = _settled(farm)
        left = _lasting_keys(farm) - keys
    growth = after / before - 1
    text = f"{rounds * each:,} jobs; {before:,} bytes before, {after:,} after ({growth:+.1%}), peak {peak:,}"
    names = [f"b{number}" for number in range(rounds)]
    known = {key(name).encode() for name in names for key in (wire.batch_key, wire.ended_key, wire.handed_key)}
    return Figure(text, growth <= 0.05 and left == known)


def _lasting_keys(farm: Farm) -> set[bytes]:
    """All keys but those of workers, which expire a minute after they left."""
    keys: Any = farm.redis.keys()
    return {key for key in keys if b"worker" not in key}


def _settled(farm: Farm) -> int:
    """Used memory, once Redis has freed what it frees in the background."""
    farm.redis.execute_command("MEMORY", "PURGE")
    seen = []
    for _ in range(15):
        time.sleep(0.1)
        seen.append(int(farm.redis.info("memory")["used_memory"]))
    return min(seen)
