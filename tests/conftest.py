"""Fixtures that tests of several folders share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from itertools import chain, zip_longest
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")  # the same examples in each run; `--hypothesis-profile default` draws others

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so would the commands under test that get Ctrl-C


def pytest_configure(config: pytest.Config) -> None:
    """What tests measure is kept apart from what the user's own workers did, by all processes of a run together. Models
    are the user's, so that the boxed one is built once per machine.
    """
    if hasattr(config, "workerinput"):  # a process of xdist's, which has the folder by its environment
        return
    from draftmill.producer.queue import paths

    models, folder = paths.cache_dir() / "models", Path(tempfile.mkdtemp(prefix="draftmill-cache-"))
    os.environ["DRAFTMILL_CACHE"] = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    with suppress(OSError):  # where the user's folder cannot be written to, this run has models of its own
        models.mkdir(parents=True, exist_ok=True)
        (folder / "models").symlink_to(models)


@pytest.hookimpl(trylast=True)  # pytest itself brings tests of one fixture together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a GPU, tests for which MLX compiles kernels for minutes begin first, so that all others run meanwhile. Another
    one comes after each, for every process is given two to begin with.
    """
    first = [item for item in items if item.get_closest_marker("compiles")]
    if not first:
        return
    import mlx.core as mx

    if mx.default_device() != mx.cpu:
        others = [item for item in items if item not in first]
        between = zip_longest(first, others[: len(first)])
        items[:] = [*filter(None, chain.from_iterable(between)), *others[len(first) :]]


def pytest_collection_finish() -> None:
    """Nothing that was imported becomes garbage: the collector need not look at it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def cache() -> Path:
    """The cache folder of this run."""
    from draftmill.producer.queue import paths

    return paths.cache_dir()


@pytest.fixture(scope="session")
def boxed_model(cache: Path) -> Path:
    """The folder of the boxed default model."""
    from draftmill.engine.models import boxed

    return boxed.unbox(cache)
