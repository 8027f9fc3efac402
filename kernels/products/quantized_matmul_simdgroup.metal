// Quantised matrix product for a few rows by simdgroup matrices, which only Metal has.
//
// A threadgroup takes COLUMNS lines of the weight and up to 8 * TILES rows of x. Its simdgroups share out the length of
// the lines: each takes every SPLITS-th step of STEP weights, so that together they read without gaps, and none waits
// for another until their sums are added up at the end. In a step, a simdgroup unpacks its part of the lines into
// threadgroup memory, once, and multiplies it by all the rows.
//
// Constants: the type T; K, the length of a line; LINES, how many there are; BITS (4 or 8) and GROUP of the affine
// quantisation; TILES, of eight rows; COLUMNS (16 or 32); SPLITS, the simdgroups of a threadgroup; STAGED, whether
// there are fewer than eight rows.

kernel void quantized_matmul_simdgroup(
    const device T* x,       // [N, K]
    const device uint* w,    // [LINES, K * BITS / 32]
    const device T* scales,  // [LINES, K / GROUP]
    const device T* biases,  // [LINES, K / GROUP]
    const device int* rows,  // [8], of which the first is N
    device T* outputs) {     // [N, LINES]
  constexpr int STEP = 32;                     // lies within one group
  constexpr int STEPS = K / STEP;
  constexpr int EACH = 32 / BITS;              // weights in a word
  constexpr int OWN = STEP * COLUMNS / 32;     // weights of a step that a lane unpacks, all of one line
  constexpr int WORDS = OWN / EACH;
  constexpr int WIDTH = COLUMNS / 8;           // matrices side by side
  constexpr int ROW = COLUMNS + 8;             // eight more, so that a matrix's rows lie in different banks
  constexpr int X_ROW = STEP + 8;
  constexpr uint MASK = (1u << BITS) - 1u;

  threadgroup T weights[SPLITS * STEP * ROW];  // of each simdgroup: [STEP, COLUMNS]
  threadgroup T few[STAGED ? SPLITS * 8 * X_ROW : 1];
  threadgroup float partial[SPLITS * 8 * ROW];

  const int me = int(thread_position_in_threadgroup.x);
  const int lane = int(thread_index_in_simdgroup);
  const int split = int(simdgroup_index_in_threadgroup);
  const int line = int(threadgroup_position_in_grid.x) * COLUMNS;
  const int row = int(threadgroup_position_in_grid.y) * TILES * 8;
  const int count = rows[0];
  const int tiles = min((count - row + 7) / 8, TILES);

  // What this lane unpacks. A line too many repeats the last one, and is not written.
  const long from = min(line + lane % COLUMNS, LINES - 1);
  const int part = lane / COLUMNS * OWN;
  const long words = (from * K + part) / EACH;
  const long groups = from * (K / GROUP);
  const int unpacked = split * STEP * ROW + part * ROW + lane % COLUMNS;

  simdgroup_matrix<float, 8, 8> sums[TILES * WIDTH];
#pragma unroll
  for (int i = 0; i < TILES * WIDTH; i++) {
    sums[i] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  int ahead = min(split, STEPS - 1);  // the step whose words are on their way while the one before is multiplied
  uint packed[WORDS];
#pragma unroll
  for (int i = 0; i < WORDS; i++) {
    packed[i] = w[words + ahead * (STEP / EACH) + i];
  }
  float scale = float(scales[groups + ahead * STEP / GROUP]);
  float bias = float(biases[groups + ahead * STEP / GROUP]);

  for (int step = split; step < STEPS; step += SPLITS) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      weights[unpacked + i * ROW] = T(float(packed[i / EACH] >> i % EACH * BITS & MASK) * scale + bias);
    }
    if (STAGED) {
      for (int i = 0; i < 8; i++) {  // a row too many repeats the last one
        few[(split * 8 + i) * X_ROW + lane] = x[long(min(i, count - 1)) * K + step * STEP + lane];
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    ahead = min(step + SPLITS, STEPS - 1);
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
      packed[i] = w[words + ahead * (STEP / EACH) + i];
    }
    scale = float(scales[groups + ahead * STEP / GROUP]);
    bias = float(biases[groups + ahead * STEP / GROUP]);

#pragma unroll
    for (int k = 0; k < STEP; k += 8) {
      simdgroup_matrix<T, 8, 8> right[WIDTH];
#pragma unroll
      for (int c = 0; c < WIDTH; c++) {
        simdgroup_load(right[c], weights + ((split * STEP + k) * ROW + c * 8), ROW);
      }
#pragma unroll
      for (int r = 0; r < TILES; r++) {
        if (r < tiles) {
          simdgroup_matrix<T, 8, 8> left;
          if (STAGED) {
            simdgroup_load(left, few + (split * 8 * X_ROW + k), X_ROW);
          } else {  // the last rows again, if there are not eight more
            simdgroup_load(left, x + (long(min(row + r * 8, count - 8)) * K + step * STEP + k), K);
          }
#pragma unroll
          for (int c = 0; c < WIDTH; c++) {
            simdgroup_multiply_accumulate(sums[r * WIDTH + c], left, right[c], sums[r * WIDTH + c]);
          }
        }
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

#pragma unroll
  for (int r = 0; r < TILES; r++) {
    if (r < tiles) {
#pragma unroll
      for (int c = 0; c < WIDTH; c++) {
        simdgroup_store(sums[r * WIDTH + c], partial + (split * 8 * ROW + c * 8), ROW);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const int first = STAGED ? 0 : min(row + r * 8, count - 8);
      for (int i = me; i < 8 * COLUMNS; i += SPLITS * 32) {
        const int to = first + i / COLUMNS;
        const int column = i % COLUMNS;
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < SPLITS; s++) {
          sum += partial[(s * 8 + i / COLUMNS) * ROW + column];
        }
        if (to >= row + r * 8 && to < count && line + column < LINES) {
          outputs[long(to) * LINES + line + column] = T(sum);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}
