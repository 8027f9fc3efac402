// The gated delta rule of packed rows with late commit: replay the accepted steps of a row's tape, then step through
// this round, reading and writing its state once.
//
// LANES lanes hold one line S[dv, :] of a head's state in registers, in fours, so a simdgroup steps 32 / LANES lines at
// a time; and a threadgroup takes the lines of one head of one seat that its threads have room for.
//
// Constants: the type T of outputs and of taped keys; HK and HV heads of keys and values; their sizes DK (a multiple
// of 4 * LANES) and DV; LANES (a power of two).

METAL_FUNC float dot4(float4 a, float4 b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// decay * a + b * times
METAL_FUNC float4 stepped4(float4 a, float decay, float4 b, float times) {
  a.x = a.x * decay + b.x * times;
  a.y = a.y * decay + b.y * times;
  a.z = a.z * decay + b.z * times;
  a.w = a.w * decay + b.w * times;
  return a;
}

METAL_FUNC void store4(device float* to, long index, float4 value) {
  to[index] = value.x;
  to[index + 1] = value.y;
  to[index + 2] = value.z;
  to[index + 3] = value.w;
}

kernel void gated_delta(
    const device T* q,                // [N, HK, DK]
    const device T* k,                // [N, HK, DK]
    const device T* v,                // [N, HV, DV]
    const device float* decay,        // [N, HV]
    const device T* beta,             // [N, HV]
    const device float* state,        // [P, HV, DV, DK]
    const device T* tape_k,           // [M, HK, DK]
    const device float* tape_delta,   // [M, HV, DV]
    const device float* tape_decay,   // [M, HV]
    const device int* table,          // [B, 9]: Steps.table
    const device int* replay,         // [B]: accepted steps of each seat's tape
    device T* outputs,                // [N, HV, DV]
    device float* next_state,         // [B, HV, DV, DK]
    device T* next_k,                 // [M', HK, DK]
    device float* next_delta,         // [M', HV, DV]
    device float* next_decay) {       // [M', HV]
  constexpr int FOURS = DK / (4 * LANES);  // that a lane holds; neighbouring lanes hold neighbouring fours
  constexpr int GROUP = HV / HK;

  const int me = int(thread_position_in_threadgroup.x);
  const int lane = me % LANES;
  const int lines = int(threads_per_threadgroup.x) / LANES;
  const int line = int(threadgroup_position_in_grid.x) * lines + me / LANES;
  const int head = int(threadgroup_position_in_grid.y);
  const int seat = int(threadgroup_position_in_grid.z);
  const bool mine = line < DV;  // a line too many goes along, for the lanes' sums, and writes nothing
  const int dv = mine ? line : DV - 1;
  const int key_head = head / GROUP;
  const bool first_line = line == 0 && head % GROUP == 0;

  const int query = table[seat * 9];
  const int count = table[seat * 9 + 1];
  const bool final = table[seat * 9 + 2] != 0;
  const int origin = table[seat * 9 + 3];
  const int origin_tape = table[seat * 9 + 5];
  const int tape = table[seat * 9 + 8];

  float4 s[FOURS];
#pragma unroll
  for (int i = 0; i < FOURS; i++) {
    s[i].x = s[i].y = s[i].z = s[i].w = 0.0f;
    if (origin >= 0) {
      s[i] = load4(state, ((long(origin) * HV + head) * DV + dv) * DK + (i * LANES + lane) * 4);
    }
  }

  const int accepted = replay[seat];
#pragma unroll 4
  for (int t = 0; t < accepted; t++) {
    const long step = origin_tape + t;
    const float step_decay = tape_decay[step * HV + head];
    const float delta = tape_delta[(step * HV + head) * DV + dv];
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
      const float4 key = load4(tape_k, (step * HK + key_head) * DK + (i * LANES + lane) * 4);
      s[i] = stepped4(s[i], step_decay, key, delta);
    }
  }

  // A state that commits late is the one before this round's steps.
  const long line_begin = ((long(seat) * HV + head) * DV + dv) * DK;
  if (mine && !final) {
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
      store4(next_state, line_begin + (i * LANES + lane) * 4, s[i]);
    }
  }

  // What the next step reads is fetched while this one is worked on.
  float4 fetched_key[FOURS];
  float4 fetched_query[FOURS];
#pragma unroll
  for (int i = 0; i < FOURS; i++) {
    const long at = (long(query) * HK + key_head) * DK + (i * LANES + lane) * 4;
    fetched_key[i] = load4(k, at);
    fetched_query[i] = load4(q, at);
  }
  float fetched_decay = decay[long(query) * HV + head];
  float fetched_beta = float(beta[long(query) * HV + head]);
  float fetched_value = float(v[(long(query) * HV + head) * DV + dv]);

  for (int t = 0; t < count; t++) {
    const long token = query + t;
    const long next = min(query + t + 1, query + count - 1);
    const float step_decay = fetched_decay;
    const float step_beta = fetched_beta;
    const float value = fetched_value;
    float4 key[FOURS];
    float4 asked[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
      key[i] = fetched_key[i];
      asked[i] = fetched_query[i];
      const long at = (next * HK + key_head) * DK + (i * LANES + lane) * 4;
      fetched_key[i] = load4(k, at);
      fetched_query[i] = load4(q, at);
    }
    fetched_decay = decay[next * HV + head];
    fetched_beta = float(beta[next * HV + head]);
    fetched_value = float(v[(next * HV + head) * DV + dv]);

    float known = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
      known += dot4(s[i], key[i]);
    }
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) {
      known += simd_shuffle_xor(known, mask);
    }
    const float delta = (value - step_decay * known) * step_beta;
    float output = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
      s[i] = stepped4(s[i], step_decay, key[i], delta);
      output += dot4(s[i], asked[i]);
    }
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) {
      output += simd_shuffle_xor(output, mask);
    }
    if (mine && lane == 0) {
      outputs[(token * HV + head) * DV + dv] = T(output);
    }
    if (!final) {
      const long step = tape + t;
      if (mine && lane == 0) {
        next_delta[(step * HV + head) * DV + dv] = delta;
      }
      if (line == 0 && lane == 0) {
        next_decay[step * HV + head] = step_decay;
      }
      if (first_line) {
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
          const long at = (step * HK + key_head) * DK + (i * LANES + lane) * 4;
          next_k[at] = T(key[i].x);
          next_k[at + 1] = T(key[i].y);
          next_k[at + 2] = T(key[i].z);
          next_k[at + 3] = T(key[i].w);
        }
      }
    }
  }
  if (mine && final) {
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
      store4(next_state, line_begin + (i * LANES + lane) * 4, s[i]);
    }
  }
}
