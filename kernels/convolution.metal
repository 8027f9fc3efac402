// The causal convolution before a recurrent layer, over packed rows, each with its own window of past inputs. A thread
// takes four channels of one packed token, or copies them of one input that the round leaves.
//
// Constants: the type T; CHANNELS, a multiple of four; TAPS, of which the last is a token's own input.

kernel void convolve(
    const device T* x,          // [N, CHANNELS]
    const device T* weight,     // [CHANNELS, TAPS]
    const device T* inputs,     // [P, CHANNELS]
    const device int* looks,    // [N, TAPS]: what a token looks at: seat * (TAPS - 1) + place in the seat's window, and
                                // behind all windows the round's own inputs
    const device int* kept,     // [P']: the inputs that the round leaves, counted likewise
    const device int* table,    // [B, 9]: Steps.table
    const device int* replay,   // [B]: accepted steps of each seat's tape
    const device int* sizes,    // [2]: N and B
    device T* outputs,          // [N, CHANNELS]
    device T* next_inputs) {    // [P', CHANNELS]
  constexpr int WINDOW = TAPS - 1;
  const int four = int(threadgroup_position_in_grid.x * threads_per_threadgroup.x + thread_position_in_threadgroup.x);
  const int channel = four * 4;
  const int row = int(threadgroup_position_in_grid.y);
  const int tokens = sizes[0];
  const int own = sizes[1] * WINDOW;
  const bool copies = row >= tokens;
  if (channel < CHANNELS) {
    float4 sum;
    sum.x = sum.y = sum.z = sum.w = 0.0f;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
      if (!copies || tap == 0) {
        const int look = copies ? kept[row - tokens] : looks[row * TAPS + tap];
        float4 value;
        value.x = value.y = value.z = value.w = 0.0f;
        if (look >= own) {
          value = load4(x, long(look - own) * CHANNELS + channel);
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
          sum.x += value.x * float(weight[channel * TAPS + tap]);
          sum.y += value.y * float(weight[(channel + 1) * TAPS + tap]);
          sum.z += value.z * float(weight[(channel + 2) * TAPS + tap]);
          sum.w += value.w * float(weight[(channel + 3) * TAPS + tap]);
        }
      }
    }
    const long at = (copies ? long(row - tokens) : long(row)) * CHANNELS + channel;
    if (copies) {
      next_inputs[at] = T(sum.x);
      next_inputs[at + 1] = T(sum.y);
      next_inputs[at + 2] = T(sum.z);
      next_inputs[at + 3] = T(sum.w);
    } else {
      outputs[at] = T(sum.x);
      outputs[at + 1] = T(sum.y);
      outputs[at + 2] = T(sum.z);
      outputs[at + 3] = T(sum.w);
    }
  }
}
