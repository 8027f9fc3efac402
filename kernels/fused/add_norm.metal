// A residual sum, and its root mean square norm. A threadgroup takes one token, a thread every so many fours of it.
//
// Constants: the type T; SIZE of a token, a multiple of four; THREADS.

kernel void add_norm(
    const device T* x,            // [N, SIZE]
    const device T* y,            // [N, SIZE]
    const device T* weight,       // [SIZE]
    const device float* epsilon,  // [8], all the same
    device T* sum,                // [N, SIZE]
    device T* normed) {           // [N, SIZE]
  constexpr int FOURS = SIZE / 4;
  constexpr int EACH = (FOURS + THREADS - 1) / THREADS;
  threadgroup float parts[THREADS / 32];
  const int me = int(thread_position_in_threadgroup.x);
  const long begin = long(threadgroup_position_in_grid.x) * SIZE;

  float4 held[EACH];
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int four = me + i * THREADS;
    if (four < FOURS) {
      const float4 a = load4(x, begin + four * 4);
      const float4 b = load4(y, begin + four * 4);
      held[i].x = a.x + b.x;
      held[i].y = a.y + b.y;
      held[i].z = a.z + b.z;
      held[i].w = a.w + b.w;
      squares += held[i].x * held[i].x + held[i].y * held[i].y + held[i].z * held[i].z + held[i].w * held[i].w;
      sum[begin + four * 4] = T(held[i].x);
      sum[begin + four * 4 + 1] = T(held[i].y);
      sum[begin + four * 4 + 2] = T(held[i].z);
      sum[begin + four * 4 + 3] = T(held[i].w);
    }
  }
  const float part = simd_sum(squares);
  if (thread_index_in_simdgroup == 0) {
    parts[simdgroup_index_in_threadgroup] = part;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) {
    total += parts[i];
  }
  const float factor = rsqrt(total / float(SIZE) + epsilon[0]);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int four = me + i * THREADS;
    if (four < FOURS) {
      const float4 w = load4(weight, four * 4);
      normed[begin + four * 4] = T(held[i].x * factor * w.x);
      normed[begin + four * 4 + 1] = T(held[i].y * factor * w.y);
      normed[begin + four * 4 + 2] = T(held[i].z * factor * w.z);
      normed[begin + four * 4 + 3] = T(held[i].w * factor * w.w);
    }
  }
}
