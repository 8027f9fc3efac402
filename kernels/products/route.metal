// Which choices of experts a product takes together: each expert's lie side by side, in tiles of at most ROWS.
//
// A few hundred choices are ranked by comparing each with all others, by one threadgroup.
//
// Constants: ROWS; ROOM for choices.

kernel void route(
    const device uint* chosen,  // [N] experts
    const device int* sizes,    // [8]: N, and how many tiles there is room for
    device int* routed) {       // [N + 3 * tiles]: choices in order; of each tile the first, how many, the expert
  threadgroup uint experts[ROOM];  // as they come, and in order
  threadgroup uint ordered[ROOM];
  threadgroup int begins[ROOM];  // whether a tile begins at a place of the order

  const int me = int(thread_position_in_threadgroup.x);
  const int threads = int(threads_per_threadgroup.x);
  const int count = sizes[0];
  for (int i = me; i < count; i += threads) {
    experts[i] = chosen[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = me; i < count; i += threads) {
    const uint own = experts[i];
    int lower = 0;
    int before = 0;
    for (int j = 0; j < count; j++) {
      const uint other = experts[j];
      lower += other < own ? 1 : 0;
      before += other == own && j < i ? 1 : 0;
    }
    routed[lower + before] = i;
    ordered[lower + before] = own;
    begins[lower + before] = before % ROWS == 0 ? 1 : 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = me; i < count; i += threads) {
    if (begins[i] > 0) {
      int tile = 0;
      for (int j = 0; j < i; j++) {
        tile += begins[j];
      }
      int rows = 1;
      while (rows < ROWS && i + rows < count && ordered[i + rows] == ordered[i]) {
        rows++;
      }
      routed[count + 3 * tile] = i;
      routed[count + 3 * tile + 1] = rows;
      routed[count + 3 * tile + 2] = int(ordered[i]);
    }
  }
  int tiles = 0;
  for (int j = 0; j < count; j++) {
    tiles += begins[j];
  }
  for (int i = tiles + me; i < sizes[1]; i += threads) {
    routed[count + 3 * i] = 0;
    routed[count + 3 * i + 1] = 0;
    routed[count + 3 * i + 2] = 0;
  }
}
