// The fibers of the machine, and when they may go on.

#include "machine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <ucontext.h>

#include <memory>
#include <vector>

namespace machine {

Now now;

namespace {

constexpr long MOST_BYTES = 32 * 1024;  // of threadgroup memory
constexpr size_t STACK = 64 * 1024;

enum class Wait { NOTHING, BARRIER, EXCHANGE, DONE };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started;
  Wait wait;  // for what, and at which place in the source
  int line;
  const char* word;
};

// What the lanes of a simdgroup gave at their last exchange; the next one waits until all of them have read it.
struct Exchange {
  Lanes given[MOST_VALUES], taken[MOST_VALUES];
  bool orders;
};

struct Block {
  int line;
  const char* name;
  std::unique_ptr<char[]> bytes;
  std::vector<Shadow> shadows;
};

std::vector<Fiber> fibers;
Exchange exchanges[MOST_THREADS / LANES];
std::unique_ptr<char[]> stacks;
std::vector<Block> blocks;
long shared_bytes;
void (*body)(void*);
void* buffers;
char* message;
jmp_buf scheduler;

__attribute__((noinline)) void yield(Wait wait, int line, const char* word) {
  Fiber& fiber = fibers[now.current];
  fiber.wait = wait;
  fiber.line = line;
  fiber.word = word;
  if (_setjmp(fiber.resume) == 0) _longjmp(scheduler, 1);
}

// What a fiber does: it takes part in one threadgroup after another, for making a fiber takes longer than most threads.
void enter() {
  for (;;) {
    body(buffers);
    yield(Wait::DONE, 0, "");
  }
}

// Let thread `index` run until it waits.
[[noreturn]] void run(int index) {
  Fiber& fiber = fibers[index];
  now.current = index;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks.get() + index * STACK;
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
  __builtin_unreachable();
}

// Let the lanes of a simdgroup go on with each other's values, if all of them wait for that.
bool exchange(int first) {
  Fiber* lanes = &fibers[first];
  for (int i = 0; i < LANES; i++)
    if (lanes[i].wait != Wait::EXCHANGE) return false;
  for (int i = 0; i < LANES; i++) {
    now.current = first + i;
    if (lanes[i].line != lanes[0].line || strcmp(lanes[i].word, lanes[0].word))
      fault("divergent %s at line %d: lane 0 is at line %d", lanes[i].word, lanes[i].line, lanes[0].line);
  }
  Exchange& own = exchanges[first / LANES];
  memcpy(own.taken, own.given, sizeof own.taken);
  if (own.orders) now.phases[first / LANES]++;
  for (int i = 0; i < LANES; i++) lanes[i].wait = Wait::NOTHING;
  return true;
}

// Nobody can go on alone: all are done (false), or all are at one barrier, or the kernel is wrong.
bool meet() {
  const Fiber& first = fibers[0];
  for (int i = 0; i < now.threads; i++) {
    const Fiber& fiber = fibers[i];
    now.current = i;
    if (fiber.wait == Wait::EXCHANGE) fault("divergent %s at line %d: not all lanes take part", fiber.word, fiber.line);
    if (fiber.wait != first.wait || (fiber.wait == Wait::BARRIER && fiber.line != first.line))
      fault("divergent barrier at line %d: not all threads reach it", (first.wait == Wait::DONE ? fiber : first).line);
  }
  if (first.wait == Wait::DONE) return false;
  for (Fiber& fiber : fibers) fiber.wait = Wait::NOTHING;
  now.epoch++;
  return true;
}

// Run one threadgroup to its end.
void run_group() {
  now.epoch = 0;
  blocks.clear();
  shared_bytes = 0;
  for (Fiber& fiber : fibers) fiber.wait = Wait::NOTHING;
  volatile int next = 0;
  if (_setjmp(scheduler) == 2) return;  // a fault; a thread that waits comes back here, too
  for (;;) {
    while (next < now.threads) {
      const int index = next;
      next = index + 1;
      if (fibers[index].wait == Wait::NOTHING) run(index);
    }
    next = 0;
    bool moved = false;
    for (int first = 0; first < now.threads; first += LANES) moved |= exchange(first);
    if (!moved && !meet()) return;
  }
}

}  // namespace

void fault(const char* format, ...) {
  va_list values;
  va_start(values, format);
  const int length = vsnprintf(message, 400, format, values);
  va_end(values);
  const Position g = now.group;
  snprintf(message + length, 100, " (thread %d of threadgroup %u, %u, %u)", now.current, g.x, g.y, g.z);
  _longjmp(scheduler, 2);
}

void barrier(int line) { yield(Wait::BARRIER, line, "threadgroup_barrier"); }

void meet_lanes(bool orders, int line, const char* word) {
  exchanges[now.simdgroup()].orders = orders;
  yield(Wait::EXCHANGE, line, word);
}

const Lanes* lanes(const float* values, int count, int line, const char* word) {
  Exchange& own = exchanges[now.simdgroup()];
  for (int i = 0; i < count; i++) own.given[i][now.current % LANES] = values[i];
  meet_lanes(false, line, word);
  return own.taken;
}

void* find_shared(const char* name, int line, long count, long size, Shadow** shadows) {
  for (Block& block : blocks)
    if (block.line == line && !strcmp(block.name, name)) {
      *shadows = block.shadows.data();
      return block.bytes.get();
    }
  shared_bytes += count * size;
  if (shared_bytes > MOST_BYTES) fault("%ld bytes of threadgroup memory: Metal has %ld", shared_bytes, MOST_BYTES);
  blocks.push_back({line, name, std::make_unique<char[]>(count * size), std::vector<Shadow>(count)});
  *shadows = blocks.back().shadows.data();
  return blocks.back().bytes.get();
}

bool launch(void (*kernel)(void*), void* arguments, const unsigned* groups, int threads, char* told) {
  message = told;
  message[0] = 0;
  if (threads > MOST_THREADS || threads % LANES) {
    snprintf(message, 400, "%d threads: Metal takes at most %d, in whole simdgroups", threads, MOST_THREADS);
    return false;
  }
  body = kernel;
  buffers = arguments;
  now.groups = {groups[0], groups[1], groups[2]};
  now.threads = threads;
  fibers = std::vector<Fiber>(threads);
  stacks.reset(new char[threads * STACK]);
  Position& g = now.group;
  for (g.z = 0; g.z < groups[2]; g.z++)
    for (g.y = 0; g.y < groups[1]; g.y++)
      for (g.x = 0; g.x < groups[0]; g.x++) {
        run_group();
        if (message[0]) return false;
      }
  return true;
}

}  // namespace machine
