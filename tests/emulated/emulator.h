// The inside of the emulator: threads, blocks, and what the watcher is told.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emulated {

constexpr size_t kStack = 256 << 10;  // of a thread
constexpr size_t kArena = 48 << 10;   // shared memory of a block that asks for no more
constexpr size_t kGap = 64;           // bytes between its variables that nobody may touch
constexpr size_t kArenaBytes = kArena + 64 * kGap;

// For each block: all that it did before its interval of this number has happened.
using Knowledge = std::vector<uint32_t>;

struct Copy {
  char* to;
  const char* from;
  size_t bytes;
};

enum class State { kReady, kBarrier, kWarp, kAsleep, kDone };

struct Thread : Fiber {
  unsigned number = 0;  // in its block
  State state = State::kReady;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Place place;                 // where it waits
  unsigned turns = 0;          // exchanges so far
  std::vector<Copy> copies;
  std::shared_ptr<Knowledge> known;  // null: what its block knows
};

struct Warp {
  unsigned arrived = 0;
  alignas(16) char slots[2][32][16];
};

struct Variable {
  char* data;
  size_t bytes;
};

struct Block {
  dim3 index;
  uint32_t number = 0;
  uint32_t interval = 0;  // barriers so far
  std::vector<Thread*> threads, ready;
  std::vector<Warp> warps;
  unsigned at_barrier = 0, done = 0;
  uint64_t frozen_until = 0, priority = 0;
  uint64_t came = 0;  // the how manieth to do something atomic, such as to take a ticket
  char* arena = nullptr;
  size_t used = 0;
  std::unordered_map<const void*, Variable> shared;
  std::vector<bool> written;  // bytes of the arena
  std::shared_ptr<Knowledge> known;
};

enum Policy { kInTurn, kRandom, kPriorities, kStarved };
enum Order { kAscending, kDescending, kShuffled, kAnyOrder };

// How threads interleave; library.py has the words.
struct Options {
  uint64_t seed = 1;
  int policy = kInTurn;
  int resident = 0;  // blocks in flight; 0: drawn for each launch
  int order = kAscending;
  int preempt = 0;  // one in so many places where another thread may come in between does; 0: none
  int freeze = 0;   // one in so many switches stops a block for a while; 0: none
  int lazy = 2;     // a copy happens 0: when it is started, 1: when it is waited for, 2: drawn for each launch
  int watch = 0;    // look at every access (of code built for it)
};

struct Counters {
  uint64_t launches = 0, blocks = 0, switches = 0, barriers = 0, exchanges = 0, sleeps = 0, copies = 0, atomics = 0,
           preemptions = 0, accesses = 0;
};

// The launch in progress.
struct Sleeper {
  uint64_t wake;
  Thread* thread;
  bool operator<(const Sleeper& other) const { return wake > other.wake; }
};

struct Run {
  void (*body)(const void*);
  const void* arguments;
  std::vector<Block*> resident;
  std::vector<Sleeper> sleepers;  // a heap
  uint64_t step = 0, sleeps_in_a_row = 0, came = 0;
  std::string failure;
  bool lazy = false;
};

extern Options options;
extern Counters counters;
extern Run* running;
extern bool watching;
extern int inside;  // of the emulator: what is done there is not the kernel's

struct Inside {
  Inside() { ++inside; }
  ~Inside() { --inside; }
};

inline Thread* current() {
  return static_cast<Thread*>(self);
}

uint64_t random_number();
inline uint64_t random_below(uint64_t n) {
  return (random_number() >> 32) * n >> 32;
}

// fibers.cpp
char* mapped(size_t bytes);
void prepare(Thread* thread, void (*begin)());
void to_thread(Thread* thread);
void to_host(bool forever = false);
void poison(char* memory, size_t bytes, bool forbidden);  // for AddressSanitizer

// blocks.cpp
Block* new_block(uint64_t number, const Launch& launch);
void give_back(Block* block);
void check_barrier(Block* block);  // lets its threads go on once all have come
std::string where(const Thread* thread);

// Which block starts as the i-th; in a launch of a million or more, i itself.
class Numbers {
 public:
  explicit Numbers(uint64_t blocks);
  uint64_t operator[](uint64_t i) const;

 private:
  uint64_t blocks_;
  int order_;
  std::vector<uint32_t> shuffled_;
};

// scheduler.cpp
void maybe_preempt();
[[noreturn]] void fail(const std::string& words);  // inside a kernel: ends the launch

// host.cpp
void check_launch(const Launch& launch);
std::string name_of(const Launch& launch);

// watch_memory.cpp, watch_races.cpp
void watch_launch(const Launch& launch, uint64_t blocks, const void* arguments, size_t bytes);
void watch_block(Block& block);
void watch_access(const void* address, size_t bytes, bool writes, const void* pc);
void watch_atomic(const void* address, size_t bytes, bool reads, bool writes, bool acquires, bool releases);
void watch_barrier(Block& block);

}  // namespace emulated
