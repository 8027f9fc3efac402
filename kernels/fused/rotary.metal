// Queries, keys and values out of a joint projection: each head of queries and keys normed, if it is to be, and rotated
// to its token's position; keys and values go into a pool, in place. A simdgroup takes one head of one token; a lane
// holds every 32nd element, so that the two of a pair are with one lane.
//
// Constants: the type T; HEADS and KV_HEADS of DIM, of which KV_HEADS may be 0; STRIDE, from one head of queries to the
// next; WIDTH of the projection; VALUES, where values begin in it, which may be where keys begin; ROTATED, how many
// dimensions turn, a multiple of 64; NORMED; VALUES_NORMED, without weights; PAGE, slots of a page.

kernel void rotate(
    const device T* projected,       // [N, WIDTH]: heads of queries, STRIDE apart, then those of keys and of values
    const device float* turns,       // [N, 2, ROTATED / 2]: cosines and sines
    const device T* query_weight,    // [DIM], not read if !NORMED
    const device T* key_weight,      // [DIM]
    const device float* epsilon,     // [8], all the same
    const device W* key_pool,        // words of [slots, KV_HEADS, DIM], of which the tokens' slots are written
    const device W* value_pool,      // likewise
    const device int* table,         // the pages of all rows
    const device int* starts,        // [N]: where the pages of a token's row begin in the table
    const device int* positions,     // [N]: a token's place in its row
    const device int* count,         // [8], of which the first is N
    const device float* after,       // [8], of the pool's last write
    device T* queries,               // [N, HEADS, DIM]
    device float* done) {            // [8]
  constexpr int EACH = DIM / 32;
  constexpr int HALF = ROTATED / 64;  // places of a lane between the two of a pair
  constexpr int ALL = HEADS + 2 * KV_HEADS;
  const int lane = int(thread_index_in_simdgroup);
  const int simdgroups = int(threads_per_threadgroup.x) / 32;
  const int unit = int(threadgroup_position_in_grid.x) * simdgroups + int(simdgroup_index_in_threadgroup);
  if (unit < count[0] * ALL) {
    const long token = unit / ALL;
    const int head = unit % ALL;
    const bool asks = head < HEADS;
    const bool turning = head < HEADS + KV_HEADS;
    const int own = asks ? head : turning ? head - HEADS : head - HEADS - KV_HEADS;
    const long from = token * WIDTH + (asks ? own * STRIDE : (turning ? HEADS * STRIDE : VALUES) + own * DIM);
    float value[EACH];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      value[i] = float(projected[from + lane + 32 * i]);
      squares += value[i] * value[i];
    }
    if (turning ? NORMED : VALUES_NORMED) {
      const float factor = rsqrt(simd_sum(squares) / float(DIM) + epsilon[0]);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const float weight = float(asks ? query_weight[lane + 32 * i] : key_weight[lane + 32 * i]);
        value[i] *= turning ? factor * weight : factor;
      }
    }
    if (turning) {
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
    }
    if (asks) {
      const long at = (token * HEADS + head) * DIM + lane;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        queries[at + 32 * i] = T(value[i]);
      }
    } else {
      const int position = positions[token];
      const long slot = long(table[starts[token] + position / PAGE]) * PAGE + position % PAGE;
      const long at = (slot * KV_HEADS + own) * DIM + lane;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        if (turning) {
          writable<T>(key_pool)[at + 32 * i] = T(value[i]);
        } else {
          writable<T>(value_pool)[at + 32 * i] = T(value[i]);
        }
      }
    }
  }
  if (unit == 0 && lane < 8) {
    done[lane] = 0.0f;
  }
}
