"""How many cores a GPU has, from what its system says."""

from __future__ import annotations

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.cores import cores, cores_of_mac, splits, wave

REGISTRY = """
+-o AGXAcceleratorG16X  <class AGXAcceleratorG16X, id 0x1000004f1, registered, matched, active>
    {
      "IOClass" = "AGXAcceleratorG16X"
      "model" = "Apple M4 Max"
      "gpu-core-count" = 40
      "GPUConfigurationVariable" = {"num_gps"=10,"gpu_gen"=16,"num_cores"=40}
    }
"""


def test_a_mac_says_how_many_cores_it_has() -> None:
    assert cores_of_mac(REGISTRY) == 40
    assert cores_of_mac("") is None


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="there is a GPU")
def test_without_a_gpu_there_are_none_and_work_is_split_as_usual() -> None:
    assert cores() is None
    assert wave(3) >= 3 * 16


@pytest.mark.skipif(mx.default_device() == mx.cpu, reason="there is no GPU")
def test_a_gpu_tells() -> None:
    count = cores()
    assert count is not None
    assert 1 <= count < 1000
    assert wave(3) == 3 * count


@pytest.mark.parametrize(
    ("groups", "most", "held", "best"),
    [
        (128, 32, 3, 3),  # 8 rows of 16 queries over 4,096 keys: 384 us in 3 parts, 517 in 4, 392 in 6, 659 in one
        (512, 7, 3, 3),  # 32 rows over 1,000 keys: 403 us in 3 parts, 468 in one
        (1024, 7, 3, 1),  # 64 rows over 1,000 keys: 728 us in one part, 741 in 3
        (64, 7, 3, 6),  # 4 rows over 1,000 keys: 95 us in 6 parts, 105 in 7 or more
        (16, 32, 3, 24),  # one row over 4,096 keys: 94 us in 24 parts, 110 in 32
        (256, 7, 4, 2),  # 32 rows of one query over 1,000 keys: 155 us in 2 parts, 182 in 3, 185 in one
        (512, 7, 4, 1),  # 64 rows of one query over 1,000 keys: 252 us in one part
        (5000, 0, 3, 1),
    ],
)
def test_work_is_split_as_was_best_on_132_cores(groups: int, most: int, held: int, best: int) -> None:
    """Measured with heads of 128, 8 of them for keys, in bfloat16."""
    assert splits(groups, most, 132 * held) == best
