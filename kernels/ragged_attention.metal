// Attention of packed queries over the extents of a token pool, in float32, by an online softmax.
//
// A threadgroup takes one tile: up to PAIRS pairs of query and head, of one row, which share a key/value head; and one
// split of the keys that any of them sees. It goes through these in blocks of 32: each simdgroup scores its own pairs
// against a key a lane, then every thread adds the weighted values up, for four dimensions of a quarter of the pairs.
//
// Constants: the types T of queries, keys and values and OUT of outputs; D (64, 128 or 256; so many threads); HEADS;
// KV_HEADS; PAIRS; SPLIT, whether the keys are split, so that `combine` must follow.

METAL_FUNC float dot4(float4 a, float4 b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

METAL_FUNC float4 scaled4(float4 a, float by) {
  a.x *= by;
  a.y *= by;
  a.z *= by;
  a.w *= by;
  return a;
}

METAL_FUNC float4 added4(float4 a, float4 b, float times) {
  a.x += b.x * times;
  a.y += b.y * times;
  a.z += b.z * times;
  a.w += b.w * times;
  return a;
}

kernel void attend(
    const device T* queries,    // [N, HEADS, D]
    const device T* keys,       // [slots, KV_HEADS, D]
    const device T* values,     // [slots, KV_HEADS, D]
    const device int* tiles,    // [tiles, 4]: first query, count of queries, extent, length of the row
    const device int* sees,     // [N, 2]: the first and the last position that a query sees
    const device float* scale,  // [1]
    device OUT* outputs,        // [N, HEADS, splits, D]; of a split, not yet divided by its total
    device float* shares) {     // [N, HEADS, splits, 2]: a split's highest score and its total; not written if !SPLIT
  constexpr int GROUP = HEADS / KV_HEADS;
  constexpr float LOWEST = -1e30f;      // of scores; finite, so that no difference of two is a NaN
  constexpr int KEYS = 32;              // in a block: one for each lane
  constexpr int OWN = PAIRS * 32 / D;   // pairs that a simdgroup scores
  constexpr int FOURS = D / 4;          // a vector is read in fours
  constexpr int STAGED = 16;            // fours of a key that lie in threadgroup memory at a time
  constexpr int ROW = STAGED + 1;       // one more, so that lanes read from different banks
  constexpr int HELD = PAIRS / 4;       // pairs whose outputs a thread adds up

  threadgroup float4 query[PAIRS * FOURS];
  threadgroup float4 key[KEYS * ROW];
  threadgroup float weights[PAIRS * KEYS];
  threadgroup float rescale[PAIRS];
  threadgroup float totals[PAIRS];

  const int me = int(thread_position_in_threadgroup.x);
  const int lane = int(thread_index_in_simdgroup);
  const int own = int(simdgroup_index_in_threadgroup) * OWN;
  const int tile = int(threadgroup_position_in_grid.x) * 4;
  const int kv = int(threadgroup_position_in_grid.y);
  const int split = int(threadgroup_position_in_grid.z);
  const int splits = int(threadgroups_per_grid.z);
  const int first = tiles[tile];
  const int pairs = tiles[tile + 1] * GROUP;
  const int extent = tiles[tile + 2];
  const int length = tiles[tile + 3];

  // The keys that any query of the tile sees, and this split's share of them.
  int lowest = length;
  int highest = -1;
  for (int i = first; i < first + tiles[tile + 1]; i++) {
    lowest = min(lowest, sees[2 * i]);
    highest = max(highest, sees[2 * i + 1]);
  }
  highest = min(highest, length - 1);
  const int blocks = (highest - lowest + KEYS) / KEYS;
  const int share = (blocks + splits - 1) / splits * KEYS;
  const int begin = lowest + split * share;
  const int end = min(highest + 1, begin + share);

  const float factor = scale[0] * 1.44269504f;  // scores in powers of two
  for (int i = me; i < PAIRS * FOURS; i += D) {
    const int pair = i / FOURS;
    const int head = kv * GROUP + pair % GROUP;
    // A pair too many repeats the last one; nobody reads what comes of it.
    const long token = first + min(pair, pairs - 1) / GROUP;
    query[i] = scaled4(load4(queries, (token * HEADS + head) * D + i % FOURS * 4), factor);
  }

  int from[OWN];
  int to[OWN];
  float peak[OWN];
  float total[OWN];
#pragma unroll
  for (int o = 0; o < OWN; o++) {
    const int token = first + min(own + o, pairs - 1) / GROUP;
    from[o] = sees[2 * token];
    to[o] = sees[2 * token + 1];
    peak[o] = LOWEST;
    total[o] = 0.0f;
  }
  const int held = me / FOURS * HELD;
  const int column = me % FOURS * 4;
  float4 sums[HELD];
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    sums[h].x = sums[h].y = sums[h].z = sums[h].w = 0.0f;
  }

  for (int block = begin; block < end; block += KEYS) {
    const int count = min(KEYS, end - block);
    float scores[OWN];
#pragma unroll
    for (int o = 0; o < OWN; o++) {
      scores[o] = 0.0f;
    }
    for (int part = 0; part < FOURS; part += STAGED) {
      if (part > 0) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      for (int i = me; i < count * STAGED; i += D) {
        const long slot = extent + block + i / STAGED;
        key[i / STAGED * ROW + i % STAGED] = load4(keys, (slot * KV_HEADS + kv) * D + (part + i % STAGED) * 4);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (lane < count) {
        for (int four = 0; four < STAGED; four++) {
          const float4 k = key[lane * ROW + four];
#pragma unroll
          for (int o = 0; o < OWN; o++) {
            scores[o] += dot4(query[(own + o) * FOURS + part + four], k);
          }
        }
      }
    }
#pragma unroll
    for (int o = 0; o < OWN; o++) {
      const int position = block + lane;
      const bool visible = lane < count && position >= from[o] && position <= to[o];
      const float highest_score = max(peak[o], simd_max(visible ? scores[o] : LOWEST));
      const float weight = visible ? exp2(scores[o] - highest_score) : 0.0f;
      const float shrink = exp2(peak[o] - highest_score);
      total[o] = total[o] * shrink + simd_sum(weight);
      peak[o] = highest_score;
      weights[(own + o) * KEYS + lane] = weight;
      if (lane == 0) {
        rescale[own + o] = shrink;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (int h = 0; h < HELD; h++) {
      sums[h] = scaled4(sums[h], rescale[held + h]);
    }
    for (int i = 0; i < count; i++) {
      const long slot = extent + block + i;
      const float4 value = load4(values, (slot * KV_HEADS + kv) * D + column);
#pragma unroll
      for (int h = 0; h < HELD; h++) {
        sums[h] = added4(sums[h], value, weights[(held + h) * KEYS + i]);
      }
    }
  }

#pragma unroll
  for (int o = 0; o < OWN; o++) {
    const int pair = own + o;
    if (lane == 0) {
      totals[pair] = total[o];
      if (SPLIT && pair < pairs) {
        const long at = ((first + pair / GROUP) * HEADS + kv * GROUP + pair % GROUP) * splits + split;
        shares[2 * at] = peak[o];
        shares[2 * at + 1] = total[o];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    const int pair = held + h;
    if (pair < pairs) {
      const long at = ((first + pair / GROUP) * HEADS + kv * GROUP + pair % GROUP) * splits + split;
      const float4 result = SPLIT ? sums[h] : scaled4(sums[h], 1.0f / totals[pair]);
      outputs[at * D + column] = OUT(result.x);
      outputs[at * D + column + 1] = OUT(result.y);
      outputs[at * D + column + 2] = OUT(result.z);
      outputs[at * D + column + 3] = OUT(result.w);
    }
  }
}

// What the splits of a pair of query and head come to. A thread takes one dimension.
kernel void combine(
    const device float* sums,    // [N, HEADS, splits, D]
    const device float* shares,  // [N, HEADS, splits, 2]
    const device int* splits,    // [1]
    device T* outputs) {         // [N, HEADS, D]
  constexpr float LOWEST = -1e30f;
  const int count = splits[0];
  const long pair = threadgroup_position_in_grid.x;
  const int column = int(thread_position_in_threadgroup.x);
  float peak = LOWEST;
  for (int i = 0; i < count; i++) {
    peak = max(peak, shares[2 * (pair * count + i)]);
  }
  float total = 0.0f;
  float sum = 0.0f;
  for (int i = 0; i < count; i++) {
    const long part = pair * count + i;
    const float factor = exp2(shares[2 * part] - peak);
    total += shares[2 * part + 1] * factor;
    sum += sums[part * D + column] * factor;
  }
  outputs[pair * D + column] = T(sum / total);
}
