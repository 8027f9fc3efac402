// Quantised matrix product for a few rows: more than a matrix-vector product is made for, too few for matrix tiles.
//
// A simdgroup takes OUTPUTS lines of the weight and ROWS rows of x, so that what it unpacks serves all the rows and what
// it reads of x serves all the lines. Lanes go through a line word by word, and add up what they have at the end.
//
// Constants: the type T; K, the length of a line; LINES, how many there are; BITS (4 or 8) and GROUP of the affine
// quantisation; OUTPUTS; ROWS.

METAL_FUNC float dot4(float4 a, float4 b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

METAL_FUNC float4 unpacked4(uint word, int bits, float scale, float bias) {
  const uint mask = (1u << bits) - 1u;
  float4 four;
  four.x = float(word & mask) * scale + bias;
  four.y = float(word >> bits & mask) * scale + bias;
  four.z = float(word >> 2 * bits & mask) * scale + bias;
  four.w = float(word >> 3 * bits & mask) * scale + bias;
  return four;
}

kernel void quantized_matmul(
    const device T* x,       // [N, K]
    const device uint* w,    // [LINES, K * BITS / 32]
    const device T* scales,  // [LINES, K / GROUP]
    const device T* biases,  // [LINES, K / GROUP]
    const device int* rows,  // [8], of which the first is N
    device T* outputs) {     // [N, LINES]
  constexpr int EACH = 32 / BITS;  // weights in a word
  constexpr int WORDS = K / EACH;
  constexpr int FOURS = EACH / 4;

  const int lane = int(thread_index_in_simdgroup);
  const int simdgroups = int(threads_per_threadgroup.x) / 32;
  const int line = (int(threadgroup_position_in_grid.x) * simdgroups + int(simdgroup_index_in_threadgroup)) * OUTPUTS;
  const int row = int(threadgroup_position_in_grid.y) * ROWS;
  const int count = rows[0];

  float sums[OUTPUTS * ROWS];
#pragma unroll
  for (int i = 0; i < OUTPUTS * ROWS; i++) {
    sums[i] = 0.0f;
  }
  for (int word = lane; word < WORDS; word += 32) {
    float4 weights[OUTPUTS * FOURS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      const long from = min(line + o, LINES - 1);  // a line too many repeats the last one, and is not written
      const uint packed = w[from * WORDS + word];
      const long group = from * (K / GROUP) + word * EACH / GROUP;
      const float scale = float(scales[group]);
      const float bias = float(biases[group]);
#pragma unroll
      for (int i = 0; i < FOURS; i++) {
        weights[o * FOURS + i] = unpacked4(packed >> 4 * i * BITS, BITS, scale, bias);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const long from = long(min(row + r, count - 1)) * K + word * EACH;
#pragma unroll
      for (int i = 0; i < FOURS; i++) {
        const float4 four = load4(x, from + 4 * i);
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
          sums[o * ROWS + r] += dot4(weights[o * FOURS + i], four);
        }
      }
    }
  }
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const float sum = simd_sum(sums[o * ROWS + r]);
      if (lane == 0 && line + o < LINES && row + r < count) {
        outputs[long(row + r) * LINES + line + o] = T(sum);
      }
    }
  }
}
