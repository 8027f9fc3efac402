"""What the plain engine costs behind a worker and Redis, beside a script over mlx-lm's `batch_generate`.

    python -m tests.benchmarks.plain [--rows 1 --rows 8 --rows 32] [--small]

The model has Granite's architecture, for which there is no adapter, with random weights in the sizes of Qwen3-4B's
layers. Both sides have loaded it and take turns; a turn lasts from the first request to the last result.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import orjson

from tests.benchmarks.overhead import SMALL, Cost, Service, Side, cpu_seconds, write_model
from tests.redis_server import RedisServer

GRANITE: dict[str, Any] = dict(
    model_type="granite",
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    logits_scaling=1.0,
    attention_multiplier=0.011,
    embedding_multiplier=1.0,
    residual_multiplier=1.0,
    attention_bias=False,
    mlp_bias=False,
)


class Script(Side):
    """A process that calls `batch_generate` for each line of rows, tokens and prompts on its standard input."""

    def __init__(self, model: Path) -> None:
        super().__init__("tests.benchmarks.plain", "--script", str(model))

    def run(self, rows: int, prompts: list[str], tokens: int) -> tuple[Cost, int]:
        """Costs and generated tokens."""
        assert self.process.stdin
        before = cpu_seconds(self.process.pid)
        self.process.stdin.write(orjson.dumps([rows, tokens, prompts]).decode() + "\n")
        self.process.stdin.flush()
        seconds, generated = orjson.loads(self.read())
        return Cost(seconds, cpu_seconds(self.process.pid) - before), generated


def script(model: str) -> None:
    """What `Script` runs."""
    from mlx_lm import batch_generate, load

    loaded: Any = load(model)
    module, tokenizer = loaded[:2]
    tokenizer.eos_token_ids = set()
    print("ready", flush=True)
    for line in sys.stdin:
        rows, tokens, prompts = orjson.loads(line)
        begin = time.perf_counter()
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        sizes: Any = dict(completion_batch_size=rows, prefill_batch_size=min(8, rows))
        done = batch_generate(module, tokenizer, encoded, max_tokens=tokens, return_token_ids=True, **sizes)
        seconds = time.perf_counter() - begin
        print(orjson.dumps([seconds, sum(map(len, done.token_ids or []))]).decode(), flush=True)


@click.command()
@click.option("--rows", type=int, multiple=True, default=(1, 8, 32), show_default=True)
@click.option("--tokens", type=int, default=128, show_default=True, help="Of each job.")
@click.option("--turns", type=int, default=5, show_default=True)
@click.option("--small", is_flag=True, help="A small model, to see that it works.")
@click.option("--script", "scripted", hidden=True)
def main(rows: tuple[int, ...], tokens: int, turns: int, small: bool, scripted: str | None) -> None:
    """Compare the plain engine behind a worker with `batch_generate`."""
    if scripted:
        script(scripted)
        return
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name:
        folder = Path(name)
        sizes = {key: SMALL[key] for key in SMALL.keys() & GRANITE.keys() if key != "model_type"} if small else {}
        write_model(folder / "model", GRANITE | sizes, half=not small)
        server = RedisServer(folder)
        server.start()
        try:
            peer = Script(folder / "model")
            for count in rows:
                compare(server, folder / "model", peer, count, tokens, turns)
            peer.stop()
        finally:
            server.kill()


def compare(server: RedisServer, model: Path, peer: Script, rows: int, tokens: int, turns: int) -> None:
    ratios: list[float] = []
    with server.connect() as redis:
        service = Service(server, redis, model, rows)
        for turn in range(-1, turns):  # the first one warms both up
            # Of other lengths in each turn, as in a dataset: MLX's CUDA backend keeps what it has planned for a length.
            lengths = random.Random(turn)
            prompts = [f"Question {n}: " + "why is it so? " * lengths.randint(1, 12) for n in range(max(4, 2 * rows))]
            own, generated = service.run(prompts, tokens, f"{rows}-{turn}")
            other, expected = peer.run(rows, prompts, tokens)
            if generated != expected:
                raise click.ClickException(f"the sides generated {generated} and {expected} tokens")
            if turn >= 0:
                ratios.append(other.seconds / own.seconds)
                click.echo(
                    f"{rows:3} rows  {generated / own.seconds:8.1f} tokens/s here  "
                    f"{generated / other.seconds:8.1f} by batch_generate  {ratios[-1]:.3f}"
                )
        service.stop()
    click.echo(f"{rows:3} rows  median {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n")


if __name__ == "__main__":
    main()
