// Queries and keys out of a joint projection: each head normed, if it is to be, and rotated to its token's position.
// A simdgroup takes one head of one token; a lane holds every 32nd element, so that the two of a pair are with one lane.
//
// Constants: the type T; HEADS and KV_HEADS of DIM; STRIDE, from one head of queries to the next; WIDTH of the
// projection; ROTATED, how many dimensions turn, a multiple of 64; NORMED.

kernel void rotate(
    const device T* projected,       // [N, WIDTH]: heads of queries, STRIDE apart, then those of keys
    const device float* turns,       // [N, 2, ROTATED / 2]: cosines and sines
    const device T* query_weight,    // [DIM], not read if !NORMED
    const device T* key_weight,      // [DIM]
    const device float* epsilon,     // [8], all the same
    const device int* count,         // [8], of which the first is N
    device T* queries,               // [N, HEADS, DIM]
    device T* keys) {                // [N, KV_HEADS, DIM]
  constexpr int EACH = DIM / 32;
  constexpr int HALF = ROTATED / 64;  // places of a lane between the two of a pair
  const int lane = int(thread_index_in_simdgroup);
  const int simdgroups = int(threads_per_threadgroup.x) / 32;
  const int unit = int(threadgroup_position_in_grid.x) * simdgroups + int(simdgroup_index_in_threadgroup);
  if (unit < count[0] * (HEADS + KV_HEADS)) {
    const long token = unit / (HEADS + KV_HEADS);
    const int head = unit % (HEADS + KV_HEADS);
    const bool asks = head < HEADS;
    const long from = token * WIDTH + (asks ? head * STRIDE : HEADS * STRIDE + (head - HEADS) * DIM);
    float value[EACH];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      value[i] = float(projected[from + lane + 32 * i]);
      squares += value[i] * value[i];
    }
    if (NORMED) {
      const float factor = rsqrt(simd_sum(squares) / float(DIM) + epsilon[0]);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const float weight = float(asks ? query_weight[lane + 32 * i] : key_weight[lane + 32 * i]);
        value[i] *= factor * weight;
      }
    }
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      const long turn = token * ROTATED + lane + 32 * i;
      const float cosine = turns[turn];
      const float sine = turns[turn + ROTATED / 2];
      const float a = value[i];
      const float b = value[i + HALF];
      value[i] = a * cosine - b * sine;
      value[i + HALF] = a * sine + b * cosine;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      if (asks) {
        queries[(token * HEADS + head) * DIM + lane + 32 * i] = T(value[i]);
      } else {
        keys[(token * KV_HEADS + head - HEADS) * DIM + lane + 32 * i] = T(value[i]);
      }
    }
  }
}
