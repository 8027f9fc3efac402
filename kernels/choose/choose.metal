// The token that each row of logits chooses: the likeliest, or a draw after temperature, min-p, top-k and top-p.
//
// A threadgroup takes a row and goes through its logits a few times; nothing of the vocabulary's size is kept. Top-k
// and then top-p each find a cut: a logit above which all tokens stay, and so do some of those that have it, the first
// ones in the vocabulary. The cut lies in a bracket of logits, of which each pass keeps one part in WAYS - 1, until all
// that is left in it is one logit. What min-p leaves needs no search: it scores more than a bar. The draw takes the
// likeliest token after Gumbel noise of its own.
//
// Each simdgroup has a share of the row, one run of it, in blocks of a four for each lane.
//
// Constants: the type T of logits; VOCABULARY; THREADS.

// LANES fours of COUNT logits apart: `out` gets FOURS of them, from `at` on. What lies at or past `end`, and what is no
// number or below the lowest one, counts as the lowest one, which is never chosen.
template <int COUNT, int FOURS, typename P>
METAL_FUNC void fetch(P logits, long begin, int at, int end, thread float* out) {
#pragma unroll
  for (int i = 0; i < FOURS; i++) {
    const int from = at + i * 128;
    if (COUNT % 4 == 0) {
      out[4 * i] = out[4 * i + 1] = out[4 * i + 2] = out[4 * i + 3] = -3.40282347e38f;
      if (from < end) {
        const float4 four = load4(logits, begin + from);
        out[4 * i] = four.x;
        out[4 * i + 1] = four.y;
        out[4 * i + 2] = four.z;
        out[4 * i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        out[4 * i + j] = from + j < end ? float(logits[begin + from + j]) : -3.40282347e38f;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4 * FOURS; i++) {
    out[i] = out[i] > -3.40282347e38f ? out[i] : -3.40282347e38f;
  }
}

METAL_FUNC uint turned(uint x, int by) {
  return x << by | x >> (32 - by);
}

// Threefry 2x32 (Salmon et al. 2011) of a key and a counter: the first of the two words, or the second.
METAL_FUNC uint threefry(uint seed, uint position, uint x, uint y, bool second) {
  const int turns[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const uint keys[3] = {seed, position, seed ^ position ^ 0x1BD11BDAu};
  x += keys[0];
  y += keys[1];
#pragma unroll
  for (int i = 0; i < 5; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x += y;
      y = turned(y, turns[i % 2 * 4 + j]) ^ x;
    }
    x += keys[(i + 1) % 3];
    y += keys[(i + 2) % 3] + uint(i + 1);
  }
  return second ? y : x;
}

// The Gumbel noise of a token, from the random word that MLX gives the place `token` of COUNT ones: a counter yields
// one word of the first half, and the word as far on in the second half.
template <int COUNT>
METAL_FUNC float gumbel(uint seed, uint position, int token) {
  constexpr int HALF = COUNT / 2;
  constexpr int BEHIND = HALF + COUNT % 2;  // where the second half begins; the odd one between has a counter alone
  const bool second = token >= BEHIND;
  const uint x = uint(second ? token - BEHIND : token);
  const uint y = uint(second ? token : token < HALF ? token + BEHIND : 0);
  const float word = float(threefry(seed, position, x, y, second));
  // Never 0 or 1, of which a logarithm would be infinite.
  const float unit = min(max(word * 2.32830644e-10f, 1.16415322e-10f), 0.99999994f);
  return -log(-log(unit));
}

kernel void choose(
    const device T* logits,        // [M, VOCABULARY]
    const device float* reals,     // [M or more, 3]: 1 / temperature, or 0 if the row is greedy; top-p; min-p's bar
    const device uint* wholes,     // [M or more, 2]: top-k, or 0; seed
    const device int* positions,   // [M or more]
    device int* tokens) {          // [M]
  constexpr float LOWEST = -3.40282347e38f;
  constexpr float NOISE = 16.7f;  // noise is below this, and above -3.2,
  constexpr float FAR = -20.0f;   // so what is farther below the likeliest one is never drawn
  constexpr int SIMDS = THREADS / 32;
  constexpr int SHARE = ((VOCABULARY + 127) / 128 + SIMDS - 1) / SIMDS * 128;
  constexpr int FOURS = 4;         // of a thread at a time, so that it waits for memory as seldom
  constexpr int HELD = 4 * FOURS;
  constexpr int STEP = 128 * FOURS;
  constexpr int WAYS = 8;          // logits that divide a bracket, its ends among them
  constexpr int FOUND = WAYS + 2;
  constexpr int PASSES = 100;      // far more than any search takes: no launch is endless, whatever the logits are

  threadgroup float parts[FOUND * SIMDS];
  threadgroup float found[FOUND];
  threadgroup int places[1];

  const int lane = int(thread_index_in_simdgroup);
  const int simd = int(simdgroup_index_in_threadgroup);
  const int row = int(threadgroup_position_in_grid.x);
  const long begin = long(row) * VOCABULARY;
  const int from = simd * SHARE;
  const int first = from + lane * 4;
  const int end = min(from + SHARE, VOCABULARY);
  const float inverse = reals[3 * row];
  const float top_p = reals[3 * row + 1];
  const float bar = reals[3 * row + 2];
  const uint top_k = wholes[2 * row];
  const uint seed = wholes[2 * row + 1];
  const uint position = uint(positions[row]);

  // What stays: logits above the cut, and of those that have it the tokens up to `last`.
  float top = 0.0f;
  float cut = LOWEST;
  int last = -1;

  if (inverse > 0.0f) {
    float own = LOWEST;  // the largest logit of this thread
    float least = LOWEST;  // the smallest one, negated
    float number = 0.0f;
    for (int at = first; at < end; at += STEP) {
      float x[HELD];
      fetch<VOCABULARY, FOURS>(logits, begin, at, end, x);
#pragma unroll
      for (int i = 0; i < HELD; i++) {
        own = max(own, x[i]);
        if (x[i] > LOWEST) {
          least = max(least, -x[i]);
          number += 1.0f;
        }
      }
    }
    float part = simd_max(own);
    float other = simd_max(least);
    float third = simd_sum(number);
    if (lane == 0) {
      parts[simd] = part;
      parts[SIMDS + simd] = other;
      parts[2 * SIMDS + simd] = third;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    top = LOWEST;
    number = 0.0f;
    for (int i = 0; i < SIMDS; i++) {
      top = max(top, parts[i]);
      least = max(least, parts[SIMDS + i]);
      number += parts[2 * SIMDS + i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float ties = 0.0f;  // how many tokens at the cut stay
    for (int stage = 0; stage < 2; stage++) {  // top-k, which measures tokens by their number; top-p, by their weight
      float low = -least;
      float target = float(top_k);
      bool cutting = top_k > 0u && target < number;
      if (stage == 1) {
        cutting = top_p < 1.0f && number > 0.0f;
        if (cutting) {
          float above = 0.0f;  // the weight of what is above the cut
          float near = 0.0f;   // of which may be drawn,
          float nearest = LOWEST;  // and the smallest logit of these, negated
          for (int at = first; at < end; at += STEP) {
            float x[HELD];
            fetch<VOCABULARY, FOURS>(logits, begin, at, end, x);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
              const float score = (x[i] - top) * inverse;
              if (x[i] > cut && score >= bar) {
                const float weight = exp(score);
                above += weight;
                if (score >= FAR) {
                  near += weight;
                  nearest = max(nearest, -x[i]);
                }
              }
            }
          }
          part = simd_sum(above);
          other = simd_sum(near);
          third = simd_max(nearest);
          if (lane == 0) {
            parts[simd] = part;
            parts[SIMDS + simd] = other;
            parts[2 * SIMDS + simd] = third;
          }
          threadgroup_barrier(mem_flags::mem_threadgroup);
          above = 0.0f;
          near = 0.0f;
          for (int i = 0; i < SIMDS; i++) {
            above += parts[i];
            near += parts[SIMDS + i];
            nearest = max(nearest, parts[2 * SIMDS + i]);
          }
          threadgroup_barrier(mem_flags::mem_threadgroup);
          const float tied = ties > 0.0f && (cut - top) * inverse >= bar ? exp((cut - top) * inverse) : 0.0f;
          target = top_p * (above + ties * tied);
          if (above < target) {  // the cut stays where it is
            ties = tied > 0.0f ? min(ties, max(1.0f, ceil((target - above) / tied))) : ties;
            cutting = false;
          } else if (near < target) {  // the cut lies among what is never drawn anyway
            cutting = false;
          }
          low = -nearest;
        }
      }

      if (cutting) {
        // The cut is the largest logit that, with all above it, measures the target or more. It is at least `low` and
        // below `up`, from where on tokens measure `above`.
        float high = top;
        float up = -LOWEST;
        float above = 0.0f;
        // Top-k looks first at the largest logit of each thread. The k-th of these is not above the k-th of all, and
        // mostly not far below it.
        const int quick = stage == 0 && top_k <= uint(THREADS) ? 3 : 0;
        for (int pass = 0; pass < PASSES; pass++) {
          float ways[WAYS];
          float mine[FOUND];
#pragma unroll
          for (int i = 0; i < WAYS; i++) {
            const float share = float(i) / float(WAYS - 1);
            ways[i] = i == 0 ? low : i == WAYS - 1 ? high : low * (1.0f - share) + high * share;
            mine[i] = pass < quick && own >= ways[i] && own < up ? 1.0f : 0.0f;
          }
          mine[WAYS] = LOWEST;
          mine[WAYS + 1] = LOWEST;
          if (pass >= quick) {
            for (int at = first; at < end; at += STEP) {
              float x[HELD];
              fetch<VOCABULARY, FOURS>(logits, begin, at, end, x);
#pragma unroll
              for (int i = 0; i < HELD; i++) {
                if (x[i] >= low && x[i] < up) {
                  const float measure = stage == 0 ? 1.0f : exp((x[i] - top) * inverse);
#pragma unroll
                  for (int j = 0; j < WAYS; j++) {
                    mine[j] += x[i] >= ways[j] ? measure : 0.0f;
                  }
                  mine[WAYS] = max(mine[WAYS], x[i]);
                  mine[WAYS + 1] = max(mine[WAYS + 1], -x[i]);
                }
              }
            }
          }
#pragma unroll
          for (int i = 0; i < FOUND; i++) {
            const float whole = i < WAYS ? simd_sum(mine[i]) : simd_max(mine[i]);
            if (lane == 0) {
              parts[i * SIMDS + simd] = whole;
            }
          }
          threadgroup_barrier(mem_flags::mem_threadgroup);
          for (int i = simd; i < FOUND; i += SIMDS) {
            const float some = lane < SIMDS ? float(parts[i * SIMDS + lane]) : i < WAYS ? 0.0f : LOWEST;
            const float whole = i < WAYS ? simd_sum(some) : simd_max(some);
            if (lane == 0) {
              found[i] = whole;
            }
          }
          threadgroup_barrier(mem_flags::mem_threadgroup);
          if (pass >= quick && found[WAYS] <= -found[WAYS + 1]) {
            low = found[WAYS];
            break;
          }
          // All of the bracket measures enough, even if the sums of earlier passes were rounded otherwise.
          const float enough = pass < quick ? target : min(target, above + found[0]);
          const float base = above;
          bool settled = false;
#pragma unroll
          for (int i = WAYS - 1; i >= 0; i--) {
            if (!settled) {
              settled = base + found[i] >= enough;
              if (settled) {
                low = ways[i];
              } else {
                high = ways[i];
                up = ways[i];
                above = base + found[i];
              }
            }
          }
          if (pass + 1 == quick) {  // for all tokens, only the lower end of what the quick passes found holds
            high = top;
            up = -LOWEST;
            above = 0.0f;
          }
          if (low == top) {  // nothing is above it
            above = 0.0f;
            break;
          }
        }
        cut = low;
        ties = stage == 0 ? target - above : max(1.0f, ceil((target - above) / exp((cut - top) * inverse)));
      }
    }

    if (ties > 0.0f) {  // where the last one that stays lies
      float own_ties = 0.0f;
      for (int at = first; at < end; at += STEP) {
        float x[HELD];
        fetch<VOCABULARY, FOURS>(logits, begin, at, end, x);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
          own_ties += x[i] == cut ? 1.0f : 0.0f;
        }
      }
      part = simd_sum(own_ties);
      if (lane == 0) {
        parts[simd] = part;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      float before = 0.0f;
      float all = 0.0f;
      for (int i = 0; i < SIMDS; i++) {
        before += i < simd ? float(parts[i]) : 0.0f;
        all += parts[i];
      }
      if (all > ties && before < ties && before + part >= ties) {
        for (int at = from; at < end; at += 128) {
          float x[4];
          fetch<VOCABULARY, 1>(logits, begin, at + lane * 4, end, x);
          float some = 0.0f;
#pragma unroll
          for (int j = 0; j < 4; j++) {
            some += x[j] == cut ? 1.0f : 0.0f;
          }
          const float these = simd_sum(some);
          if (before + these >= ties) {
            for (int i = 0; i < 32; i++) {
              const float theirs = simd_shuffle(some, i);
              before += i < lane ? theirs : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
              before += x[j] == cut ? 1.0f : 0.0f;
              if (x[j] == cut && before == ties) {
                places[0] = at + lane * 4 + j;
              }
            }
            break;
          }
          before += these;
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      last = all > ties ? int(places[0]) : VOCABULARY;
    }
  }

  float best = LOWEST;
  int chosen = 0;
  for (int at = first; at < end; at += STEP) {
    float x[HELD];
    fetch<VOCABULARY, FOURS>(logits, begin, at, end, x);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
      const int token = at + i / 4 * 128 + i % 4;
      float score = x[i];
      bool stays = score > best;
      if (inverse > 0.0f) {
        score = (x[i] - top) * inverse;
        stays = (x[i] > cut || (x[i] == cut && token <= last)) && score >= max(bar, FAR) && score + NOISE > best;
        if (stays) {
          score += gumbel<VOCABULARY>(seed, position, token);
          stays = score > best;
        }
      }
      if (stays) {
        best = score;
        chosen = token;
      }
    }
  }
  const float most = simd_max(best);
  if (lane == 0) {
    parts[simd] = most;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float highest = LOWEST;
  for (int i = 0; i < SIMDS; i++) {
    highest = max(highest, parts[i]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float lead = simd_max(best == highest ? -float(chosen) : LOWEST);  // the first one of these
  if (lane == 0) {
    parts[simd] = lead;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0 && simd == 0) {
    float winner = LOWEST;
    for (int i = 0; i < SIMDS; i++) {
      winner = max(winner, parts[i]);
    }
    tokens[row] = int(-winner);
  }
}
