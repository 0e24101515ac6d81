// The blocks of a launch: made, numbered, brought past a barrier, and used again.
#include "emulator.h"

#include <cstdlib>
#include <numeric>
#include <sstream>

namespace emulated {
namespace {

std::vector<Thread*> free_threads;  // used again, with their stacks
std::vector<Block*> free_blocks;

void thread_main() {
  running->body(running->arguments);
  finish_copies();
  current()->state = State::kDone;
  to_host(true);
  std::abort();
}

}  // namespace

const dim3& index_of(const Block* block) {
  return block->index;
}

std::string where(const Thread* t) {
  std::ostringstream text;
  text << "block " << t->block->number << " thread " << t->number << " waits at " << t->place.what << " ("
       << t->place.file << ":" << t->place.line << ")";
  return text.str();
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

void give_back(Block* block) {
  free_blocks.push_back(block);
}

Numbers::Numbers(uint64_t blocks) : blocks_(blocks) {
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

uint64_t Numbers::operator[](uint64_t i) const {
  return order_ == kShuffled ? shuffled_[i] : order_ == kDescending ? blocks_ - 1 - i : i;
}

}  // namespace emulated
