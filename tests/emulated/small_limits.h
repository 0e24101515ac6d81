// In place of the sizes in csrc/cuda/limits.cuh: what takes megabytes there happens here with a few dozen elements.
#pragma once

#include <cstdint>

namespace shrinknets {

constexpr int kThreads = 64;
constexpr int64_t kMostBlocks = 3;
constexpr int64_t kLongRow = 40;
constexpr int64_t kMostRows = 3;
constexpr int64_t kShare = 70;
constexpr int64_t kMostShares = 40;  // more than a warp adds up at once
constexpr int kTileBytes = 512;
constexpr int kSmallBatch = 130;  // three items
constexpr int kLargeBatch = 380;  // eight or nine

}  // namespace shrinknets
