// Attention of packed queries over the pages of a token pool, in float32, by an online softmax.
//
// A threadgroup of THREADS takes one tile: up to PAIRS pairs of query and head, of one row, which share a key/value
// head; and one split of the keys that any of them sees. It goes through these in blocks of 32, which come through
// threadgroup memory in parts: those of the keys, each with some of the dimensions, then those of the values, each with
// some of the keys. While a part is worked on, every thread already fetches its share of the next one, so that nobody
// waits for memory. Blocks begin at multiples of 32 of a row's positions, so each lies in one page.
//
// To score, four pairs have a team of lanes, each with its own keys of the block. To add the weighted values up, a
// thread has four dimensions of HELD pairs.
//
// Queries stay in threadgroup memory as a whole, but for those of 512 dimensions, for which Metal has too little of it:
// these come in parts, too, beside those of the keys, anew for each block.
//
// Constants: the types T of queries, keys and values, W of a pool's words and OUT of outputs; D (64, 128, 256 or 512);
// HEADS; KV_HEADS; THREADS; PAIRS, with at least four to a thread of a vector's fours; PAGE; STEP, how many fours of a
// key are scored at a time: more need more registers than there are; SPLIT, whether the keys are split, so that
// `combine` must follow; SINKS, whether each head has a sink, a score that takes its share of the weights and has no
// value; CAPPED, whether scores are capped.

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

// cap * tanh(score / cap), by powers of two, as scores are. Beyond nine, float32 cannot tell tanh from one.
METAL_FUNC float capped(float score, float cap) {
  const float x = min(max(score / cap, -9.0f), 9.0f);
  return cap - cap * 2.0f / (exp2(x * 2.88539008f) + 1.0f);
}

