// Races, by what orders two accesses (a barrier of the block, a release that was acquired), not by which came first: of
// each byte the last write and three reads are known, each with its block, thread and the block's interval then.
#include "watch.h"

#include <dlfcn.h>

#include <sstream>

namespace emulated {
namespace {

struct Access {
  uint32_t block = 0, interval = 0;
  uint16_t thread = 0;
  uint8_t kind = 0;
  const void* pc = nullptr;
};

struct Cell {
  Access write, reads[3];
  uint8_t more = 0;  // which reader to forget next
};

constexpr size_t kPage = 1024;
std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
uintptr_t cached_page = ~uintptr_t{0};
Cell* cached_cells = nullptr;

std::unordered_map<uintptr_t, std::shared_ptr<Knowledge>> flags;
uint64_t blocks_of_launch = 0;

Cell& cell(uintptr_t address) {
  const uintptr_t page = address / kPage;
  if (page != cached_page) {
    auto& found = pages[page];
    if (!found) {
      found = std::make_unique<Cell[]>(kPage);
    }
    cached_page = page;
    cached_cells = found.get();
  }
  return cached_cells[address % kPage];
}

const uint32_t* known_to(const Thread* t) {
  const Knowledge* k = t->known ? t->known.get() : t->block->known.get();
  return k ? k->data() : nullptr;
}

// Whether what `before` did has happened before what t does now.
bool ordered(const Access& before, const Thread* t) {
  if (before.block == t->block->number) {
    return before.thread == t->number || before.interval < t->block->interval;
  }
  const uint32_t* known = known_to(t);
  return known && before.interval < known[before.block];
}

void race(const Access& before, const char* first, const char* second, uintptr_t address, const void* pc) {
  const Thread* t = current();
  std::ostringstream text;
  text << "a race at " << std::hex << address << std::dec << ": " << first << " by block " << before.block << " thread "
       << before.thread << " at " << name_of_place(before.pc) << ", " << second << " by block " << t->block->number
       << " thread " << t->number << " at " << name_of_place(pc) << ", and nothing puts them in order";
  fail(text.str());
}

void merge(Knowledge& into, const uint32_t* other) {
  for (size_t i = 0; other && i < into.size(); ++i) {
    into[i] = std::max(into[i], other[i]);
  }
}

void read_by(Cell& c, const Access& now) {
  for (Access& read : c.reads) {
    if (!read.kind || (read.block == now.block && read.thread == now.thread)) {
      read = now;
      return;
    }
  }
  c.reads[c.more++ % 3] = now;
}

}  // namespace

// For addr2line -e the library.
std::string name_of_place(const void* pc) {
  std::ostringstream text;
  Dl_info info;
  if (pc && dladdr(pc, &info)) {
    text << "+0x" << std::hex << reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  }
  return text.str();
}

void forget_accesses(uint64_t blocks) {
  pages.clear();
  cached_page = ~uintptr_t{0};
  flags.clear();
  blocks_of_launch = blocks;
}

void forget_accesses(uintptr_t address, size_t bytes) {
  for (uintptr_t page = address / kPage; page <= (address + bytes) / kPage; ++page) {
    pages.erase(page);
  }
  cached_page = ~uintptr_t{0};
}

void touch(uintptr_t address, size_t bytes, bool reads, bool writes, int kind, const void* pc) {
  const Thread* t = current();
  const Access now{t->block->number, t->block->interval, static_cast<uint16_t>(t->number), static_cast<uint8_t>(kind),
                   pc};
  for (uintptr_t a = address; a < address + bytes; ++a) {
    Cell& c = cell(a);
    const auto clash = [&](const Access& old) {
      return old.kind && (old.kind == kPlain || kind == kPlain) && !ordered(old, t);
    };
    if (clash(c.write)) {
      race(c.write, "a write", writes ? "a write" : "a read", a, pc);
    }
    if (writes) {
      for (Access& read : c.reads) {
        if (clash(read)) {
          race(read, "a read", "a write", a, pc);
        }
        read.kind = reads ? read.kind : 0;
      }
      c.write = now;
    }
    if (reads) {
      read_by(c, now);
    }
  }
}

void watch_atomic(const void* pointer, size_t bytes, bool reads, bool writes, bool acquires, bool releases) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const void* pc = __builtin_return_address(0);
  const std::string words = trouble(address, bytes, writes);
  if (!words.empty()) {
    fail(words + ": atomic, at " + name_of_place(pc));
  }
  Thread* t = current();
  touch(address, bytes, reads, writes, kAtomic, pc);
  if (acquires && flags.count(address)) {
    auto known = std::make_shared<Knowledge>(*flags[address]);
    merge(*known, known_to(t));
    t->known = known;
  }
  if (releases) {
    auto known = std::make_shared<Knowledge>(blocks_of_launch);
    merge(*known, known_to(t));
    (*known)[t->block->number] = t->block->interval;
    flags[address] = known;
  }
}

// What one thread has acquired, all of its block know after a barrier. Before the interval changes.
void watch_barrier(Block& block) {
  for (Thread* t : block.threads) {
    if (t->known) {
      auto all = std::make_shared<Knowledge>(*t->known);
      merge(*all, block.known ? block.known->data() : nullptr);
      block.known = all;
      t->known.reset();
    }
  }
}

}  // namespace emulated
