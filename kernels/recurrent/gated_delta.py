"""The gated delta rule of packed rows with late commit: replay what was accepted, then step through this round."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from .plan import Steps


@dataclass(frozen=True)
class Tape:
    """What replays M uncertain steps: keys `k` [M, Hk, Dk], `delta` [M, Hv, Dv] and `decay` [M, Hv] float32."""

    k: mx.array
    delta: mx.array
    decay: mx.array

    def __getitem__(self, steps: mx.array) -> Tape:
        return Tape(self.k[steps], self.delta[steps], self.decay[steps])


def gated_delta(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    decay: mx.array,
    beta: mx.array,
    state: mx.array,
    tape: Tape,
    steps: Steps,
) -> tuple[mx.array, mx.array, Tape]:
    """Outputs of packed q, k [N, Hk, Dk], v [N, Hv, Dv], with `decay` [N, Hv] float32 and `beta` [N, Hv].

    For each head S [Dv, Dk] of a row's state and each step: S = decay S, delta = beta (v - S k), S = S + delta k^T,
    output S q. A replayed step needs no products with S: its delta is on the tape.

    `state` [P, Hv, Dv, Dk] float32 and `tape` are what the last rounds left; `steps.origins` point into them. Returns
    the outputs [N, Hv, Dv], the states [B, Hv, Dv, Dk] by seat, and the tape. A state has taken the accepted steps
    of its last tape and, if its span is final, those of this round.

    This is the plain-MLX reference.
    """
    group = v.shape[1] // k.shape[1]
    committed = replay(_origin_states(state, steps), tape, steps, group)
    by_time = [array[steps.by_time] for array in (mx.repeat(q, group, 1), mx.repeat(k, group, 1), v, decay, beta)]
    outputs: list[mx.array] = []
    deltas: list[mx.array] = []
    running = [committed]  # the states after 0, 1, 2, ... steps, of the rows that take them
    first = 0
    for count in steps.active:
        now = (array[first : first + count] for array in by_time)
        output, delta, state = _step(running[-1][:count], *now)
        outputs.append(output)
        deltas.append(delta)
        running.append(state)
        first += count
    parts = [running[count if final else 0][first:end] for first, end, count, final in steps.runs]
    state = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    output, delta = (mx.concatenate(parts)[steps.by_token] for parts in (outputs, deltas))
    tape = Tape(k, delta, decay)
    return output, state, tape if steps.taped is None else tape[steps.taped]


def replay(state: mx.array, tape: Tape, steps: Steps, group: int) -> mx.array:
    """States [B, Hv, Dv, Dk] after the accepted steps of their tapes; `group` value heads share a key head.

    A step that was not accepted, or is another row's, has decay 1 and delta 0: it changes nothing, exactly.
    """
    times = range(max(place.length for place in steps.origins))
    if not times:
        return state
    last = tape.k.shape[0] - 1
    taped = tape[mx.array([[min(place.tape + t, last) for place in steps.origins] for t in times])]
    accepted = mx.arange(len(times))[:, None] < steps.replay  # [T, B]
    k = mx.repeat(mx.where(accepted[..., None, None], taped.k, 0), group, axis=2)
    delta = mx.where(accepted[..., None, None], taped.delta, 0)
    decay = mx.where(accepted[..., None], taped.decay, 1)
    for t in times:
        state = _replay_step(state, k[t], delta[t], decay[t])
    return state


def _origin_states(state: mx.array, steps: Steps) -> mx.array:
    """The states [B, Hv, Dv, Dk] with which the seats begin."""
    sources = [place.seat for place in steps.origins]
    if sources == list(range(state.shape[0])):
        return state
    if max(sources) < 0:
        return mx.zeros((len(sources), *state.shape[1:]), state.dtype)
    seats = mx.array(sources)
    known = state[mx.maximum(seats, 0)]
    return known if min(sources) >= 0 else mx.where((seats >= 0)[:, None, None, None], known, 0.0)


@mx.compile
def _step(
    state: mx.array, q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """One step of rows: output [B, Hv, Dv], delta [B, Hv, Dv], state [B, Hv, Dv, Dk]."""
    state = state * decay[..., None, None]
    delta = (v - (state * k[..., None, :]).sum(axis=-1)) * beta[..., None]
    state = state + k[..., None, :] * delta[..., None]
    output = (state * q[..., None, :]).sum(axis=-1)
    return output.astype(q.dtype), delta, state


@mx.compile
def _replay_step(state: mx.array, k: mx.array, delta: mx.array, decay: mx.array) -> mx.array:
    return state * decay[..., None, None] + k[..., None, :] * delta[..., None]
