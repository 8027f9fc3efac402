// Quantised matrix products of a few rows: more than a matrix-vector product is made for, too few for large tiles.
//
// A threadgroup takes some lines of the weight and some rows of x. SPLITS of its simdgroups share out the length of the
// same lines, step by step, and add up what they have at the end. What a simdgroup unpacks serves all of its rows, and
// what it reads of x all of its lines. `quantized_matmul` adds up in its lanes and runs everywhere;
// `quantized_matmul_simdgroup` multiplies matrices, which only Metal has.
//
// Each can also send rows through experts: GROUPED. Then `route` names for each threadgroup the expert whose weight it
// takes, and its rows (`route.metal`).
//
// Constants of both: the type T; MODE of the quantisation (0: affine, 1: MXFP4 or MXFP8, 2: NVFP4), its BITS (4 or 8)
// and GROUP; WORDS of a line that a lane reads side by side; SPLITS; GROUPED.

// Numbers of FP8: four bits of exponent, three of mantissa.
METAL_FUNC float fp8(uint bits) {
  const uint exponent = bits >> 3 & 15u;
  const uint mantissa = bits & 7u;
  const float size = float(exponent > 0 ? (8u | mantissa) << (exponent - 1u) : mantissa) * 0.001953125f;
  return (bits & 128u) > 0 ? -size : size;
}

// Numbers of FP4. Twice their sizes (0, 1, 2, 3, 4, 6, 8, 12) are the digits of one word.
METAL_FUNC float fp4(uint bits) {
  const float size = float(0xC8643210u >> 4 * (bits & 7u) & 15u) * 0.5f;
  return (bits & 8u) > 0 ? -size : size;
}

// The number at a place of a word, as it is without its group's scale.
template <int MODE, int BITS>
METAL_FUNC float packed_number(uint word, int place) {
  const uint bits = word >> uint(place * BITS) & ((1u << BITS) - 1u);
  return MODE == 0 ? float(bits) : BITS == 4 ? fp4(bits) : fp8(bits);
}

// The scale of a group: a number of type T, or a byte, which is an exponent or a number of FP8.
template <int MODE, typename T>
METAL_FUNC float scale_of(T scale) {
  return float(scale);
}

template <int MODE>
METAL_FUNC float scale_of(uchar scale) {
  return MODE == 1 ? exp2(float(scale) - 127.0f) : fp8(uint(scale));
}

