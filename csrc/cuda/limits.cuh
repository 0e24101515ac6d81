// The sizes at which the kernels change their ways. A build for tests names a header of its own with smaller ones, so
// that small tensors take several tiles, batches and rounds.
#pragma once

#include <cstdint>

#if defined(SN_LIMITS)
#include SN_LIMITS
#else

namespace shrinknets {

constexpr int kThreads = 256;           // of a block
constexpr int64_t kMostBlocks = 4096;   // of a loop over a grid: they fill any present GPU several times over
constexpr int64_t kLongRow = 1024;      // past this a warp would loop more than 32 times over a row
constexpr int64_t kMostRows = 1 << 20;  // blocks that take rows in turn
constexpr int64_t kShare = 16384;       // elements of a sum that a block takes
constexpr int64_t kMostShares = 1024;   // of one sum: gridDim.y, and adding up their results stays short
constexpr int kTileBytes = 32 << 10;    // four blocks of 64 registers fill a multiprocessor and hold 128 KB in flight
constexpr int kSmallBatch = 4000;       // bytes of a list in a kernel's arguments: every launch copies them all
constexpr int kLargeBatch = 32000;      // arguments take up to 32,764 bytes

}  // namespace shrinknets

#endif
