// Keys and values into a pool and out of it, as whole words of 8 bytes, so that their type does not matter.
//
// Pools are inputs, of which `store` writes some slots: MLX would copy a pool that is an output as long as anything
// still has to read it. `after` and `done` hold no numbers. What reads a pool takes the `done` of its last write as an
// input, and so does the next write: that is their order.
//
// Constants: HEADS of keys and values, WORDS of each head.

METAL_FUNC long slot_of(const device int* table, int start, int position, int page) {
  return long(table[start + position / page]) * page + position % page;
}

// A thread takes one word of a token's keys, and of its values.
kernel void store(
    const device W* keys,           // [slots, HEADS, WORDS], of which the tokens' slots are written
    const device W* values,         // likewise
    const device W* new_keys,       // [N, HEADS, WORDS]
    const device W* new_values,     // likewise
    const device int* table,        // the pages of all rows
    const device int* starts,       // [N]: where the pages of a token's row begin in the table
    const device int* positions,    // [N]: a token's place in its row
    const device int* count,        // [8], of which the first is N
    const device float* after,      // [8]
    device float* done) {           // [8]
  constexpr int EACH = HEADS * WORDS;
  const long unit = long(threadgroup_position_in_grid.x) * int(threads_per_threadgroup.x)
      + int(thread_position_in_threadgroup.x);
  const int token = int(unit / EACH);
  if (token < count[0]) {
    const int word = int(unit % EACH);
    const long at = slot_of(table, starts[token], positions[token], PAGE) * EACH + word;
    writable<W>(keys)[at] = new_keys[unit];
    writable<W>(values)[at] = new_values[unit];
  }
  if (unit < 8) {
    done[unit] = 0.0f;
  }
}

// A thread takes one word of a row's keys at some position, and of its values.
kernel void gather(
    const device W* keys,           // [slots, HEADS, WORDS]
    const device W* values,         // likewise
    const device int* table,        // the pages of all rows
    const device int* rows,         // [R, 2]: where a row's pages begin in the table, and how many positions it has
    const device int* sizes,        // [8], of which the first two are R and L
    const device float* after,      // [8]
    device W* row_keys,             // [R, HEADS, L, WORDS]; beyond a row's length its last one repeats
    device W* row_values) {         // likewise
  const long unit = long(threadgroup_position_in_grid.x) * int(threads_per_threadgroup.x)
      + int(thread_position_in_threadgroup.x);
  const int length = sizes[1];
  const int word = int(unit % WORDS);
  const long vector = unit / WORDS;
  const int position = int(vector % length);
  const int head = int(vector / length % HEADS);
  const int row = int(vector / length / HEADS);
  if (row < sizes[0]) {
    const long slot = slot_of(table, rows[2 * row], min(position, rows[2 * row + 1] - 1), PAGE);
    const long at = (slot * HEADS + head) * WORDS + word;
    row_keys[unit] = keys[at];
    row_values[unit] = values[at];
  }
}
