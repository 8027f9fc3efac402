// The words of Metal, of its library and of what MLX puts before a kernel, in "C++ for OpenCL 2021": its address spaces
// are as strict as Metal's. Only words that this project's kernels use are here, so that every other one is refused.
// Functions are declared, not defined: a text is compiled, never run.

#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#define METAL_FUNC inline __attribute__((always_inline))
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef uchar uint8_t;
typedef int int32_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef half float16_t;
typedef uint uint3 __attribute__((ext_vector_type(3)));
typedef float float4 __attribute__((ext_vector_type(4)));

// 16 bits that turn into other numbers only where a kernel says so, as on a Mac of the first generations.
enum class bfloat : ushort {};
typedef bfloat bfloat16_t;

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

// As in Metal, arguments of two types are ambiguous.
#define OF_TWO(name, T) T name(T, T);
#define OF_NUMBERS(of, name) \
  of(name, int) of(name, uint) of(name, long) of(name, ulong) of(name, float) of(name, half)
OF_NUMBERS(OF_TWO, min)
OF_NUMBERS(OF_TWO, max)

#define OF_REAL(name) \
  float name(float);  \
  half name(half);
OF_REAL(exp)
OF_REAL(exp2)
OF_REAL(log)
OF_REAL(ceil)
OF_REAL(rsqrt)

// Simdgroups exchange numbers of at most 32 bits.
#define IN_SIMDGROUP(name, T) T name(T);
#define BETWEEN_LANES(name, T) T name(T, ushort);
#define OF_LANES(of, name) of(name, int) of(name, uint) of(name, float) of(name, half)
OF_LANES(IN_SIMDGROUP, simd_sum)
OF_LANES(IN_SIMDGROUP, simd_max)
OF_LANES(BETWEEN_LANES, simd_shuffle)
OF_LANES(BETWEEN_LANES, simd_shuffle_xor)

template <typename T>
struct four {
  T x, y, z, w;
  explicit operator float4() const device;
  explicit operator float4() const constant;
};

template <typename T, int N>
struct vector;
template <>
struct vector<float, 4> {
  using type = float4;
};
template <>
struct vector<half, 4> {
  using type = four<half>;
};
template <>
struct vector<bfloat, 4> {
  using type = four<bfloat>;
};
template <typename T, int N>
using vec = typename vector<T, N>::type;

}  // namespace metal

using namespace metal;

// Words that a kernel may not use, whatever they mean to OpenCL: those of C++ that Metal lacks,
#pragma GCC poison static goto mutable virtual thread_local register asm double typedef
#pragma GCC poison new delete throw try catch typeid dynamic_cast const_cast
// those that Metal keeps for itself, as names of anything,
#pragma GCC poison vertex fragment visible intersection mesh object object_data ray_data stage_in sampler patch
#pragma GCC poison texture1d texture2d texture3d texturecube texture_buffer depth2d depthcube imageblock
#pragma GCC poison threadgroup_imageblock array_ref command_buffer half2 half3 half4 bfloat2 bfloat3 bfloat4
#pragma GCC poison INFINITY NAN MAXFLOAT HUGE_VALF M_PI_F M_E_F
// and those of OpenCL that Metal does not know.
#pragma GCC poison global local private generic __global __local __constant __private __generic
#pragma GCC poison read_only write_only read_write pipe event_t sampler_t image1d_t image2d_t image3d_t
