"""`draftmill doctor`: what this machine has to work with, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import click

from ...producer.cli import options
from ...producer.cli.report import print_json, print_table
from ...producer.queue import paths
from ...producer.queue.connect import connect, private_url
from ...producer.queue.errors import FAILED_ITEMS, UserError
from ...producer.queue.urls import masked
from .. import blas

GIB = 1024**3
Kept = TypeVar("Kept")


class Finding(NamedTuple):
    """One line of the report; what is "missing" keeps draftmill from generating on this machine."""

    name: str
    text: str
    verdict: Literal["ok", "slow", "missing"] = "ok"


COLOURS = {"ok": "green", "slow": "yellow", "missing": "red"}


@click.command()
@options.as_json
@options.redis_url
def doctor(as_json: bool, redis_url: str | None) -> None:
    """Show versions, device, Redis and models of this machine, and what is missing to generate here.

    Each line is ok, slow or missing; the exit code is 4 if something is missing.

    \b
    Examples:
      draftmill doctor
      draftmill doctor --json | jq '.[] | select(.verdict != "ok")'
    """
    blas.preload()
    findings = list(examine(redis_url))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [(finding.verdict, finding.name, finding.text) for finding in findings]
        print_table((), rows, styles=COLOURS)
    if any(finding.verdict == "missing" for finding in findings):
        sys.exit(FAILED_ITEMS)


def examine(redis_url: str | None) -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("draftmill", "mlx", "mlx-lm", "redis", "rq"):
        yield version(package)
    yield Finding("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB")
    if util.find_spec("mlx") and util.find_spec("mlx_lm"):
        yield from examine_engine()
    yield redis_server(redis_url)


def version(package: str) -> Finding:
    try:
        return Finding(package, metadata.version(package))
    except metadata.PackageNotFoundError:
        return Finding(package, "not installed: pip install 'draftmill[worker]' to generate on this machine", "missing")


def examine_engine() -> Iterator[Finding]:
    import mlx.core as mx

    from ...engine.models import boxed
    from ...engine.models.pairs import PAIRS
    from ...engine.models.targets import MODEL_TYPES
    from .pairs import here as models_here

    gpu = "Metal" if mx.metal.is_available() else "CUDA"
    backend = "CPU" if mx.default_device() == mx.cpu else gpu
    chip = mx.device_info().get("device_name") or platform.processor() or platform.machine()
    yield Finding("device", f"{backend}, {chip}")
    if blas.wanted():
        yield Finding("BLAS", "OpenBLAS preloaded") if blas.preloaded() else Finding("BLAS", blas.SLOW, "slow")
    yield Finding("families", ", ".join(MODEL_TYPES) + "; others run plainly, without drafts")
    folder = boxed.folder(paths.cache_dir())
    here = str(folder) if folder.exists() else "not on this machine yet; fetched on first use (93 MB)"
    yield Finding(boxed.NAME, here)
    for pair in PAIRS.values():
        if pair.advice and len(models_here(pair)) == 2:
            yield Finding(pair.name, pair.advice)
    if backend != "CPU":
        yield pools()
    yield from examine_kernels(backend)
    yield from examine_checks()
    yield from examine_precisions()
    yield from examine_plain()
    yield from examine_costs()
    if backend != "CPU":
        from ...engine.state.memory import device_limit

        yield from examine_fits(device_limit())


def _of_models_here(known: Mapping[str, Kept]) -> Iterator[tuple[str, Kept]]:
    """What was measured, by names that begin with those of models; without that of folders which are gone."""
    for name, kept in known.items():
        model = Path(name.partition(", ")[0])
        if not model.is_absolute() or model.exists():
            yield name, kept


def pools() -> Finding:
    """Whether kernels write keys and values in place."""
    from ...kernels.gpu.launch import on_gpu
    from ...kernels.pages.proof import flaw

    if reason := flaw(on_gpu):
        return Finding("pools", f"not written in place, so no round runs ahead of the device: {reason}", "slow")
    return Finding("pools", "written in place")


def examine_kernels(backend: str) -> Iterator[Finding]:
    """What the races of operations gave on this machine: the winner first, then what each form took."""
    from ...engine.models.kernels_for import results_file
    from ...kernels.race.race import read

    results = read(results_file(paths.cache_dir()))
    if not results:
        raced = "not raced here yet: a worker races them when it first loads a pair"
        yield Finding("kernels", "not used without a GPU: plain MLX runs" if backend == "CPU" else raced)
    for (operation, *shape), result in results.items():
        times = [f"{form} {taken:.3f} ms" for form, taken in sorted(result.milliseconds.items(), key=lambda it: it[1])]
        reasons = [f"{form}: {reason}" for form, reason in result.dropped.items()]
        yield Finding(
            str(operation), f"{' '.join(map(str, shape)):<32} {', '.join(times + reasons)}", "slow" if reasons else "ok"
        )


def examine_checks() -> Iterator[Finding]:
    """How far each model's logits were from mlx-lm's when a worker first loaded it here."""
    from ...engine.models.load_check import known_verdicts

    for name, verdict in _of_models_here(known_verdicts(paths.cache_dir())):
        yield Finding("load check", f"{name.partition(', ')[0]}: {verdict}", "slow" if verdict.dropped else "ok")


def examine_precisions() -> Iterator[Finding]:
    """The types in which models run here instead of bfloat16, where the chip emulates that."""
    from ...engine.models.precision import known_precisions

    for name, precision in _of_models_here(known_precisions(paths.cache_dir())):
        text = f"{name.partition(', ')[0]}: {precision}"
        yield Finding("precision", text, "ok" if precision.dtype == "float16" else "slow")


def examine_plain() -> Iterator[Finding]:
    """Models that ran here without an adapter."""
    from ...engine.load import known_remarks

    for name, remark in _of_models_here(known_remarks(paths.cache_dir())):
        yield Finding("plain", f"{name}: {remark.removeprefix('plain: ')}", "slow")


def examine_costs() -> Iterator[Finding]:
    """For each pair that was measured here, how far its cost model is from the measurements, and what rounds need."""
    from ...engine.depth.calibration import known_costs

    for name, cost in _of_models_here(known_costs(paths.cache_dir())):
        yield Finding("costs", f"{name}: cost estimates are off by {cost.residual:.1%} in the median")
        yield Finding("workspace", f"{name}: rounds took {cost.workspace / GIB:.2f} GiB beside what rows keep")


def examine_fits(limit: int) -> Iterator[Finding]:
    """For each known pair how many rows and tokens fit where a program may use so many bytes of the GPU's memory.

    What a pair takes is known once a worker has loaded it here, and of some published ones in 4 bits.
    """
    from ...engine.bench.fits import PUBLISHED
    from ...engine.models.pairs import PAIRS
    from ...engine.shares import known_needs

    known = known_needs(paths.cache_dir())
    others = [pair.name for pair in PAIRS.values() if pair.target not in known]
    known |= {f"{name} in 4 bits": PUBLISHED[name] for name in others if name in PUBLISHED}
    for name, (needs, weights) in known.items():
        rows, tokens = needs.fit(limit, weights)
        if rows:
            yield Finding("fits", f"{name}: {rows} rows, {tokens:,} tokens in all, if nothing else needs the memory")
        else:
            text = f"{name}: not in {limit / GIB:.1f} GiB: its weights take {weights / GIB:.1f}"
            yield Finding("fits", text, "slow")
    if unknown := [name for name in others if name not in PUBLISHED]:
        yield Finding("fits", f"unknown until a worker has loaded them here: {', '.join(unknown)}")


def redis_server(url: str | None) -> Finding:
    try:
        client = connect(url)
        facts = client.info("server")
    except UserError as error:
        return Finding("queue", error.message, "missing")
    product = "Valkey" if facts.get("server_name") == "valkey" else "Redis"
    number = facts.get("valkey_version") or facts["redis_version"]
    where = masked(url) if url else f"{private_url()} (private server)"
    return Finding("queue", f"{product} {number} at {where}")
