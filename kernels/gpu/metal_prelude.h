// What this project's kernels need beside what MLX puts before every kernel: words that Metal does not have by itself,
// and the header of simdgroup matrices.

#include <metal_simdgroup_matrix>

// Four neighbouring elements as floats; `index` is a multiple of four, and so is where the buffer's rows begin.
template <typename T>
METAL_FUNC float4 load4(const device T* from, long index) {
  return float4(*reinterpret_cast<const device vec<T, 4>*>(from + index));
}

template <typename T>
METAL_FUNC float4 load4(const constant T* from, long index) {
  return float4(*reinterpret_cast<const constant vec<T, 4>*>(from + index));
}

// A pool's elements. Pools are inputs, as whole words, and yet written: no other cast takes `const` away.
template <typename T, typename W>
METAL_FUNC const device T* elements(const device W* pool) {
  return reinterpret_cast<const device T*>(pool);
}

template <typename T, typename W>
METAL_FUNC device T* writable(const device W* pool) {
  return (device T*)pool;
}
