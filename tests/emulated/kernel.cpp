// What a kernel calls: barriers, exchanges in a warp, sleep, shared memory, asynchronous copies, atomic accesses.
#include "emulator.h"

namespace emulated {

void pause() {
  maybe_preempt();
}

void barrier(Place place) {
  const Inside here;
  Thread* t = current();
  t->place = place;
  t->state = State::kBarrier;
  ++t->block->at_barrier;
  to_host();
}

void exchange(unsigned mask, Place place, const void* mine, size_t bytes, const void** slots) {
  const Inside here;
  Thread* t = current();
  Block* b = t->block;
  Warp& warp = b->warps[t->number / 32];
  if (mask != 0xffffffffu) {
    fail(std::string(place.what) + ": only full masks are emulated");
  }
  ++counters.exchanges;
  t->place = place;
  const unsigned lane = t->number % 32, turn = t->turns++ % 2;
  std::memcpy(warp.slots[turn][lane], mine, bytes);
  warp.arrived |= 1u << lane;
  if (warp.arrived == 0xffffffffu) {
    warp.arrived = 0;
    running->sleeps_in_a_row = 0;
    for (unsigned i = 32; i-- > 0;) {
      Thread* other = b->threads[t->number / 32 * 32 + i];
      if (other->place.line != place.line || std::strcmp(other->place.file, place.file) != 0) {
        fail("lanes of a warp meet at different places: " + where(other) + " and " + where(t));
      }
      if (other != t) {
        other->state = State::kReady;
        b->ready.push_back(other);
      }
    }
  } else {
    t->state = State::kWarp;
    to_host();
  }
  for (int i = 0; i < 32; ++i) {
    slots[i] = warp.slots[turn][i];
  }
  maybe_preempt();
}

void sleep(unsigned nanoseconds) {
  const Inside here;
  Thread* t = current();
  if (nanoseconds > 1000000) {
    fail("__nanosleep takes at most a millisecond");
  }
  ++counters.sleeps;
  if (++running->sleeps_in_a_row > 1000000) {
    t->place = {"__nanosleep", "", 0};
    fail("deadlock: threads sleep and nothing else happens; " + where(t));
  }
  t->state = State::kAsleep;
  running->sleepers.push_back({running->step + 1 + random_below(64), t});
  std::push_heap(running->sleepers.begin(), running->sleepers.end());
  to_host();
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  const Inside here;
  Block* b = current()->block;
  const auto found = b->shared.find(key);
  if (found != b->shared.end()) {
    return found->second.data;
  }
  size_t total = bytes;
  for (const auto& [_, variable] : b->shared) {
    total += (variable.bytes + 15) / 16 * 16;
  }
  if (total > kArena) {
    fail("shared memory of a block is " + std::to_string(total) + " bytes, expected at most 49152");
  }
  // an odd multiple of the alignment: whoever needs more than the type says shows up
  const size_t at = ((b->used + kGap) / (2 * alignment) + 1) * 2 * alignment + alignment;
  char* const data = b->arena + at;
  b->used = at + bytes;
  poison(data, bytes, false);
  std::memset(data, 0xff, bytes);
  b->shared.emplace(key, Variable{data, bytes});
  return data;
}

namespace {
void run_copy(const Copy& copy) {
  if (watching) {
    watch_access(copy.from, copy.bytes, false, __builtin_return_address(0));
    watch_access(copy.to, copy.bytes, true, __builtin_return_address(0));
  }
  switch (copy.bytes) {  // inlined, so that AddressSanitizer looks at exactly these bytes
    case 4:
      std::memcpy(copy.to, copy.from, 4);
      break;
    case 8:
      std::memcpy(copy.to, copy.from, 8);
      break;
    default:
      std::memcpy(copy.to, copy.from, 16);
  }
}
}  // namespace

void start_copy(void* to, const void* from, size_t bytes) {
  const Inside here;
  Thread* t = current();
  ++counters.copies;
  const Copy copy{static_cast<char*>(to), static_cast<const char*>(from), bytes};
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    fail("cp.async of " + std::to_string(bytes) + " bytes");
  }
  if (copy.to < t->block->arena || copy.to + bytes > t->block->arena + kArenaBytes) {
    fail("cp.async to an address outside shared memory");
  }
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail("cp.async of " + std::to_string(bytes) + " bytes at an address that is not a multiple of it");
  }
  pause();
  if (running->lazy) {
    if (watching) {
      watch_access(from, bytes, false, __builtin_return_address(0));
    }
    std::memset(to, 0xee, bytes);  // anything may be there until it is waited for
    t->copies.push_back(copy);
  } else {
    run_copy(copy);
  }
}

void finish_copies() {
  const Inside here;
  Thread* t = current();
  for (const Copy& copy : t->copies) {
    run_copy(copy);
    pause();
  }
  t->copies.clear();
}

void atomic_access(const void* address, size_t bytes, bool reads, bool writes, bool acquires, bool releases) {
  const Inside here;
  ++counters.atomics;
  if (writes) {
    running->sleeps_in_a_row = 0;
  }
  if (Block* b = current()->block; b->came == 0) {
    b->came = ++running->came;
  }
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("an atomic access at an address that is not a multiple of its size");
  }
  if (watching) {
    watch_atomic(address, bytes, reads, writes, acquires, releases);
  }
}

}  // namespace emulated