kernel void attend(
    const device T* queries,    // [N, HEADS, D]
    const device W* key_pool,   // words of [pages, PAGE, KV_HEADS, D]
    const device W* value_pool, // likewise
    const device float* after,  // [8], of the pool's last write
    const device int* table,    // the pages of all rows, each row's in order of its positions
    const device int* tiles,    // [tiles, 4]: first query, count of queries, first page in the table, length of the row
    const device int* sees,     // [N, 2]: the first and the last position that a query sees
    const device float* scale,  // [8]: the factor of scores, and where they are capped how far they reach
    const device T* sinks,      // [HEADS], not read if !SINKS
    device OUT* outputs,        // [N, HEADS, splits, D]; of a split, not yet divided by its total
    device float* shares) {     // [N, HEADS, splits, 2]: a split's highest score and its total; not written if !SPLIT
  constexpr int GROUP = HEADS / KV_HEADS;
  constexpr float LOWEST = -1e30f;             // of scores; finite, so that no difference of two is a NaN
  constexpr int FOURS = D / 4;                 // a vector is read in fours
  constexpr int KEYS = 32;                     // of a block
  constexpr int PART = 16;                     // fours of each key in a part
  constexpr int KEY_ROW = PART + 1;            // one more, so that lanes read from different banks
  constexpr int PARTS = FOURS / PART;          // of a block's keys, and as many of its values
  constexpr bool WHOLE = D <= 256;             // whether queries stay as a whole
  constexpr int ASKED = WHOLE ? FOURS : PART;  // fours of each query that are there
  constexpr int QUERY_ROW = ASKED + 1;         // one more, so that teams read from different banks
  constexpr int VALUES = KEYS / PARTS;         // in a part of the values
  constexpr int FETCHED = KEYS * PART / THREADS;  // fours of a part that a thread fetches
  constexpr int TEAMS = PAIRS / 4;
  constexpr int MEMBERS = THREADS / TEAMS;     // of a team, at most a simdgroup
  constexpr int OWN = KEYS / MEMBERS;          // keys of the block that a lane scores
  constexpr int HELD = PAIRS * FOURS / THREADS;
  constexpr int CARRIED = PAIRS * PART / THREADS;  // fours of a part of the queries that a thread fetches

  threadgroup float4 query[PAIRS * QUERY_ROW];
  threadgroup float4 part[KEYS * KEY_ROW];
  threadgroup float4 weights[KEYS * TEAMS];
  threadgroup float rescale[PAIRS];
  threadgroup float totals[PAIRS];

  const device T* keys = elements<T>(key_pool);
  const device T* values = elements<T>(value_pool);
  const int me = int(thread_position_in_threadgroup.x);
  const int team = me / MEMBERS;
  const int lane = me % MEMBERS;
  const int held = me / FOURS * HELD;
  const int column = me % FOURS;
  const int tile = int(threadgroup_position_in_grid.x) * 4;
  const int kv = int(threadgroup_position_in_grid.y);
  const int split = int(threadgroup_position_in_grid.z);
  const int splits = int(threadgroups_per_grid.z);
  const int first = tiles[tile];
  const int pairs = tiles[tile + 1] * GROUP;
  const int pages = tiles[tile + 2];
  const int length = tiles[tile + 3];

  // The keys that any query of the tile sees, and this split's share of them.
  int lowest = length;
  int highest = -1;
  for (int i = first; i < first + tiles[tile + 1]; i++) {
    lowest = min(lowest, sees[2 * i]);
    highest = max(highest, sees[2 * i + 1]);
  }
  highest = min(highest, length - 1);
  lowest -= lowest % KEYS;
  const int blocks = (highest - lowest + KEYS) / KEYS;
  const int share = (blocks + splits - 1) / splits * KEYS;
  const int begin = lowest + split * share;
  const int end = min(highest + 1, begin + share);

  // A pair too many repeats the last one; nobody reads what comes of it.
  const float factor = scale[0] * 1.44269504f;  // scores in powers of two
  if (WHOLE) {
    for (int i = me; i < PAIRS * FOURS; i += THREADS) {
      const int pair = min(i / FOURS, pairs - 1);
      const long at = (long(first + pair / GROUP) * HEADS + kv * GROUP + pair % GROUP) * D;
      query[i / FOURS * QUERY_ROW + i % FOURS] = scaled4(load4(queries, at + i % FOURS * 4), factor);
    }
  }
  int from[4];
  int to[4];
  float peak[4];
  float total[4];
#pragma unroll
  for (int p = 0; p < 4; p++) {
    const int token = first + min(team * 4 + p, pairs - 1) / GROUP;
    from[p] = sees[2 * token];
    to[p] = min(sees[2 * token + 1], end - 1);
    peak[p] = LOWEST;
    total[p] = 0.0f;
    if (SINKS && split == 0) {  // as if a key had been seen whose value is zero
      peak[p] = float(sinks[kv * GROUP + min(team * 4 + p, pairs - 1) % GROUP]) * 1.44269504f;
      total[p] = 1.0f;
    }
  }
  float4 sums[HELD];
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    sums[h].x = sums[h].y = sums[h].z = sums[h].w = 0.0f;
  }

  float4 fetched[FETCHED];
  int next = 0;  // the slot of the next block's first key; a long takes registers that are not there
  if (begin < end) {
    next = table[pages + begin / PAGE] * PAGE + begin % PAGE;
#pragma unroll
    for (int i = 0; i < FETCHED; i++) {
      const int at = me + i * THREADS;
      const long slot = next + min(at / PART, end - 1 - begin);  // a key too many repeats the last one, unseen
      fetched[i] = load4(keys, (slot * KV_HEADS + kv) * D + at % PART * 4);
    }
  }
  for (int block = begin; block < end; block += KEYS) {
    const int here = next;
    const int last = min(KEYS, end - block) - 1;
    const int following = block + KEYS < end ? block + KEYS : block;  // the last block is fetched again, unused
    const int last_following = min(KEYS, end - following) - 1;
    next = table[pages + following / PAGE] * PAGE + following % PAGE;
    float scores[4 * OWN];
#pragma unroll
    for (int i = 0; i < 4 * OWN; i++) {
      scores[i] = 0.0f;
    }
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
      for (int i = 0; i < FETCHED; i++) {
        const int at = me + i * THREADS;
        part[at / PART * KEY_ROW + at % PART] = fetched[i];
      }
      if (!WHOLE) {
#pragma unroll
        for (int i = 0; i < CARRIED; i++) {
          const int at = me + i * THREADS;
          const int pair = min(at / PART, pairs - 1);
          const long own = (long(first + pair / GROUP) * HEADS + kv * GROUP + pair % GROUP) * D;
          const float4 four = load4(queries, own + (p * PART + at % PART) * 4);
          query[at / PART * QUERY_ROW + at % PART] = scaled4(four, factor);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
      for (int i = 0; i < FETCHED; i++) {
        const int at = me + i * THREADS;
        if (p + 1 < PARTS) {
          const long slot = here + min(at / PART, last);
          fetched[i] = load4(keys, (slot * KV_HEADS + kv) * D + ((p + 1) * PART + at % PART) * 4);
        } else {
          const long slot = here + min(at / FOURS, last);
          fetched[i] = load4(values, (slot * KV_HEADS + kv) * D + at % FOURS * 4);
        }
      }
#pragma unroll 1
      for (int some = 0; some < PART; some += STEP) {
#pragma unroll
        for (int s = 0; s < STEP; s++) {
          const int four = some + s;
          float4 q[4];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            q[i] = query[(team * 4 + i) * QUERY_ROW + (WHOLE ? p * PART : 0) + four];
          }
#pragma unroll
          for (int o = 0; o < OWN; o++) {
            const float4 key = part[(lane + o * MEMBERS) * KEY_ROW + four];
#pragma unroll
            for (int i = 0; i < 4; i++) {
              scores[o * 4 + i] += dot4(q[i], key);
            }
          }
        }
      }
    }

#pragma unroll
    for (int i = 0; i < 4; i++) {
      float most = peak[i];
#pragma unroll
      for (int o = 0; o < OWN; o++) {
        const int position = block + lane + o * MEMBERS;
        if (CAPPED) {
          scores[o * 4 + i] = capped(scores[o * 4 + i], scale[1] * 1.44269504f);
        }
        if (position < from[i] || position > to[i]) {
          scores[o * 4 + i] = LOWEST;
        }
        most = max(most, scores[o * 4 + i]);
      }
#pragma unroll
      for (int mask = MEMBERS / 2; mask > 0; mask /= 2) {
        most = max(most, simd_shuffle_xor(most, mask));
      }
      float sum = 0.0f;
#pragma unroll
      for (int o = 0; o < OWN; o++) {
        // While a pair has seen no key, its highest score is no score, and what it does not see must weigh nothing.
        const float score = scores[o * 4 + i];
        scores[o * 4 + i] = score > LOWEST ? exp2(score - most) : 0.0f;
        sum += scores[o * 4 + i];
      }
#pragma unroll
      for (int mask = MEMBERS / 2; mask > 0; mask /= 2) {
        sum += simd_shuffle_xor(sum, mask);
      }
      const float shrink = exp2(peak[i] - most);
      total[i] = total[i] * shrink + sum;
      peak[i] = most;
      if (lane == 0) {
        rescale[team * 4 + i] = shrink;
      }
    }
#pragma unroll
    for (int o = 0; o < OWN; o++) {
      float4 weight;
      weight.x = scores[o * 4];
      weight.y = scores[o * 4 + 1];
      weight.z = scores[o * 4 + 2];
      weight.w = scores[o * 4 + 3];
      weights[(lane + o * MEMBERS) * TEAMS + team] = weight;
    }

#pragma unroll
    for (int p = 0; p < PARTS; p++) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
      for (int i = 0; i < FETCHED; i++) {
        part[me + i * THREADS] = fetched[i];
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
      for (int i = 0; i < FETCHED; i++) {
        const int at = me + i * THREADS;
        if (p + 1 < PARTS) {
          const long slot = here + min((p + 1) * VALUES + at / FOURS, last);
          fetched[i] = load4(values, (slot * KV_HEADS + kv) * D + at % FOURS * 4);
        } else {
          const long slot = next + min(at / PART, last_following);
          fetched[i] = load4(keys, (slot * KV_HEADS + kv) * D + at % PART * 4);
        }
      }
      if (p == 0) {
#pragma unroll
        for (int h = 0; h < HELD; h++) {
          sums[h] = scaled4(sums[h], rescale[held + h]);
        }
      }
#pragma unroll
      for (int i = 0; i < VALUES; i++) {
        const float4 value = part[i * FOURS + column];
#pragma unroll
        for (int h = 0; h < HELD; h += 4) {
          const float4 weight = weights[(p * VALUES + i) * TEAMS + (held + h) / 4];
          sums[h] = added4(sums[h], value, weight.x);
          sums[h + 1] = added4(sums[h + 1], value, weight.y);
          sums[h + 2] = added4(sums[h + 2], value, weight.z);
          sums[h + 3] = added4(sums[h + 3], value, weight.w);
        }
      }
    }
  }

  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int pair = team * 4 + i;
      totals[pair] = total[i];
      if (SPLIT && pair < pairs) {
        const long at = (long(first + pair / GROUP) * HEADS + kv * GROUP + pair % GROUP) * splits + split;
        shares[2 * at] = peak[i];
        shares[2 * at + 1] = total[i];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    const int pair = held + h;
    if (pair < pairs) {
      const long at = (long(first + pair / GROUP) * HEADS + kv * GROUP + pair % GROUP) * splits + split;
      const float4 result = SPLIT ? sums[h] : scaled4(sums[h], 1.0f / totals[pair]);
      outputs[at * D + column * 4] = OUT(result.x);
      outputs[at * D + column * 4 + 1] = OUT(result.y);
      outputs[at * D + column * 4 + 2] = OUT(result.z);
      outputs[at * D + column * 4 + 3] = OUT(result.w);
    }
  }
}