METAL_FUNC float dot4(float4 a, float4 b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// What is added to a scaled number of a group.
template <int MODE, typename T>
METAL_FUNC float bias_of(T bias) {
  return MODE == 0 ? float(bias) : 0.0f;
}

// Constants besides: LINES and ROWS of a simdgroup.
kernel void quantized_matmul(
    const device T* x,          // [N, K], or [N / choices that share a row, K]
    const device uint* w,       // [LINES, K * BITS / 32], of each expert
    const device T* scales,     // [LINES, K / GROUP], likewise; bytes unless the mode is affine
    const device T* biases,     // as scales; not read unless the mode is affine
    const device int* sizes,    // [8]: rows or choices N, K, lines, choices that share a row of x
    const device int* route,    // [N + 3 * tiles]: choices in order, and of each tile the first, how many, the expert
    device T* outputs) {        // [N, lines]
  constexpr int EACH = 32 / BITS;  // weights in a word
  constexpr int SIMDGROUPS = 4;
  constexpr int ACROSS = SIMDGROUPS / SPLITS * LINES;  // lines of the threadgroup

  threadgroup float partial[SIMDGROUPS * LINES * ROWS];

  const int me = int(thread_position_in_threadgroup.x);
  const int lane = int(thread_index_in_simdgroup);
  const int simdgroup = int(simdgroup_index_in_threadgroup);
  const int length = sizes[1];
  const int lines = sizes[2];
  const int tile = int(threadgroup_position_in_grid.y);
  const int first = GROUPED ? route[sizes[0] + 3 * tile] : tile * ROWS;
  const int count = GROUPED ? route[sizes[0] + 3 * tile + 1] : min(sizes[0] - first, ROWS);
  const int expert = GROUPED ? route[sizes[0] + 3 * tile + 2] : 0;
  const int begin = int(threadgroup_position_in_grid.x) * ACROSS;
  if (count == 0) {
    return;
  }

  int from[ROWS];  // a row too many repeats the last one, and is not written
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int place = first + min(r, count - 1);
    from[r] = (GROUPED ? route[place] / sizes[3] : place) * length;
  }
  long line[LINES];  // likewise
#pragma unroll
  for (int o = 0; o < LINES; o++) {
    line[o] = long(expert) * lines + min(begin + simdgroup / SPLITS * LINES + o, lines - 1);
  }

  float sums[LINES * ROWS];
#pragma unroll
  for (int i = 0; i < LINES * ROWS; i++) {
    sums[i] = 0.0f;
  }
  const int words = length / EACH;
  for (int at = (simdgroup % SPLITS * 32 + lane) * WORDS; at < words; at += SPLITS * 32 * WORDS) {
    uint packed[LINES * WORDS];
#pragma unroll
    for (int o = 0; o < LINES; o++) {
#pragma unroll
      for (int j = 0; j < WORDS; j++) {
        packed[o * WORDS + j] = w[line[o] * words + at + j];
      }
    }
    float scale[LINES];
    float bias[LINES];
#pragma unroll
    for (int j = 0; j < WORDS; j++) {
      if (j * EACH % GROUP == 0) {
#pragma unroll
        for (int o = 0; o < LINES; o++) {
          const long group = line[o] * (length / GROUP) + (at + j) * EACH / GROUP;
          scale[o] = scale_of<MODE>(scales[group]);
          bias[o] = bias_of<MODE>(biases[group]);
        }
      }
#pragma unroll
      for (int i = 0; i < EACH; i += 4) {
        float4 weights[LINES];
#pragma unroll
        for (int o = 0; o < LINES; o++) {
          const uint word = packed[o * WORDS + j];
          weights[o].x = packed_number<MODE, BITS>(word, i) * scale[o] + bias[o];
          weights[o].y = packed_number<MODE, BITS>(word, i + 1) * scale[o] + bias[o];
          weights[o].z = packed_number<MODE, BITS>(word, i + 2) * scale[o] + bias[o];
          weights[o].w = packed_number<MODE, BITS>(word, i + 3) * scale[o] + bias[o];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const float4 four = load4(x, from[r] + (at + j) * EACH + i);
#pragma unroll
          for (int o = 0; o < LINES; o++) {
            sums[o * ROWS + r] += dot4(weights[o], four);
          }
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < LINES * ROWS; i++) {
    const float sum = simd_sum(sums[i]);
    if (lane == 0) {
      partial[simdgroup * LINES * ROWS + i] = sum;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = me; i < ACROSS * count; i += SIMDGROUPS * 32) {
    const int r = i / ACROSS;
    const int o = i % ACROSS;
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < SPLITS; s++) {
      sum += partial[((o / LINES * SPLITS + s) * LINES + o % LINES) * ROWS + r];
    }
    if (begin + o < lines) {
      const long to = GROUPED ? route[first + r] : first + r;
      outputs[to * lines + begin + o] = T(sum);
    }
  }
}

// Constants besides: the type U that weights are unpacked to, and x with them; TILES of eight rows and WIDTH of eight
// lines, which a simdgroup takes; whether the weights are the LEFT matrices of products; whether they are STAGED, which
// is to say go through threadgroup memory.
//
// A step is as many weights of a line as make PARTS matrices. Which of its weights are multiplied together is free, if
// only x agrees: the matrix m has those of every PARTS-th place, from m on. So what a lane holds of all matrices lies
// side by side, in the words that it reads itself and in x. Each of its two elements of a matrix is at the place `held`
// of the dimension that is summed over, or at `across` of the other one.
kernel void quantized_matmul_simdgroup(
    const device T* x,          // as above
    const device uint* w,
    const device T* scales,
    const device T* biases,
    const device int* sizes,
    const device int* route,
    device T* outputs) {
  constexpr int EACH = 32 / BITS;
  constexpr int PARTS = STAGED ? 4 : WORDS * EACH;
  constexpr int STEP = 8 * PARTS;
  constexpr int ACROSS = 8 * WIDTH;  // lines
  constexpr int OWN = STAGED ? STEP * ACROSS / 32 / EACH : 2 * WIDTH * WORDS;  // words that a lane reads in a step
  constexpr int EACH_LINE = OWN / (STAGED ? 1 : LEFT ? WIDTH : 2 * WIDTH);      // of these, of one line
  constexpr int PADDED = ACROSS + 8;  // so that a matrix's rows lie in different banks
  constexpr int SCALES = EACH_LINE * EACH <= GROUP ? 1 : EACH_LINE * EACH / GROUP;  // of a line's words
  constexpr int OF_SCALE = EACH_LINE / SCALES;                                        // words

  threadgroup U staged[STAGED ? SPLITS * STEP * PADDED : 1];
  threadgroup float partial[SPLITS * WIDTH * 64];

  const int me = int(thread_position_in_threadgroup.x);
  const int lane = int(thread_index_in_simdgroup);
  const int split = int(simdgroup_index_in_threadgroup);
  const int length = sizes[1];
  const int lines = sizes[2];
  const int tile = int(threadgroup_position_in_grid.y);
  const int first = GROUPED ? route[sizes[0] + 3 * tile] : tile * TILES * 8;
  const int count = GROUPED ? route[sizes[0] + 3 * tile + 1] : min(sizes[0] - first, TILES * 8);
  const int expert = GROUPED ? route[sizes[0] + 3 * tile + 2] : 0;
  const int begin = int(threadgroup_position_in_grid.x) * ACROSS;
  if (count == 0) {
    return;
  }

  // The row of a matrix of which this lane holds two elements, and the column of the first.
  const int held_row = (lane >> 2 & 4) | (lane >> 1 & 3);
  const int held_column = (lane >> 1 & 4) | (lane & 1) << 1;

  int from[2 * TILES];  // of x; a row too many repeats the last one, and is not written
#pragma unroll
  for (int i = 0; i < 2 * TILES; i++) {
    const int across = LEFT ? held_column + i % 2 : held_row;
    const int held = LEFT ? held_row : held_column + i % 2;
    const int place = first + min(i / 2 * 8 + across, count - 1);
    from[i] = (GROUPED ? route[place] / sizes[3] : place) * length + held * PARTS;
  }
  long line[2 * WIDTH];  // likewise; the second of a pair is another line only where weights are to the right
  int ahead[2 * WIDTH];  // where its words begin in a step
#pragma unroll
  for (int i = 0; i < 2 * WIDTH; i++) {
    const int across = STAGED ? lane % ACROSS : i / 2 * 8 + (LEFT ? held_row : held_column + i % 2);
    const int held = LEFT ? held_column + i % 2 : held_row;
    line[i] = long(expert) * lines + min(begin + across, lines - 1);
    ahead[i] = STAGED ? lane / ACROSS * OWN : held * WORDS;
  }

  simdgroup_matrix<float, 8, 8> sums[TILES * WIDTH];
#pragma unroll
  for (int i = 0; i < TILES * WIDTH; i++) {
    sums[i] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  const int words = length / EACH;
  for (int step = split; step < length / STEP; step += SPLITS) {
    uint packed[OWN];
    float scale[OWN / OF_SCALE];
    float bias[OWN / OF_SCALE];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const int pair = STAGED ? 0 : i / WORDS;
      const int at = step * (STEP / EACH) + ahead[pair] + (STAGED ? i : i % WORDS);
      packed[i] = w[line[pair] * words + at];
      if (i % OF_SCALE == 0) {
        const long group = line[pair] * (length / GROUP) + at * EACH / GROUP;
        scale[i / OF_SCALE] = scale_of<MODE>(scales[group]);
        bias[i / OF_SCALE] = bias_of<MODE>(biases[group]);
      }
    }
    if (STAGED) {
#pragma unroll
      for (int i = 0; i < OWN * EACH; i++) {
        const int k = lane / ACROSS * OWN * EACH + i;
        const int word = i / EACH;
        staged[(split * STEP + k % PARTS * 8 + k / PARTS) * PADDED + lane % ACROSS] =
            U(packed_number<MODE, BITS>(packed[word], i % EACH) * scale[word / OF_SCALE] + bias[word / OF_SCALE]);
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    float4 rows[2 * TILES * PARTS / 4];
#pragma unroll
    for (int i = 0; i < 2 * TILES * PARTS / 4; i++) {
      rows[i] = load4(x, from[i * 4 / PARTS] + step * STEP + i * 4 % PARTS);
    }
#pragma unroll
    for (int m = 0; m < PARTS; m++) {
      simdgroup_matrix<U, 8, 8> weights[WIDTH];
#pragma unroll
      for (int c = 0; c < WIDTH; c++) {
        if (STAGED) {
          simdgroup_load(weights[c], staged + ((split * STEP + m * 8) * PADDED + c * 8), PADDED);
        } else {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int word = (2 * c + i) * WORDS + m / EACH;
            weights[c].thread_elements()[i] =
                U(packed_number<MODE, BITS>(packed[word], m % EACH) * scale[word / OF_SCALE] + bias[word / OF_SCALE]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < TILES; r++) {
        simdgroup_matrix<U, 8, 8> own;
        own.thread_elements()[0] = U(rows[(2 * r * PARTS + m) / 4][m % 4]);
        own.thread_elements()[1] = U(rows[((2 * r + 1) * PARTS + m) / 4][m % 4]);
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
          if (LEFT) {
            simdgroup_multiply_accumulate(sums[r * WIDTH + c], weights[c], own, sums[r * WIDTH + c]);
          } else {
            simdgroup_multiply_accumulate(sums[r * WIDTH + c], own, weights[c], sums[r * WIDTH + c]);
          }
        }
      }
    }
    if (STAGED) {
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

#pragma unroll
  for (int r = 0; r < TILES; r++) {
#pragma unroll
    for (int c = 0; c < WIDTH; c++) {
      simdgroup_store(sums[r * WIDTH + c], partial + (split * WIDTH + c) * 64, 8);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = me; i < 8 * ACROSS; i += SPLITS * 32) {
      const int row = r * 8 + i / ACROSS;
      const int o = i % ACROSS;
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < SPLITS; s++) {
        sum += partial[(s * WIDTH + o / 8) * 64 + (LEFT ? o % 8 * 8 + row % 8 : row % 8 * 8 + o % 8)];
      }
      if (row < count && begin + o < lines) {
        const long to = GROUPED ? route[first + row] : first + row;
        outputs[to * lines + begin + o] = T(sum);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}
