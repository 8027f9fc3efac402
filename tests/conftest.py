"""Fixtures that tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's cache folder, so that the boxed model is built once per machine, not once per run."""
    from draftmill.producer import paths

    return paths.cache_dir()


@pytest.fixture(scope="session")
def boxed_model(cache: Path) -> Path:
    """The folder of the boxed default model."""
    from draftmill.engine import boxed

    return boxed.unbox(cache)
