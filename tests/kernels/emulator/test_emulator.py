"""The emulator catches what it is there to catch, and lets pass what is right."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from draftmill.kernels.gpu.source import parse

from . import Fault, compiler, on_cpu

pytestmark = pytest.mark.skipif(compiler() is None, reason="kernels are tested with a C++ compiler: there is none")


def run(
    body: str, *, count: int = 64, groups: int = 1, threads: int = 64, header: str = "", dtype: mx.Dtype = mx.float32
) -> mx.array:
    """Run `body` over x = 0, 1, 2, ..., into y."""
    text = f"{header}\nkernel void planted(const device float* x, device float* y) {{\n{body}\n}}\n"
    x = mx.arange(count).astype(mx.float32)
    constants = {"T": dtype, "N": 64}
    return on_cpu(parse(text)["planted"], [x], constants, (groups, 1, 1), threads, [((count,), mx.float32)])[0]


PLACE = "const uint i = thread_position_in_threadgroup.x;"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def test_threads_meet_at_barriers_and_see_what_others_wrote() -> None:
    y = run(f"{PLACE} threadgroup float s[N]; s[i] = x[i]; {BARRIER} y[i] = s[(i + 33) % N];")
    assert y.tolist() == [(i + 33) % 64 for i in range(64)]


def test_lanes_exchange_values() -> None:
    lane = "const uint i = thread_position_in_threadgroup.x;"
    assert run(f"{lane} y[i] = simd_sum(x[i]);").tolist() == [496.0] * 32 + [1520.0] * 32
    assert run(f"{lane} y[i] = simd_max(x[i]);").tolist() == [31.0] * 32 + [63.0] * 32
    assert run(f"{lane} y[i] = simd_shuffle_xor(x[i], 5);").tolist() == [float(i ^ 5) for i in range(64)]
    assert run(f"{lane} y[i] = simd_shuffle(x[i], 3);").tolist() == [3.0] * 32 + [35.0] * 32


def test_each_threadgroup_has_its_own_memory_and_place() -> None:
    y = run(
        f"{PLACE} const uint g = threadgroup_position_in_grid.x; threadgroup float s[32];"
        f"s[i] = x[g * 32 + i]; {BARRIER} y[g * 32 + i] = s[31 - i] + 100 * threadgroups_per_grid.x;",
        groups=2,
        threads=32,
    )
    assert y.tolist() == [200.0 + 31 - i for i in range(32)] + [200.0 + 63 - i for i in range(32)]


def test_helpers_take_pointers_and_load_four() -> None:
    header = """
    METAL_FUNC float total(float4 v) { return v.x + v.y + v.z + v.w; }
    template <typename T> METAL_FUNC float of_four(const device T* p, long at) { return total(load4(p + 4, at)); }"""
    y = run(f"{PLACE} y[i] = i < 15 ? of_four(x, 4 * i) : 0.0f;", header=header)
    assert y.tolist() == [float(4 * (4 * i + 4) + 6) for i in range(15)] + [0.0] * 49


def test_a_simdgroup_may_wait_for_itself_alone() -> None:
    one = "threadgroup float s[N]; s[i] = x[i]; simdgroup_barrier(mem_flags::mem_threadgroup);"
    y = run(f"{PLACE} {one} if (i < 32) y[i] = s[i ^ 7]; else y[i] = s[i];")
    assert y.tolist() == [float(i ^ 7 if i < 32 else i) for i in range(64)]


MATRICES = "simdgroup_matrix<float, 8, 8> a; simdgroup_matrix<float, 8, 8> b;"


@pytest.mark.parametrize("space", ["device", "threadgroup"])
def test_matrices_are_multiplied(space: str) -> None:
    staged = f"threadgroup float s[128]; s[i] = x[i]; s[i + 64] = x[i + 64]; {BARRIER}"
    left, right = ("x", "x + 3") if space == "device" else ("s", "(s + 3)")
    y = run(
        f"{PLACE} {staged if space == 'threadgroup' else ''} {MATRICES}"
        "simdgroup_matrix<float, 8, 8> c = make_filled_simdgroup_matrix<float, 8>(2.0f);"
        f"simdgroup_load(a, {left}); simdgroup_load(b, {right}, 16); simdgroup_multiply_accumulate(c, a, b, c);"
        "if (i < 32) { simdgroup_store(c, y + 64); } else { simdgroup_store(a, y); }",
        count=128,
    )
    x = np.arange(128.0)
    expected = x[:64].reshape(8, 8) @ x.reshape(8, 16)[:, 3:11] + 2
    assert y.tolist() == [*x[:64].tolist(), *expected.reshape(-1).tolist()]


def test_matrices_of_half_precision_are_added_up_in_float() -> None:
    y = run(
        f"{PLACE} threadgroup T s[N]; threadgroup float t[N]; s[i] = T(100.0f + x[i]); {BARRIER}"
        "simdgroup_matrix<T, 8, 8> a; simdgroup_matrix<float, 8, 8> c = make_filled_simdgroup_matrix<float, 8>(0.0f);"
        "simdgroup_load(a, s); simdgroup_multiply_accumulate(c, a, a, c);"
        f"if (i < 32) {{ simdgroup_store(c, t); }} {BARRIER} y[i] = t[i];",
        dtype=mx.float16,
    )
    x = 100 + np.arange(64.0).reshape(8, 8)
    assert y.tolist() == (x @ x).reshape(-1).tolist()


FAULTS = {
    "x\\[64\\] is out of bounds": f"{PLACE} y[i] = x[i + 1];",
    "y\\[-1\\] is out of bounds": f"{PLACE} y[int(i) - 1] = 0;",
    "s\\[64\\] is out of bounds": f"{PLACE} threadgroup float s[N]; s[i + 1] = 0;",
    "x\\[64\\] is out of bounds: it": f"{PLACE} y[i] = load4(x + 2, 62).x;",
    "not aligned": f"{PLACE} y[i] = load4(x, 2).x;",
    "race: s\\[1\\] is read while another thread writes": (
        f"{PLACE} threadgroup float s[N]; s[i] = x[i]; if (i > 1) y[i] = s[1];"
    ),
    "race: s\\[0\\] is written while another thread reads": (
        f"{PLACE} threadgroup float s[N]; s[i] = x[i]; {BARRIER} y[i] = s[0]; if (i == 5) s[0] = 1;"
    ),
    "race: s\\[0\\] is written while another thread writes": f"{PLACE} threadgroup float s[N]; s[i / 2] = x[i];",
    "race: y\\[3\\] is written by two threads": f"{PLACE} y[i == 9 ? 3 : i] = x[i];",
    "y\\[1\\] is read by a thread that did not write it": f"{PLACE} y[i] = x[i]; {BARRIER} if (i == 0) y[i] = y[1];",
    "s\\[7\\] is read, and nothing wrote it": (
        f"{PLACE} threadgroup float s[N]; if (i != 7) s[i] = x[i]; {BARRIER} y[i] = s[i];"
    ),
    "divergent barrier at line 1: not all threads reach it": f"{PLACE} if (i < 32) {BARRIER}",
    "divergent barrier at line 2": f"{PLACE} if (i < 32) {{\n {BARRIER} }} else {{\n {BARRIER} }}",
    "divergent simd_sum at line 1": f"{PLACE} if (i != 3) y[i] = simd_sum(x[i]);",
    "divergent simd_max at line 2: lane 0 is at line 3": (
        f"{PLACE} if (i % 2) {{\n simd_max(1.0f); }} else {{\n simd_max(1.0f); }}"
    ),
    "lane 40 of a simdgroup": f"{PLACE} y[i] = simd_shuffle(x[i], 40);",
    "32772 bytes of threadgroup memory": (
        f"{PLACE} threadgroup float s[8192]; threadgroup float t[1]; s[i] = 0; t[0] = 0;"
    ),
    "does not compile": "y[0] = nonsense;",
    "race: s\\[40\\] is read while another thread writes": (
        f"{PLACE} threadgroup float s[N]; s[i] = x[i]; simdgroup_barrier(mem_flags::mem_threadgroup); y[i] = s[40];"
    ),
    "race: s\\[5\\] is written while another thread reads": (
        f"{PLACE} threadgroup float s[N]; s[i] = x[i]; {BARRIER} if (i > 31) {{ y[i] = s[5]; }}\n"
        "simdgroup_barrier(mem_flags::mem_threadgroup); if (i == 4) s[5] = 1;"
    ),
    "race: s\\[3\\] is read while another thread writes": (
        f"{PLACE} threadgroup float s[N]; s[i] = x[i]; simdgroup_barrier(mem_flags::mem_none); if (i < 32) y[i] = s[3];"
    ),
    "divergent simdgroup_barrier at line 1": f"{PLACE} if (i != 3) simdgroup_barrier(mem_flags::mem_threadgroup);",
    "x\\[64\\] is out of bounds: it has 64 elements": f"{MATRICES} simdgroup_load(a, x + 1);",
    "y\\[64\\] is out of bounds": f"{PLACE} {MATRICES} if (i < 32) simdgroup_store(a, y, 9);",
    "s\\[63\\] is out of bounds: it has 63 elements": (
        f"{PLACE} threadgroup float s[63]; if (i < 63) s[i] = x[i]; {BARRIER} {MATRICES} simdgroup_load(a, s);"
    ),
    "s\\[-2\\] is out of bounds": f"{MATRICES} threadgroup float s[N]; simdgroup_store(a, s + -2);",
    "s\\[9\\] is read, and nothing wrote it": (
        f"{PLACE} threadgroup float s[N]; if (i != 9) s[i] = x[i]; {BARRIER} {MATRICES} simdgroup_load(a, s);"
    ),
    "race: s\\[1\\] is read while another thread writes it": (
        f"{PLACE} threadgroup float s[N]; s[i] = x[i]; {MATRICES} if (i < 32) simdgroup_load(a, s, 4);"
    ),
    "race: s\\[0\\] is written while another thread writes it": (
        f"{PLACE} threadgroup float s[N]; {MATRICES} simdgroup_store(a, s);"
    ),
    "race: y\\[0\\] is written by two threads": f"{MATRICES} simdgroup_store(a, y);",
    "divergent simdgroup_load at line 1: not all lanes": f"{PLACE} {MATRICES} if (i != 40) simdgroup_load(a, x);",
    "divergent simdgroup_store at line 1: not all lanes": (
        f"{PLACE} {MATRICES} if (i < 31) simdgroup_store(a, y); threadgroup_barrier(mem_flags::mem_none);"
    ),
    "divergent simdgroup_multiply_accumulate at line 2: lane 0 is at line 3": (
        f"{PLACE} {MATRICES} if (i % 2) {{\n simdgroup_multiply_accumulate(a, b, b, a); }} else {{\n"
        " simdgroup_multiply_accumulate(a, b, b, a); }"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault: str) -> None:
    with pytest.raises(Fault, match=fault):
        run(FAULTS[fault])


@pytest.mark.parametrize("threads", [33, 1056])
def test_threads_come_in_whole_simdgroups_up_to_1024(threads: int) -> None:
    with pytest.raises(Fault, match="threads"):
        run("", threads=threads)


def test_a_race_between_threadgroups_is_caught() -> None:
    with pytest.raises(Fault, match="written by two threads"):
        run("y[thread_position_in_threadgroup.x] = 1;", groups=2)


def test_small_inputs_lie_in_the_constant_address_space() -> None:
    header = "template <typename T> METAL_FUNC float first(const device T* p) { return p[0]; }"
    assert run("y[thread_position_in_threadgroup.x] = first(x);", header=header).tolist() == [0.0] * 64
    with pytest.raises(Fault, match="does not compile"):
        run("if (thread_position_in_threadgroup.x == 0) y[0] = first(x);", header=header, count=7)


@pytest.mark.parametrize(
    "wrong", ["simdgroup_matrix<half, 8, 8> a; simdgroup_load(a, x);", "simdgroup_matrix<float, 8, 4> a;"]
)
def test_matrices_are_of_8_by_8_and_of_the_type_of_what_they_load(wrong: str) -> None:
    with pytest.raises(Fault, match="does not compile"):
        run(wrong)


def test_a_matrix_that_nothing_fills_is_not_a_number() -> None:
    assert mx.isnan(run(f"{PLACE} {MATRICES} if (i < 32) simdgroup_store(a, y);")).sum() == 64


def test_what_nothing_writes_is_not_a_number() -> None:
    assert mx.isnan(run("if (thread_position_in_threadgroup.x == 0) y[0] = 1;")).sum() == 63
