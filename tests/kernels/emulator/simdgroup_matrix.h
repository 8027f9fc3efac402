// Simdgroup matrices on the checked machine: 8 by 8, two elements a lane, in the places where Apple's GPUs have them.
// All lanes take part in every operation, and what they load and store is checked like any other access.

#pragma once

#include "prelude.h"

template <typename T, int COLUMNS, int ROWS>
struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "Metal has matrices of 8 by 8");
  using Elements = T[2];

  Elements held = {T(__builtin_nanf("")), T(__builtin_nanf(""))};  // what nothing wrote shows

  Elements& thread_elements() { return held; }
};

template <typename T>
using matrix = simdgroup_matrix<T, 8, 8>;

// The row and the first of the two columns that a lane holds, and the lane that holds a row and column.
inline int held_row(int lane) { return (lane >> 2 & 4) | (lane >> 1 & 3); }
inline int held_column(int lane) { return (lane >> 1 & 4) | (lane & 1) << 1; }
inline int holder(int row, int column) {
  return (row & 4) << 2 | (column & 4) << 1 | (row & 3) << 1 | (column & 2) >> 1;
}

template <typename T, int COLUMNS, int ROWS = COLUMNS>
simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, COLUMNS, ROWS> made;
  made.held[0] = made.held[1] = value;
  return made;
}

template <typename T, typename From>
void load_held(int line, matrix<T>& to, From from, long row_length) {
  machine::meet_lanes(false, line, "simdgroup_load");
  const int lane = thread_index_in_simdgroup;
  for (int i = 0; i < 2; i++) to.held[i] = from[held_row(lane) * row_length + held_column(lane) + i];
}

template <typename T, typename To>
void store_held(int line, const matrix<T>& from, To to, long row_length) {
  machine::meet_lanes(false, line, "simdgroup_store");
  const int lane = thread_index_in_simdgroup;
  for (int i = 0; i < 2; i++) to[held_row(lane) * row_length + held_column(lane) + i] = from.held[i];
}

// Matrices lie in device or threadgroup memory, in their own type.

template <typename T>
void load_matrix(int line, matrix<T>& to, machine::Buffer<const T, machine::in_device> from, long row_length = 8) {
  load_held(line, to, from, row_length);
}
template <typename T>
void load_matrix(int line, matrix<T>& to, machine::Shared<T> from, long row_length = 8) {
  load_held(line, to, from, row_length);
}
template <typename T>
void store_matrix(int line, const matrix<T>& from, machine::Buffer<T, machine::in_device> to, long row_length = 8) {
  store_held(line, from, to, row_length);
}
template <typename T>
void store_matrix(int line, const matrix<T>& from, machine::Shared<T> to, long row_length = 8) {
  store_held(line, from, to, row_length);
}

template <typename T, typename SUM>
void multiply_accumulate(int line, matrix<SUM>& d, const matrix<T>& a, const matrix<T>& b, const matrix<SUM>& c) {
  const float own[4] = {float(a.held[0]), float(a.held[1]), float(b.held[0]), float(b.held[1])};
  const machine::Lanes* all = machine::lanes(own, 4, line, "simdgroup_multiply_accumulate");
  const int row = held_row(thread_index_in_simdgroup);
  for (int i = 0; i < 2; i++) {
    const int column = held_column(thread_index_in_simdgroup) + i;
    float sum = float(c.held[i]);
    for (int k = 0; k < 8; k++) sum += all[k % 2][holder(row, k)] * all[2 + column % 2][holder(k, column)];
    d.held[i] = SUM(sum);
  }
}

#define simdgroup_load(...) load_matrix(__LINE__, __VA_ARGS__)
#define simdgroup_store(...) store_matrix(__LINE__, __VA_ARGS__)
#define simdgroup_multiply_accumulate(...) multiply_accumulate(__LINE__, __VA_ARGS__)
