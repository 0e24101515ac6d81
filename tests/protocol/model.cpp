// A model of compact_'s protocol between tiles: blocks that read, publish, wait and write word by word, in random order
// and with random delays, over the same index arithmetic as the kernels. Usage: model RUNS SEED all|predecessor
// Prints the number of runs, of wrong results, of runs that got stuck, and of waits for a tile that had not read yet.
#include "../../csrc/tiles.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

using shrinknets::Kept;
using shrinknets::Span;
using shrinknets::Tiles;

namespace {

std::mt19937_64 draw;

int64_t pick(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(draw() % static_cast<uint64_t>(high - low + 1));
}

// Random kept positions of `size`, at least one; ascending, or a fill with the live ones of the tail in the holes.
std::vector<int64_t> random_list(int64_t size, bool fills) {
  const int64_t percent = pick(0, 3) * 30 + 5;
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < size; ++i) {
    if (pick(1, 100) > percent) {
      kept.push_back(i);
    }
  }
  if (kept.empty()) {
    kept.push_back(pick(0, size - 1));
  }
  if (fills) {
    std::vector<bool> alive(size, false);
    for (int64_t i : kept) {
      alive[i] = true;
    }
    const int64_t count = kept.size();
    int64_t tail = count;
    for (int64_t i = 0; i < count; ++i) {
      while (!alive[i] && !alive[tail]) {
        ++tail;
      }
      kept[i] = alive[i] ? i : tail++;
    }
  }
  return kept;
}

bool ascends(const std::vector<int64_t>& list) {
  for (size_t i = 1; i < list.size(); ++i) {
    if (list[i - 1] >= list[i]) {
      return false;
    }
  }
  return true;
}

struct Block {
  int64_t tile = 0, step = 0, delay = 0;
  enum { kReads, kWaits, kWrites, kDone } state = kReads;
  std::vector<int> held;
};

struct Outcome {
  bool wrong = false, stuck = false;
  int64_t waited = 0;
};

Outcome run(const Tiles& tiles, int64_t old_words, bool predecessor_only) {
  std::vector<int> memory(old_words), expected(tiles.words());
  for (int64_t i = 0; i < old_words; ++i) {
    memory[i] = static_cast<int>(i);
  }
  for (int64_t i = 0; i < tiles.words(); ++i) {
    expected[i] = memory[tiles.source(i)];
  }
  std::vector<bool> read(tiles.count(), false);
  std::vector<Block> blocks;
  Outcome outcome;
  const size_t resident = static_cast<size_t>(pick(1, 8));
  int64_t next = 0, idle = 0;
  while (next < tiles.count() || !blocks.empty()) {
    while (blocks.size() < resident && next < tiles.count()) {
      Block block;
      block.tile = next++;
      block.delay = pick(0, 3) ? 0 : pick(0, 60);
      blocks.push_back(block);
    }
    const size_t chosen = static_cast<size_t>(pick(0, static_cast<int64_t>(blocks.size()) - 1));
    Block& block = blocks[chosen];
    if (++idle > 100000) {
      outcome.stuck = true;
      return outcome;
    }
    if (block.delay > 0) {
      --block.delay;
      continue;
    }
    const Span range = tiles.range(block.tile);
    if (block.state == Block::kReads) {
      block.held.push_back(memory[tiles.source(range.begin + block.step++)]);
      if (range.begin + block.step == range.end) {
        read[block.tile] = true;
        block.state = Block::kWaits;
        block.delay = pick(0, 3) ? 0 : pick(0, 60);
      }
    } else if (block.state == Block::kWaits) {
      Span lower = tiles.waits(block.tile);
      if (predecessor_only && lower.end > lower.begin) {
        lower.begin = lower.end - 1;
      }
      bool free = true;
      for (int64_t t = lower.begin; t < lower.end; ++t) {
        free = free && read[t];
      }
      outcome.waited += !free;
      if (!free) {
        continue;
      }
      block.state = Block::kWrites;
      block.step = 0;
    } else {
      memory[tiles.target(range.begin + block.step)] = block.held[block.step];
      if (range.begin + ++block.step == range.end) {
        blocks.erase(blocks.begin() + static_cast<int64_t>(chosen));
      }
    }
    idle = 0;
  }
  for (int64_t i = 0; i < tiles.words(); ++i) {
    outcome.wrong = outcome.wrong || memory[tiles.target(i)] != expected[i];
  }
  return outcome;
}

Outcome random_run(bool predecessor_only) {
  const bool two = pick(0, 1), fill_rows = two && pick(0, 3) == 0, fill_columns = pick(0, 3) == 0;
  Tiles tiles;
  tiles.outer = pick(1, 3);
  tiles.inner = two ? pick(1, 3) : 1;
  tiles.unit = pick(1, 3);
  tiles.tile = pick(1, 7);
  const int64_t old_rows = pick(1, 9), old_columns = pick(1, 9);
  const std::vector<int64_t> rows = random_list(old_rows, fill_rows), columns = random_list(old_columns, fill_columns);
  std::vector<int64_t> holes, tail;
  if (two) {
    tiles.rows = Kept{rows.data(), old_rows, static_cast<int64_t>(rows.size()), ascends(rows)};
  }
  tiles.columns = Kept{columns.data(), old_columns, static_cast<int64_t>(columns.size()), ascends(columns)};
  if (!two && tiles.outer == 1 && !tiles.columns.ascends) {
    for (size_t i = 0; i < columns.size(); ++i) {
      if (columns[i] != static_cast<int64_t>(i)) {
        holes.push_back(static_cast<int64_t>(i));
        tail.push_back(columns[i]);
      }
    }
    tiles.holes = holes.data();
    tiles.columns.list = tail.data();
    tiles.columns.new_size = static_cast<int64_t>(tail.size());
  }
  return run(tiles, tiles.outer * (two ? old_rows : 1) * tiles.inner * old_columns * tiles.unit, predecessor_only);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: model RUNS SEED all|predecessor\n");
    return 2;
  }
  const int64_t runs = std::atoll(argv[1]);
  draw.seed(std::strtoull(argv[2], nullptr, 10));
  int64_t wrong = 0, stuck = 0, waited = 0;
  for (int64_t i = 0; i < runs; ++i) {
    const Outcome outcome = random_run(std::strcmp(argv[3], "predecessor") == 0);
    wrong += outcome.wrong;
    stuck += outcome.stuck;
    waited += outcome.waited;
  }
  std::printf("%lld %lld %lld %lld\n", static_cast<long long>(runs), static_cast<long long>(wrong),
              static_cast<long long>(stuck), static_cast<long long>(waited));
  return 0;
}
