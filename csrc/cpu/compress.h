// Squeezes the kept words of a line together, 16 bytes of the line at a time: a byte shuffle by a table, one table per
// word size, then a store of all 16 bytes, whose surplus the next one overwrites.
#pragma once

#include "../tiles.h"

#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define SN_SHUFFLES 1
#else
#define SN_SHUFFLES 0
#endif

namespace shrinknets {

constexpr int kBlock = 16;  // bytes of one shuffle

inline bool can_compress([[maybe_unused]] int word) {
#if SN_SHUFFLES
  static const bool can = __builtin_cpu_supports("ssse3");
  return can && word >= 2 && word <= 8;  // of single bytes a table would have 65,536 entries
#else
  return false;
#endif
}

// For each full block of an old line: which of its words stay.
inline std::vector<uint8_t> block_masks(const Kept& kept, int words) {
  std::vector<uint8_t> masks(kept.old_size / words);
  for (int64_t i = 0; i < kept.new_size && kept.list[i] / words < static_cast<int64_t>(masks.size()); ++i) {
    masks[kept.list[i] / words] |= 1 << kept.list[i] % words;
  }
  return masks;
}

#if SN_SHUFFLES

// shuffle[m] brings the words whose bits are set in m to the front; count[m] is their number.
template <int kWord>
struct Shuffles {
  static constexpr int kWords = kBlock / kWord;
  alignas(kBlock) uint8_t shuffle[1 << kWords][kBlock] = {};
  uint8_t count[1 << kWords] = {};

  Shuffles() {
    for (int mask = 0; mask < 1 << kWords; ++mask) {
      int to = 0;
      for (int byte = 0; byte < kBlock; ++byte) {
        if (mask >> byte / kWord & 1) {
          shuffle[mask][to++] = byte;
        }
      }
      count[mask] = to / kWord;
    }
  }
};

// Writes the kept words of blocks from `block` on to `to`, as long as a whole block fits below `room` words. Returns
// the number of words written.
template <int kWord>
__attribute__((target("ssse3"))) int64_t compress(const char* line, const std::vector<uint8_t>& masks, int64_t block,
                                                  char* to, int64_t room) {
  if constexpr (kWord == 1 || kWord == kBlock) {
    return 0;
  } else {
    static const Shuffles<kWord> table;
    const int64_t blocks = masks.size();
    int64_t written = 0;
    for (; block < blocks && written + Shuffles<kWord>::kWords <= room; ++block) {
      const uint8_t mask = masks[block];
      const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line + block * kBlock));
      const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(table.shuffle[mask]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + written * kWord), _mm_shuffle_epi8(words, order));
      written += table.count[mask];
    }
    return written;
  }
}

#else

template <int kWord>
int64_t compress(const char*, const std::vector<uint8_t>&, int64_t, char*, int64_t) {
  return 0;
}

#endif

}  // namespace shrinknets
