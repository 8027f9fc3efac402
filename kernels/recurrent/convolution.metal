// A causal convolution over packed rows, each with its own window of past inputs. A thread takes four channels of one
// packed token, or copies them of one input that the round leaves.
//
// Before a recurrent layer SiLU follows, and the norm of each head of queries and keys. A convolution that is a layer by
// itself is GATED: a token's projection holds three numbers for each channel, of which the first and the third multiply
// to its input, and the second multiplies its output.
//
// Constants: the type T; WIDTH of a token's projection, which begins with its channels: KEYS of queries, as many of keys,
// VALUES of values, which are all where it is GATED; DK, the size of a head of keys, a power of two from 16 to 128;
// LOOKS, of which the last is a token's own input.

METAL_FUNC float silu(float x) {
  return x / (1.0f + exp(min(-x, 80.0f)));  // never infinite, which fast math would not allow for
}

METAL_FUNC float4 product4(float4 a, float4 b) {
  a.x *= b.x;
  a.y *= b.y;
  a.z *= b.z;
  a.w *= b.w;
  return a;
}

kernel void convolve(
    const device T* x,          // [N, WIDTH]
    const device T* weight,     // [CHANNELS, LOOKS]
    const device T* inputs,     // [P, CHANNELS]
    const device int* looks,    // [N, LOOKS]: what a token looks at: seat * (LOOKS - 1) + place in the seat's window, and
                                // behind all windows the round's own inputs
    const device int* kept,     // [P']: the inputs that the round leaves, counted likewise
    const device int* table,    // [B, 9]: Steps.table
    const device int* replay,   // [B]: accepted steps of each seat's tape
    const device int* sizes,    // [8], of which the first two are N and B
    device T* queries,          // [N, KEYS]; not written if GATED
    device T* keys,             // [N, KEYS]; likewise
    device T* values,           // [N, VALUES]
    device T* next_inputs) {    // [P', CHANNELS]
  constexpr int CHANNELS = 2 * KEYS + VALUES;
  constexpr int WINDOW = LOOKS - 1;
  const int four = int(threadgroup_position_in_grid.x * threads_per_threadgroup.x + thread_position_in_threadgroup.x);
  const bool mine = four * 4 < CHANNELS;  // a thread too many goes along, for the lanes' sums, and writes nothing
  const int channel = min(four * 4, CHANNELS - 4);
  const int row = int(threadgroup_position_in_grid.y);
  const int tokens = sizes[0];
  const int own = sizes[1] * WINDOW;
  const bool copies = row >= tokens;
  float4 sum;
  sum.x = sum.y = sum.z = sum.w = 0.0f;
#pragma unroll
  for (int tap = 0; tap < LOOKS; tap++) {
    if (!copies || tap == 0) {
      const int look = copies ? kept[row - tokens] : looks[row * LOOKS + tap];
      float4 value;
      value.x = value.y = value.z = value.w = 0.0f;
      if (look >= own) {
        value = load4(x, long(look - own) * WIDTH + channel);
        if (GATED) {  // rounded as what is kept, so that it does not matter which round a row's inputs came in
          value = product4(value, load4(x, long(look - own) * WIDTH + 2 * CHANNELS + channel));
          value.x = float(T(value.x));
          value.y = float(T(value.y));
          value.z = float(T(value.z));
          value.w = float(T(value.w));
        }
      } else {
        const int seat = look / WINDOW;
        if (table[seat * 9 + 3] >= 0) {
          const long place = table[seat * 9 + 4] + replay[seat] + look % WINDOW;
          value = load4(inputs, place * CHANNELS + channel);
        }
      }
      if (copies) {
        sum = value;
      } else {
        sum.x += value.x * float(weight[channel * LOOKS + tap]);
        sum.y += value.y * float(weight[(channel + 1) * LOOKS + tap]);
        sum.z += value.z * float(weight[(channel + 2) * LOOKS + tap]);
        sum.w += value.w * float(weight[(channel + 3) * LOOKS + tap]);
      }
    }
  }
  if (copies) {
    if (mine) {
      const long at = long(row - tokens) * CHANNELS + channel;
      next_inputs[at] = T(sum.x);
      next_inputs[at + 1] = T(sum.y);
      next_inputs[at + 2] = T(sum.z);
      next_inputs[at + 3] = T(sum.w);
    }
  } else if (GATED) {
    const float4 gate = load4(x, long(row) * WIDTH + CHANNELS + channel);
    if (mine) {
      const long at = long(row) * CHANNELS + channel;
      values[at] = T(sum.x * gate.x);
      values[at + 1] = T(sum.y * gate.y);
      values[at + 2] = T(sum.z * gate.z);
      values[at + 3] = T(sum.w * gate.w);
    }
  } else {
    sum.x = silu(sum.x);
    sum.y = silu(sum.y);
    sum.z = silu(sum.z);
    sum.w = silu(sum.w);
    float squares = sum.x * sum.x + sum.y * sum.y + sum.z * sum.z + sum.w * sum.w;
#pragma unroll
    for (int mask = DK / 8; mask > 0; mask /= 2) {
      squares += simd_shuffle_xor(squares, mask);
    }
    // Of length one, and queries scaled by 1 / sqrt(DK) besides.
    const float unit = rsqrt(squares + 1e-6f);
    const float factor = channel < KEYS ? unit * rsqrt(float(DK)) : channel < 2 * KEYS ? unit : 1.0f;
    if (mine) {
      if (channel < KEYS) {
        const long at = long(row) * KEYS + channel;
        queries[at] = T(sum.x * factor);
        queries[at + 1] = T(sum.y * factor);
        queries[at + 2] = T(sum.z * factor);
        queries[at + 3] = T(sum.w * factor);
      } else if (channel < 2 * KEYS) {
        const long at = long(row) * KEYS + channel - KEYS;
        keys[at] = T(sum.x * factor);
        keys[at + 1] = T(sum.y * factor);
        keys[at + 2] = T(sum.z * factor);
        keys[at + 3] = T(sum.w * factor);
      } else {
        const long at = long(row) * VALUES + channel - 2 * KEYS;
        values[at] = T(sum.x);
        values[at + 1] = T(sum.y);
        values[at + 2] = T(sum.z);
        values[at + 3] = T(sum.w);
      }
    }
  }
}
