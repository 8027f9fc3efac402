"""Fixtures that tests of several folders share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so would the commands under test that get Ctrl-C


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's cache folder, so that the boxed model is built once per machine, not once per run."""
    from draftmill.producer.queue import paths

    return paths.cache_dir()


@pytest.fixture(scope="session")
def boxed_model(cache: Path) -> Path:
    """The folder of the boxed default model."""
    from draftmill.engine.models import boxed

    return boxed.unbox(cache)
