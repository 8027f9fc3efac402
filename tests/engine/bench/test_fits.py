"""What fits on a machine: by the arithmetic of a published pair, and as an engine that is loaded here does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftmill.engine.bench.fits import PUBLISHED
from draftmill.engine.bench.shapes import SHAPES
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.shares import AMPLE, ROWS, Fit, Needs, Shares, known_needs, remember
from draftmill.engine.state.memory import recommended
from draftmill.kernels.pages.sizes import PAGE
from tests.engine.small import NumberTokenizer

GIB = 1 << 30
TINY = SHAPES["tiny-qwen3.5"]


@pytest.mark.parametrize(
    ("limit", "dense", "hybrid", "mixture"),
    [
        (recommended(16 * GIB), Fit(24, 17_600), Fit(24, 13_312), Fit(0, 0)),
        (13_000 << 20, Fit(32, 25_984), Fit(32, 24_896), Fit(0, 0)),
        (recommended(24 * GIB), Fit(32, 45_440), Fit(32, 78_336), Fit(0, 0)),
        (recommended(64 * GIB), Fit(32, 233_728), Fit(32, 595_456), Fit(32, 294_272)),
    ],
)
def test_macs_with_published_pairs_in_4_bits(limit: int, dense: Fit, hybrid: Fit, mixture: Fit) -> None:
    """The numbers that the guide states."""
    fits = [PUBLISHED[name] for name in ("qwen3-4b", "qwen3.5-4b", "qwen3.5-35b-a3b")]
    assert [needs.fit(limit, weights) for needs, weights in fits] == [dense, hybrid, mixture]
    guide = (Path(__file__).parents[3] / "deploy" / "mac" / "README.md").read_text("utf-8")
    (line,) = (line for line in guide.splitlines() if f"| {limit / GIB:.1f} GiB |".replace(".0 GiB", " GiB") in line)
    cells = [f"{fit.rows} rows, {fit.tokens:,}" if fit.rows else "no" for fit in (hybrid, dense, mixture)]
    assert [cell.strip().partition(" tokens")[0] for cell in line.split("|")[3:6]] == cells


def test_a_mac_in_which_it_does_not_fit() -> None:
    needs, weights = PUBLISHED["qwen3.5-4b"]
    assert needs.fit(recommended(8 * GIB), weights) == Fit(0, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_of_published_pairs_follow_from_their_configurations(name: str) -> None:
    needs, weights = PUBLISHED[name]
    config, draft = SHAPES[name].config, SHAPES[name].draft
    layers = config["num_hidden_layers"]
    attending = layers // config.get("full_attention_interval", 1)
    slot = 2 * 2 * attending * config["num_key_value_heads"] * config["head_dim"]
    slot += 2 * 2 * draft["num_hidden_layers"] * draft["num_key_value_heads"] * draft["head_dim"]
    assert needs.page == PAGE * (slot + 2 * 4)  # and a token's number, twice
    state, channels = 4 * 32 * 128 * 128, 2 * 16 * 128 + 32 * 128
    assert needs.prefix == (layers - attending) * (state + 2 * 3 * channels)
    taped = 2 * channels + 2 * 16 * 128 + 4 * 32 * 128 + 4 * 32  # of one step: inputs, keys, deltas, decays
    assert needs.row == needs.prefix + (layers - attending) * 16 * taped
    assert needs.length == config["max_position_embeddings"] + draft["block_size"]
    assert list(needs.rounds) == sorted(needs.rounds, reverse=True)
    embedding = config["vocab_size"] * config["hidden_size"] * (4 + 32 / 64) / 8
    assert embedding < weights < (20 if "35b" in name else 4) * GIB


@pytest.mark.parametrize("memory", [400_000, 3_000_000, 40_000_000])
def test_an_engine_has_the_rows_that_fit(memory: int) -> None:
    target, draft = adapt(TINY.build()), TINY.build_draft()
    needs = Needs.of(target, draft, True, 4096)
    rows = needs.rows(memory)
    shares = Shares.of(target, draft, True, rows, 4096, memory)
    assert shares.workspace == needs.rounds[ROWS.index(rows)]
    engine = Engine(target, NumberTokenizer(), 4096, rows, memory, draft, copying=True)
    assert engine.scheduler.pages.most == shares.pages
    more = [count for count in ROWS if count > rows]
    assert rows == 1 or shares.pages * PAGE >= rows * AMPLE
    for count in more:
        with_more = needs.pages(memory, count)
        assert with_more * PAGE < count * AMPLE


def test_what_was_loaded_is_remembered(tmp_path: Path) -> None:
    target, draft = TINY.build(), TINY.build_draft()
    needs = Needs.of(adapt(target), draft, False, 4096)
    assert known_needs(tmp_path) == {}
    remember("models/tiny", needs, [target, draft, None], tmp_path)
    ((found, weights),) = known_needs(tmp_path).values()
    assert found == needs
    assert weights > 2 * TINY.vocabulary * TINY.config["hidden_size"]
    assert needs.fit(GIB, weights).rows > 0
