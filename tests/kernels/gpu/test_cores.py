"""How many cores a GPU has, from what its system says."""

from __future__ import annotations

import mlx.core as mx
import pytest

from draftmill.kernels.gpu.cores import GROUPS, cores, cores_of_mac, enough_groups

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
def test_without_a_gpu_there_are_none_and_keys_are_split_as_usual() -> None:
    assert cores() is None
    assert enough_groups() >= 16 * GROUPS


@pytest.mark.skipif(mx.default_device() == mx.cpu, reason="there is no GPU")
def test_a_gpu_tells_and_is_kept_busy() -> None:
    count = cores()
    assert count is not None
    assert 1 <= count < 1000
    assert enough_groups() == GROUPS * count
