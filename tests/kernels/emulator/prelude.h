// The words of this project's kernels, which are written in Metal, on the checked machine.

#pragma once

#include "machine.h"

#define METAL_FUNC inline
#define thread
#define constant

using uchar = unsigned char;
using uint = unsigned int;
using ushort = unsigned short;
using ulong = unsigned long;
using half = _Float16;

// bfloat16: the upper half of a float, rounded to the nearest, ties to even.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  explicit bfloat(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    bits = value != value ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
  }
  operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
  }
};

struct float4 {
  float x, y, z, w;

  float operator[](int i) const { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
};

using uint3 = machine::Position;

#define threadgroup_position_in_grid (machine::now.group)
#define threadgroups_per_grid (machine::now.groups)
#define thread_position_in_threadgroup (uint3{uint(machine::now.current), 0, 0})
#define threads_per_threadgroup (uint3{uint(machine::now.threads), 1, 1})
#define thread_index_in_simdgroup uint(machine::now.current % machine::LANES)
#define simdgroup_index_in_threadgroup uint(machine::now.current / machine::LANES)

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

// Only threadgroup memory is ordered by the barriers of this project: what a thread writes to the device is its own.
#define threadgroup_barrier(flags) \
  (static_cast<void>(flags), machine::barrier(__LINE__))
#define simdgroup_barrier(flags) \
  machine::meet_lanes((flags) == mem_flags::mem_threadgroup, __LINE__, "simdgroup_barrier")

inline float sum_of(const float* lanes) {
  float sums[machine::LANES];
  memcpy(sums, lanes, sizeof sums);
  for (int half = machine::LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) sums[i] += sums[i + half];
  return sums[0];
}

inline float max_of(const float* lanes) {
  float most = lanes[0];
  for (int i = 1; i < machine::LANES; i++) most = most < lanes[i] ? lanes[i] : most;
  return most;
}

inline float lane_of(const float* lanes, int lane) {
  if (lane < 0 || lane >= machine::LANES) machine::fault("lane %d of a simdgroup", lane);
  return lanes[lane];
}

#define simd_sum(value) sum_of(machine::lanes(value, __LINE__, "simd_sum"))
#define simd_max(value) max_of(machine::lanes(value, __LINE__, "simd_max"))
#define simd_shuffle(value, lane) lane_of(machine::lanes(value, __LINE__, "simd_shuffle"), lane)
#define simd_shuffle_xor(value, mask) \
  lane_of(machine::lanes(value, __LINE__, "simd_shuffle_xor"), int(thread_index_in_simdgroup ^ (mask)))

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline uint min(uint a, uint b) { return a < b ? a : b; }
inline uint max(uint a, uint b) { return a > b ? a : b; }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline float exp(float x) { return __builtin_expf(x); }
inline float exp2(float x) { return __builtin_exp2f(x); }
inline float log(float x) { return __builtin_logf(x); }
inline float ceil(float x) { return __builtin_ceilf(x); }
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

// A pool's elements. Pools are inputs, as whole words, and yet written.
template <typename T, typename W, typename Space>
machine::Buffer<const T, Space> elements(machine::Buffer<const W, Space> pool) {
  constexpr long times = sizeof(W) / sizeof(T);
  return {{reinterpret_cast<const T*>(pool.data), pool.size * times, pool.offset * times, pool.name, nullptr}};
}

template <typename T, typename W, typename Space>
machine::Written<T, Space> writable(machine::Buffer<const W, Space> pool) {
  const machine::Buffer<const T, Space> from = elements<T>(pool);
  return {{const_cast<T*>(from.data), from.size, from.offset, from.name, nullptr}};
}

template <typename T, typename Space>
float4 load4(machine::Buffer<const T, Space> from, long index) {
  long at = from.check(index);
  if (at % 4) machine::fault("load4(%s, %ld) is not aligned", from.name, index);
  return {float(from[index]), float(from[index + 1]), float(from[index + 2]), float(from[index + 3])};
}