// What the splits of a pair of query and head come to. A simdgroup takes one pair.
kernel void combine(
    const device float* sums,    // [pairs, splits, D]
    const device float* shares,  // [pairs, splits, 2]
    const device int* sizes,     // [2]: how many pairs, how many splits
    device T* outputs) {         // [pairs, D]
  constexpr float LOWEST = -1e30f;
  constexpr int COLUMNS = D / 32;  // of a lane
  const int lane = int(thread_index_in_simdgroup);
  const int simdgroups = int(threads_per_threadgroup.x) / 32;
  const int wanted = int(threadgroup_position_in_grid.x) * simdgroups + int(simdgroup_index_in_threadgroup);
  const int pair = min(wanted, sizes[0] - 1);  // one too many goes along, and writes nothing
  const int splits = sizes[1];
  const long begin = long(pair) * splits;

  float peak = LOWEST;
  for (int i = lane; i < splits; i += 32) {
    peak = max(peak, shares[2 * (begin + i)]);
  }
  peak = simd_max(peak);
  float total = 0.0f;
  float result[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    result[c] = 0.0f;
  }
  for (int i = 0; i < splits; i += 32) {
    const long own = begin + min(i + lane, splits - 1);
    const float factor = i + lane < splits ? exp2(shares[2 * own] - peak) : 0.0f;
    total += shares[2 * own + 1] * factor;
    const int some = min(32, splits - i);
#pragma unroll 4
    for (int j = 0; j < some; j++) {
      const float weight = simd_shuffle(factor, j);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        result[c] += sums[(begin + i + j) * D + c * 32 + lane] * weight;
      }
    }
  }
  total = simd_sum(total);
  if (wanted < sizes[0]) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      outputs[long(pair) * D + c * 32 + lane] = T(result[c] / total);
    }
  }
}
