"""Measures a pair on prompt files: tokens per round of each file, and speed against plain decoding in the same run.

    python tests/benchmarks/speculation.py eval/*.jsonl --tokens 128 --rows 8

Files are JSON lines with a `prompt`. Decoding is greedy. `--divergence` also reports how many prompts get other tokens
than with plain decoding, and how far apart the two tokens' logits were where they first differ: in half precision a
verify of several tokens and a decode of one add numbers in different orders, so near-ties can fall either way.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import mlx.core as mx
from mlx_lm.utils import dequantize_model

from draftmill.engine.chat import ChatPrompt
from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.engine import Engine
from draftmill.engine.models import folder
from draftmill.engine.models.pairs import Pair, resolve
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Completion, Request, Sampling
from draftmill.producer.queue.paths import cache_dir


@dataclass(frozen=True)
class Arm:
    """One way of decoding a file: its completions and the seconds they took."""

    completions: dict[str, Completion]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(completion.tokens) for completion in self.completions.values())

    @property
    def tokens_per_round(self) -> float:
        """Accepted + 1, over all decoding rounds of all rows."""
        rounds = sum(completion.rounds for completion in self.completions.values())
        return sum(completion.accepted for completion in self.completions.values()) / rounds + 1

    @property
    def acceptance(self) -> float:
        """Accepted over drafted and verified."""
        drafted = sum(completion.drafted for completion in self.completions.values())
        return sum(completion.accepted for completion in self.completions.values()) / max(1, drafted)


def decode(engine: Engine, requests: list[Request]) -> Arm:
    begin = time.perf_counter()
    for request in requests:
        engine.add(request)
    done: dict[str, Completion] = {}
    while engine.busy:
        done.update({completion.id: completion for completion in engine.step()})
    return Arm(done, time.perf_counter() - begin)


def read(engine: Engine, file: Path, tokens: int, limit: int | None) -> list[Request]:
    lines = file.read_text(encoding="utf-8").splitlines()[:limit]
    chats = [ChatPrompt(({"role": "user", "content": json.loads(line)["prompt"]},)) for line in lines]
    sampling = Sampling(max_tokens=tokens)
    return [Request(f"{file.stem}-{n}", engine.text.encode(chat).tokens, sampling) for n, chat in enumerate(chats)]


def margins(engine: Engine, requests: list[Request], plain: Arm, drafted: Arm) -> list[float]:
    """For each prompt whose tokens differ: how far apart the target's logits of the two tokens were at that place."""
    model: Any = engine.target.model
    found = []
    for request in requests:
        ours, theirs = (arm.completions[request.id].tokens for arm in (drafted, plain))
        differ = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if differ is not None:
            logits = model(mx.array([*request.tokens, *ours[:differ]])[None])[0, -1].astype(mx.float32)
            found.append(abs((logits[ours[differ]] - logits[theirs[differ]]).item()))
    return found


def load(pair: Pair, rows: int, depth: int | None, half: bool) -> Engine:
    """An engine over a pair; with `half`, target and draft dequantised and in bfloat16."""
    if not half:
        if depth is None and pair.draft:
            depth = load_draft(folder.locate(pair.draft, cache_dir())).block - 1
        return Engine.load(pair, cache_dir(), rows, depth=depth)
    loaded = folder.load(pair.target, cache_dir())
    parts = [loaded.model, load_draft(folder.locate(pair.draft, cache_dir()))] if pair.draft else [loaded.model]
    model, *draft = [dequantize_model(part) for part in parts]
    for part in (model, *draft):
        part.set_dtype(mx.bfloat16)
    made: Any = draft[0] if draft else None
    return Engine(adapt(model), loaded.tokenizer, loaded.context_length, rows, None, made, depth)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pair", default="smollm2-135m", show_default=True)
@click.option("--draft", help="Another draft for the pair's target: a folder.")
@click.option("--tokens", default=128, show_default=True, help="Most tokens of each completion.")
@click.option("--limit", type=int, help="Prompts of each file.")
@click.option("--rows", default=8, show_default=True, help="Rows at a time.")
@click.option("--depth", type=int, help="Most drafted tokens to verify; default all.")
@click.option("--plain/--no-plain", default=True, help="Also decode without the draft, for the ratio of speeds.")
@click.option("--half", is_flag=True, help="Decode in bfloat16.")
@click.option("--divergence", is_flag=True, help="Report where plain decoding gives other tokens.")
def main(
    files: tuple[Path, ...],
    pair: str,
    draft: str | None,
    tokens: int,
    limit: int | None,
    rows: int,
    depth: int | None,
    plain: bool,
    half: bool,
    divergence: bool,
) -> None:
    """Tokens per round and speed of a pair on prompt FILES."""
    known = resolve(pair)
    known = replace(known, draft=draft) if draft else known
    drafting = load(known, rows, depth, half)
    without = load(Pair(known.name, known.target), rows, None, half)
    warm = read(drafting, files[0], 16, rows)
    decode(drafting, warm)
    decode(without, warm)
    click.echo(f"{mx.default_device()}, {drafting.target.dtype}, {rows} rows, depth {depth or 'full'}")
    click.echo(
        f"{'file':<20}{'prompts':>8}{'tokens':>9}{'tokens/round':>14}{'accepted':>10}{'tokens/s':>10}{'plain':>8}{'ratio':>7}"
    )
    speculative, plainly, diverged = [], [], []
    for file in files:
        requests = read(drafting, file, tokens, limit)
        fast = decode(drafting, requests)
        slow = decode(without, requests) if plain or divergence else None
        speculative.append(fast)
        speed = fast.tokens / fast.seconds
        line = f"{file.stem:<20}{len(requests):>8}{fast.tokens:>9}{fast.tokens_per_round:>14.2f}"
        line += f"{fast.acceptance:>10.1%}{speed:>10.1f}"
        if slow:
            plainly.append(slow)
            line += f"{slow.tokens / slow.seconds:>8.1f}{speed / (slow.tokens / slow.seconds):>7.2f}"
            diverged += margins(drafting, requests, slow, fast) if divergence else []
        click.echo(line)
    total = sum(len(arm.completions) for arm in speculative)
    click.echo(
        f"mean tokens per round of the files: {sum(arm.tokens_per_round for arm in speculative) / len(speculative):.2f}"
    )
    if drafting.stats.drafted:
        shares = [count / drafting.stats.row_rounds for count in drafting.stats.accepted_per_position]
        click.echo("accepted at least so far: " + "  ".join(f"{i + 1}: {share:.0%}" for i, share in enumerate(shares)))
    if plainly:
        fast_rate = sum(arm.tokens for arm in speculative) / sum(arm.seconds for arm in speculative)
        slow_rate = sum(arm.tokens for arm in plainly) / sum(arm.seconds for arm in plainly)
        click.echo(
            f"{fast_rate:.1f} tokens/s against {slow_rate:.1f} without the draft: {fast_rate / slow_rate:.2f} times"
        )
    if divergence:
        spread = f"; margin median {median(diverged):.4f}, largest {max(diverged):.4f}" if diverged else ""
        click.echo(f"{len(diverged)} of {total} prompts differ from plain decoding{spread}")


if __name__ == "__main__":
    main()
