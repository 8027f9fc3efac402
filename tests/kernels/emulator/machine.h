// The machine that a kernel runs on in the tests: one threadgroup at a time, each thread a fiber that runs until it
// must wait for others. Every access is checked; the first fault ends the launch and tells what, where, and who.
// Includes little, because each kernel is compiled with it: the fibers themselves are in machine.cpp.

#pragma once

#include <stdint.h>
#include <string.h>

namespace machine {

constexpr int LANES = 32, MOST_THREADS = 1024;
constexpr int NOBODY = -1, SEVERAL = -2;

struct Position {
  unsigned x, y, z;
};

// Where the running thread is; `epoch` counts the barriers that its threadgroup has passed, `phases` those that each
// simdgroup has passed by itself.
struct Now {
  Position groups, group;
  int threads, current, epoch;
  int phases[MOST_THREADS / LANES];

  int simdgroup() const { return current / LANES; }
};

extern Now now;

[[noreturn]] void fault(const char* format, ...);

// Wait for all threads of the threadgroup.
void barrier(int line);

// Wait for all lanes of the simdgroup; `orders` their accesses to threadgroup memory if it is a barrier.
void meet_lanes(bool orders, int line, const char* word);

constexpr int MOST_VALUES = 4;  // of a lane in an exchange
using Lanes = float[LANES];

// Give values to the other lanes of the simdgroup, and get theirs, for each value a row.
const Lanes* lanes(const float* values, int count, int line, const char* word);

inline const float* lanes(float value, int line, const char* word) {
  return *lanes(&value, 1, line, word);
}

// Run a kernel; false, and what went wrong in `message` [512], if there is a fault.
bool launch(void (*body)(void*), void* buffers, const unsigned* groups, int threads, char* message);

// Who touched a word of threadgroup memory last, and after how many barriers: one thread, SEVERAL of a simdgroup, or
// threads of SEVERAL simdgroups.
struct Touch {
  int thread = NOBODY, simdgroup = NOBODY, epoch = -1, phase = -1;

  // Whether that was another thread, with no barrier in between.
  bool collides() const {
    if (thread == now.current || epoch < now.epoch) return false;
    return simdgroup != now.simdgroup() || phase == now.phases[simdgroup];
  }
  void mark() {
    *this = {now.current, now.simdgroup(), now.epoch, now.phases[now.simdgroup()]};
  }
  void join() {
    const bool others = collides();
    const bool beside = others && simdgroup != now.simdgroup();
    mark();
    if (others) thread = SEVERAL;
    if (beside) simdgroup = SEVERAL;
  }
};

struct Shadow {
  Touch write, read;
};

// The threadgroup's array that is declared at `line`; who comes first makes it.
void* find_shared(const char* name, int line, long count, long size, Shadow** shadows);

// Device memory. An input is read only; an element of an output belongs to the thread that wrote it.

struct in_device {};
struct in_constant {};

inline int64_t me() {
  return ((int64_t(now.group.z) * now.groups.y + now.group.y) * now.groups.x + now.group.x) * now.threads + now.current;
}

template <typename T, typename Space>
struct Pointer {
  T* data;
  long size, offset;
  const char* name;
  int64_t* owners;  // element -> thread, counted over the grid, or NOBODY

  long check(long index) const {
    index += offset;
    if (index < 0 || index >= size) fault("%s[%ld] is out of bounds: it has %ld elements", name, index, size);
    return index;
  }
  Pointer operator+(long by) const {
    return {data, size, offset + by, name, owners};
  }
};

template <typename T>
struct Element {
  T& value;
  int64_t& owner;
  const char* name;
  long index;

  void operator=(const Element& other) const {
    *this = static_cast<T>(other);
  }
  void operator=(T with) const {
    if (owner != NOBODY && owner != me()) fault("race: %s[%ld] is written by two threads", name, index);
    owner = me();
    value = with;
  }
  operator T() const {
    if (owner != me()) fault("%s[%ld] is read by a thread that did not write it", name, index);
    return value;
  }
};

template <typename T, typename Space>
struct Buffer : Pointer<T, Space> {
  Element<T> operator[](long index) const {
    index = this->check(index);
    return {this->data[index], this->owners[index], this->name, index};
  }
  Buffer operator+(long by) const {
    return {Pointer<T, Space>::operator+(by)};
  }
};

template <typename T, typename Space>
struct Buffer<const T, Space> : Pointer<const T, Space> {
  T operator[](long index) const {
    return this->data[this->check(index)];
  }
  Buffer operator+(long by) const {
    return {Pointer<const T, Space>::operator+(by)};
  }
};

// An input that is written in place.
template <typename T, typename Space>
struct Written : Pointer<T, Space> {
  T& operator[](long index) const {
    return this->data[this->check(index)];
  }
};

// Threadgroup memory. Between two barriers, what a thread writes nobody else may touch.

template <typename T>
struct Word {
  T& value;
  Shadow& shadow;
  const char* name;
  long index;

  void operator=(const Word& other) const {
    *this = static_cast<T>(other);
  }
  void operator=(T with) const {
    if (shadow.read.collides() || shadow.write.collides())
      fault("race: %s[%ld] is written while another thread %s it", name, index,
            shadow.read.collides() ? "reads" : "writes");
    shadow.write.mark();
    value = with;
  }
  operator T() const {
    if (shadow.write.thread == NOBODY) fault("%s[%ld] is read, and nothing wrote it", name, index);
    if (shadow.write.collides()) fault("race: %s[%ld] is read while another thread writes it", name, index);
    shadow.read.join();
    return value;
  }
};

template <typename T>
struct Shared {
  T* data;
  Shadow* shadows;
  long size, offset;
  const char* name;

  Word<T> operator[](long index) const {
    index += offset;
    if (index < 0 || index >= size) fault("%s[%ld] is out of bounds: it has %ld elements", name, index, size);
    return {data[index], shadows[index], name, index};
  }
  Shared operator+(long by) const {
    return {data, shadows, size, offset + by, name};
  }
};

template <typename T>
Shared<T> shared(const char* name, int line, long count) {
  Shadow* shadows;
  void* data = find_shared(name, line, count, sizeof(T), &shadows);
  return {static_cast<T*>(data), shadows, count, 0, name};
}

}  // namespace machine
