// Which thread goes on. All run on one thread of the CPU, so a seed gives one interleaving. Blocks in flight, and which
// of their threads goes on, are drawn; whoever waits (barrier, warp, sleep) is not drawn before its time.
#include "emulator.h"

#include <cstdlib>
#include <mutex>
#include <sstream>
#include <stdexcept>

namespace emulated {

dim3 block_size, grid_size;
Options options;
Counters counters;
Run* running = nullptr;
bool watching = false;

namespace {

std::mutex launching;
uint64_t random_state = 1;
bool can_go_on(const Block* b) {
  return !b->ready.empty() && b->frozen_until <= running->step;
}

Block* pick_block() {
  const auto& resident = running->resident;
  if (options.policy == kRandom) {
    uint64_t left = std::count_if(resident.begin(), resident.end(), can_go_on);
    left = left > 1 ? random_below(left) : 0;
    for (Block* b : resident) {
      if (can_go_on(b) && left-- == 0) {
        return b;
      }
    }
    return nullptr;
  }
  Block* chosen = nullptr;
  for (Block* b : resident) {
    if (can_go_on(b) &&
        (!chosen || (options.policy == kPriorities && b->priority > chosen->priority) ||
         (options.policy == kStarved && b->came - 1 > chosen->came - 1))) {  // who has not come, goes first
      chosen = b;
    }
  }
  return chosen;
}

// The next thread to go on; null where nobody ever will.
Thread* pick() {
  Run& r = *running;
  ++r.step;
  for (;;) {
    while (!r.sleepers.empty() && r.sleepers.front().wake <= r.step) {
      Thread* t = r.sleepers.front().thread;
      std::pop_heap(r.sleepers.begin(), r.sleepers.end());
      r.sleepers.pop_back();
      t->state = State::kReady;
      t->block->ready.push_back(t);
    }
    if (Block* b = pick_block()) {
      if (options.freeze > 0 && random_below(options.freeze) == 0) {
        b->frozen_until = r.step + random_number() % 3000;
      }
      if (options.policy == kPriorities && random_below(200) == 0) {
        b->priority = random_number() % 4 ? random_number() : 0;
      }
      if (options.policy != kInTurn) {
        std::swap(b->ready[random_below(b->ready.size())], b->ready.back());
      }
      Thread* t = b->ready.back();
      b->ready.pop_back();
      return t;
    }
    uint64_t wake = r.sleepers.empty() ? ~uint64_t{0} : r.sleepers.front().wake;
    for (const Block* b : r.resident) {
      wake = b->ready.empty() ? wake : std::min(wake, b->frozen_until);
    }
    if (wake == ~uint64_t{0}) {
      return nullptr;
    }
    r.step = std::max(r.step, wake);
  }
}

std::string deadlock() {
  std::string words = "deadlock";
  int listed = 0;
  for (const Block* b : running->resident) {
    for (const Thread* t : b->threads) {
      if (t->state != State::kDone && listed++ < 4) {
        words += "; " + where(t);
      }
    }
  }
  return words;
}

void run_blocks(const Launch& launch, uint64_t blocks) {
  Run& r = *running;
  const size_t limit = options.resident > 0 ? options.resident : options.policy == kInTurn ? 1 : 1 + random_below(8);
  const Numbers numbers(blocks);
  uint64_t next = 0;
  while (r.failure.empty()) {
    while (r.resident.size() < limit && next < blocks) {
      r.resident.push_back(new_block(numbers[next++], launch));
    }
    if (r.resident.empty()) {
      return;
    }
    Thread* t = pick();
    if (!t) {
      r.failure = deadlock();
      return;
    }
    to_thread(t);
    Block* b = t->block;
    if (t->state == State::kDone) {
      r.sleeps_in_a_row = 0;
      if (++b->done == b->threads.size()) {
        r.resident.erase(std::find(r.resident.begin(), r.resident.end(), b));
        give_back(b);
        continue;
      }
    }
    if (t->state == State::kDone || t->state == State::kBarrier) {
      check_barrier(b);
    }
  }
}

}  // namespace

uint64_t random_number() {  // splitmix64
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void fail(const std::string& words) {
  if (running->failure.empty()) {
    running->failure = words;
  }
  to_host(true);
  std::abort();
}

void maybe_preempt() {
  if (options.preempt > 0 && random_below(options.preempt) == 0) {
    ++counters.preemptions;
    current()->block->ready.push_back(current());
    to_host();
  }
}

void run(const Launch& launch, void (*body)(const void*), const void* arguments, size_t bytes) {
  const std::lock_guard<std::mutex> lock(launching);
  check_launch(launch);
  ++counters.launches;
  random_state = options.seed * 0x9e3779b97f4a7c15u + counters.launches;
  block_size = launch.block;
  grid_size = launch.grid;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  Run r;
  r.body = body;
  r.arguments = arguments;
  r.lazy = options.lazy == 1 || (options.lazy == 2 && random_number() % 2);
  running = &r;
  watching = options.watch != 0 && blocks <= 4096;
  if (watching) {
    watch_launch(launch, blocks, arguments, bytes);
  }
  run_blocks(launch, blocks);
  std::for_each(r.resident.begin(), r.resident.end(), give_back);  // after a failure
  running = nullptr;
  watching = false;
  if (!r.failure.empty()) {
    throw std::runtime_error("emulated: " + name_of(launch) + ": " + r.failure);
  }
}

}  // namespace emulated
