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

// An input that a kernel writes in place. It is the only cast that takes `const` away.
template <typename T>
METAL_FUNC device T* writable(const device T* buffer) {
  return (device T*)buffer;
}
