// The causal convolution before a recurrent layer, over packed rows, each with its own window of past inputs. A thread
// takes one channel of one packed token, or copies it of one input that the round leaves.
//
// Constants: the type T; CHANNELS; TAPS, of which the last is a token's own input.

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
  const int channel = int(threadgroup_position_in_grid.x * threads_per_threadgroup.x + thread_position_in_threadgroup.x);
  const int row = int(threadgroup_position_in_grid.y);
  const int tokens = sizes[0];
  const int own = sizes[1] * WINDOW;
  const bool copies = row >= tokens;
  if (channel < CHANNELS) {
    float sum = 0.0f;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
      if (!copies || tap == 0) {
        const int look = copies ? kept[row - tokens] : looks[row * TAPS + tap];
        float value = 0.0f;
        if (look >= own) {
          value = float(x[long(look - own) * CHANNELS + channel]);
        } else {
          const int seat = look / WINDOW;
          if (table[seat * 9 + 3] >= 0) {
            const long place = table[seat * 9 + 4] + replay[seat] + look % WINDOW;
            value = float(inputs[place * CHANNELS + channel]);
          }
        }
        sum += copies ? value : value * float(weight[channel * TAPS + tap]);
      }
    }
    if (copies) {
      next_inputs[long(row - tokens) * CHANNELS + channel] = T(sum);
    } else {
      outputs[long(row) * CHANNELS + channel] = T(sum);
    }
  }
}
