// The words of this project's kernels, which are written in Metal, for CUDA: a threadgroup is a block, a simdgroup a
// warp. Blocks are one-dimensional. Metal's other address spaces have no counterpart: the launcher leaves them out.

#define METAL_FUNC __device__ __forceinline__
#define threadgroup __shared__

#define threadgroup_position_in_grid blockIdx
#define threadgroups_per_grid gridDim
#define thread_position_in_threadgroup threadIdx
#define threads_per_threadgroup blockDim
#define thread_index_in_simdgroup (threadIdx.x & 31u)
#define simdgroup_index_in_threadgroup (threadIdx.x >> 5)

typedef unsigned char uchar;
typedef unsigned int uint;
typedef unsigned short ushort;

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

METAL_FUNC void threadgroup_barrier(mem_flags) {
  __syncthreads();
}

template <typename V>
METAL_FUNC V simd_shuffle(V value, ushort lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

template <typename V>
METAL_FUNC V simd_shuffle_xor(V value, ushort mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <typename V>
METAL_FUNC V simd_sum(V value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value += simd_shuffle_xor(value, mask);
  }
  return value;
}

template <typename V>
METAL_FUNC V simd_max(V value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    value = max(value, simd_shuffle_xor(value, mask));
  }
  return value;
}

// Four neighbouring elements as floats; `index` is a multiple of four, and so is where the buffer's rows begin.
template <typename T>
METAL_FUNC float4 load4(const T* from, long index) {
  struct alignas(4 * sizeof(T)) Four {
    T at[4];
  };
  const Four four = *reinterpret_cast<const Four*>(from + index);
  float4 result;
  result.x = static_cast<float>(four.at[0]);
  result.y = static_cast<float>(four.at[1]);
  result.z = static_cast<float>(four.at[2]);
  result.w = static_cast<float>(four.at[3]);
  return result;
}

// A pool's elements. Pools are inputs, as whole words, and yet written: `writable` is the one place that says so.
template <typename T, typename W>
METAL_FUNC const T* elements(const W* pool) {
  return reinterpret_cast<const T*>(pool);
}

template <typename T, typename W>
METAL_FUNC T* writable(const W* pool) {
  return (T*)pool;
}
