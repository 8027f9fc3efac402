// What low-rank adapters add to the outputs of a linear layer: x A B, where each token has an adapter of its own or none.
//
// A threadgroup takes SPAN outputs of one token. What lies between A and B is a few numbers, so each threadgroup
// computes them anew: its simdgroups take one of the adapter's ranks each, its lanes every so many fours of x. Then its
// threads take an output each.
//
// Constants: the type T; ROOM for the ranks of an adapter; SPAN; THREADS.

kernel void add_low_rank(
    const device T* y,           // [N, O]
    const device T* x,           // [N, K], K a multiple of four
    const device T* down,        // [R, K]: A of all adapters, transposed
    const device T* up,          // [R, O]: their B
    const device int* adapters,  // [N]: the adapter of each token, -1 for none
    const device int* begins,    // where each adapter's ranks begin, and where the last one's end; later ones have none
    const device int* sizes,     // [8], of which the first three are K, O, and how many adapters begin here
    device T* outputs) {         // [N, O]
  threadgroup float between[ROOM];
  const int me = int(thread_position_in_threadgroup.x);
  const int lane = int(thread_index_in_simdgroup);
  const int length = sizes[0];
  const int lines = sizes[1];
  const int token = int(threadgroup_position_in_grid.y);
  const int adapter = adapters[token];
  const bool known = adapter >= 0 && adapter < sizes[2];
  const int begin = known ? begins[adapter] : 0;
  const int ranks = known ? begins[adapter + 1] - begin : 0;

  for (int rank = int(simdgroup_index_in_threadgroup); rank < ranks; rank += THREADS / 32) {
    float sum = 0.0f;
    for (int i = lane * 4; i < length; i += 128) {
      const float4 a = load4(x, long(token) * length + i);
      const float4 b = load4(down, long(begin + rank) * length + i);
      sum += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
    }
    const float total = simd_sum(sum);
    if (lane == 0) {
      between[rank] = total;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int first = int(threadgroup_position_in_grid.x) * SPAN;
  for (int line = first + me; line < min(first + SPAN, lines); line += THREADS) {
    float sum = float(y[long(token) * lines + line]);
    for (int rank = 0; rank < ranks; rank++) {
      sum += between[rank] * float(up[long(begin + rank) * lines + line]);
    }
    outputs[long(token) * lines + line] = T(sum);
  }
}
