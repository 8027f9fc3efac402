// The one word of this project's kernels that Metal does not have by itself.

// Four neighbouring elements as floats; `index` is a multiple of four, and so is where the buffer's rows begin.
template <typename T>
METAL_FUNC float4 load4(const device T* from, long index) {
  return float4(*reinterpret_cast<const device vec<T, 4>*>(from + index));
}

template <typename T>
METAL_FUNC float4 load4(const constant T* from, long index) {
  return float4(*reinterpret_cast<const constant vec<T, 4>*>(from + index));
}
