// Which thread goes on. All run on one thread of the CPU, so a seed gives one interleaving. Blocks in flight, and which
// of their threads goes on, are drawn; whoever waits (barrier, warp, sleep) is not drawn before its time.
#include "emulator.h"

#include <cstdlib>
#include <mutex>
#include <numeric>
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
std::vector<Thread*> free_threads;  // used again, with their stacks
std::vector<Block*> free_blocks;

void thread_main() {
  running->body(running->arguments);
  finish_copies();
  current()->state = State::kDone;
  to_host(true);
  std::abort();
}

Block* new_block(uint64_t number, const Launch& launch) {
  if (free_blocks.empty()) {
    free_blocks.push_back(new Block);
    free_blocks.back()->arena = mapped(kArenaBytes);
  }
  Block* b = free_blocks.back();
  free_blocks.pop_back();
  b->number = static_cast<uint32_t>(number);
  b->index =
      dim3(static_cast<unsigned>(number % launch.grid.x), static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
           static_cast<unsigned>(number / launch.grid.x / launch.grid.y));
  b->interval = b->at_barrier = b->done = 0;
  b->frozen_until = b->came = 0;
  b->priority = random_number();
  b->used = 0;
  b->shared.clear();
  b->known.reset();
  poison(b->arena, kArenaBytes, true);
  const unsigned count = launch.block.x * launch.block.y * launch.block.z;
  b->warps.resize((count + 31) / 32);
  for (Warp& w : b->warps) {
    w.arrived = 0;
  }
  while (b->threads.size() > count) {
    free_threads.push_back(b->threads.back());
    b->threads.pop_back();
  }
  while (b->threads.size() < count) {
    if (free_threads.empty()) {
      free_threads.push_back(new Thread);
    }
    b->threads.push_back(free_threads.back());
    free_threads.pop_back();
  }
  b->ready.assign(b->threads.rbegin(), b->threads.rend());
  for (unsigned i = 0; i < count; ++i) {
    Thread* t = b->threads[i];
    t->number = i;
    t->thread = dim3(i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y);
    t->block = b;
    prepare(t, thread_main);
  }
  if (watching) {
    watch_block(*b);
  }
  ++counters.blocks;
  return b;
}

void check_barrier(Block* b) {
  if (b->at_barrier == 0 || b->at_barrier + b->done < b->threads.size()) {
    return;
  }
  Run& r = *running;
  const Thread* first = nullptr;
  for (const Thread* t : b->threads) {
    if (t->state == State::kBarrier) {
      if (first && (first->place.line != t->place.line || std::strcmp(first->place.file, t->place.file) != 0)) {
        r.failure = "threads of a block wait at different barriers: " + where(first) + ", " + where(t);
        return;
      }
      first = first ? first : t;
    }
  }
  if (b->done > 0) {
    r.failure = "a thread has left while others wait: " + where(first);
    return;
  }
  ++counters.barriers;
  r.sleeps_in_a_row = 0;
  if (watching) {
    watch_barrier(*b);
  }
  ++b->interval;
  b->at_barrier = 0;
  for (auto t = b->threads.rbegin(); t != b->threads.rend(); ++t) {
    (*t)->state = State::kReady;
    b->ready.push_back(*t);
  }
}

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

// Block i to start; in a launch of a million or more, in order.
class Numbers {
 public:
  explicit Numbers(uint64_t blocks) : blocks_(blocks) {
    order_ = options.order == kAnyOrder ? static_cast<int>(random_number() % 3) : options.order;
    order_ = blocks > (1 << 20) ? static_cast<int>(kAscending) : order_;
    if (order_ == kShuffled) {
      shuffled_.resize(blocks);
      std::iota(shuffled_.begin(), shuffled_.end(), 0);
      for (uint64_t i = blocks; i > 1; --i) {
        std::swap(shuffled_[i - 1], shuffled_[random_number() % i]);
      }
    }
  }

  uint64_t operator[](uint64_t i) const {
    return order_ == kShuffled ? shuffled_[i] : order_ == kDescending ? blocks_ - 1 - i : i;
  }

 private:
  uint64_t blocks_;
  int order_;
  std::vector<uint32_t> shuffled_;
};

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
        free_blocks.push_back(b);
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

const dim3& index_of(const Block* block) {
  return block->index;
}

std::string where(const Thread* t) {
  std::ostringstream text;
  text << "block " << t->block->number << " thread " << t->number << " waits at " << t->place.what << " ("
       << t->place.file << ":" << t->place.line << ")";
  return text.str();
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
  free_blocks.insert(free_blocks.end(), r.resident.begin(), r.resident.end());  // after a failure
  running = nullptr;
  watching = false;
  if (!r.failure.empty()) {
    throw std::runtime_error("emulated: " + name_of(launch) + ": " + r.failure);
  }
}

}  // namespace emulated
