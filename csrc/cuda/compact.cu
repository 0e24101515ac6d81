// compact_ on CUDA: one launch for all tensors of a device. A block takes the next tile, reads it into shared memory,
// says that it has (release), waits until the lower tiles that read from where it writes have said so (acquire), and
// writes. Tickets go out in order and nobody waits before it has said that it has read, so every wait ends.
#include "../compact.h"
#include "common.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

namespace shrinknets {
namespace {

// A tensor in device memory, in the call's one sequence of tiles.
struct Entry {
  char* data;
  Tiles tiles;
  int64_t first;  // its first tile's number
  int word;
};

struct alignas(16) Buffer {
  char bytes[kTileBytes];
};

// The entry that holds tile t; all lanes of a warp search together, 32 entries a step.
__device__ __forceinline__ int64_t entry_of(const Entry* entries, int64_t count, int64_t t) {
  const int lane = threadIdx.x % kWarp;
  int64_t begin = 0;
  while (count > 1) {
    const int64_t step = (count + kWarp - 1) / kWarp, at = lane * step;
    const unsigned below = __ballot_sync(kFullMask, at < count && entries[begin + at].first <= t);
    const int64_t part = __popc(below) - 1;
    begin += part * step;
    count = min(step, count - part * step);
  }
  return begin;
}

// Quotients of what is nearly always below 2^32, where a division costs a third.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  }
  return a / b;
}

// Old and new places of the words of one tile. The tile's own line is divided out once; what most tensors look like
// (single words, or few lines to a tile) then needs no division at all.
class Places {
 public:
  __device__ Places(const Tiles& tiles, int64_t begin)
      : tiles_(tiles), line_(begin / tiles.new_line()), rest_(begin - line_ * tiles.new_line()) {}

  // Word begin + i.
  __device__ int64_t source(int64_t i) const {
    const int64_t length = tiles_.new_line();
    int64_t line = line_, rest = rest_ + i;
    if (rest >= length) {
      const int64_t lines = quotient(rest, length);
      line += lines;
      rest -= lines * length;
    }
    const int64_t column = tiles_.unit == 1 ? rest : quotient(rest, tiles_.unit);
    const bool direct = tiles_.inner == 1 && tiles_.outer == 1 && tiles_.rows.list;
    const int64_t old_line = direct ? tiles_.rows.list[line] : tiles_.source_line(line);
    return old_line * tiles_.old_line() + tiles_.columns.source(column) * tiles_.unit + (rest - column * tiles_.unit);
  }

 private:
  const Tiles& tiles_;
  int64_t line_, rest_;
};

// One word from global to shared memory; from four bytes on it may arrive later.
template <typename W>
__device__ __forceinline__ void start_read(W* to, const W* from) {
  if constexpr (sizeof(W) >= 4) {
    ptx::start_copy(to, from);
  } else {
    *to = *from;
  }
}

template <typename W>
__device__ void move(const Entry& entry, int64_t t, unsigned* read, Buffer& buffer, Span& waits) {
  const Tiles& tiles = entry.tiles;
  const Span range = tiles.range(t);
  const int size = static_cast<int>(range.end - range.begin);
  W* const data = reinterpret_cast<W*>(entry.data);
  W* const held = reinterpret_cast<W*>(buffer.bytes);
  const Places places(tiles, range.begin);
#pragma unroll 1
  for (int i = threadIdx.x; i < size; i += kThreads) {
    start_read(held + i, data + places.source(i));
  }
  if (threadIdx.x == 0) {
    waits = tiles.waits(t);  // while the words are on their way
  }
  ptx::finish_copies();
  __syncthreads();  // all of the tile has been read
  if (threadIdx.x == 0) {
    ptx::store_release(read + t);
  }
  const Span lower = waits;
  for (int64_t other = lower.begin + threadIdx.x; other < lower.end; other += kThreads) {
    while (ptx::load_acquire(read + other) == 0) {
      __nanosleep(64);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < size; i += kThreads) {
    data[tiles.target(range.begin + i)] = held[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    compact_kernel(const Entry* entries, int64_t count, unsigned* next, unsigned* read) {
  SN_SHARED(unsigned, ticket);
  SN_SHARED(Span, waits);
  SN_SHARED(Buffer, buffer);
  if (threadIdx.x == 0) {
    ticket = atomicAdd(next, 1u);
  }
  __syncthreads();
  const Entry& entry = entries[entry_of(entries, count, ticket)];
  const int64_t t = ticket - entry.first;
  read += entry.first;
  switch (entry.word) {
    case 1:
      return move<uint8_t>(entry, t, read, buffer, waits);
    case 2:
      return move<uint16_t>(entry, t, read, buffer, waits);
    case 4:
      return move<uint32_t>(entry, t, read, buffer, waits);
    case 8:
      return move<uint2>(entry, t, read, buffer, waits);
    default:
      return move<uint4>(entry, t, read, buffer, waits);
  }
}

// Bytes laid out one after the other, to be copied to the device as a whole.
class Layout {
 public:
  // Where `bytes` of `data` will be, from the beginning.
  int64_t add(const void* data, int64_t bytes) {
    const int64_t place = size_;
    if (bytes > 0) {  // no part may be null
      parts_.push_back({data, bytes, place});
    }
    size_ += ceil_div(bytes, 16) * 16;
    return place;
  }

  int64_t size() const { return size_; }

  void write(char* to) const {
    for (const Part& part : parts_) {
      std::memcpy(to + part.place, part.data, part.bytes);
    }
  }

 private:
  struct Part {
    const void* data;
    int64_t bytes, place;
  };
  std::vector<Part> parts_;
  int64_t size_ = 0;
};

// The table goes to the device from pinned memory, so that nothing waits for the device.
void move_all(const std::vector<Piece>& pieces, const std::vector<KeptList>& lists, const Tensor& like) {
  Layout layout;
  std::vector<int64_t> list_at, holes_at, tail_at;
  for (const KeptList& list : lists) {
    list_at.push_back(layout.add(list.data, list.size * sizeof(int64_t)));
    holes_at.push_back(layout.add(list.holes.data(), list.holes.size() * sizeof(int64_t)));
    tail_at.push_back(layout.add(list.tail.data(), list.tail.size() * sizeof(int64_t)));
  }
  std::vector<Entry> entries;
  int64_t tiles = 0;
  for (const Piece& piece : pieces) {
    if (piece.moves()) {
      entries.push_back({piece.data, piece.tiles, tiles, piece.word});
      tiles += piece.tiles.count();
    }
  }
  if (tiles == 0) {
    return;
  }
  SN_CHECK(tiles < (int64_t{1} << 31), kCompact, ": ", tiles, " tiles, expected fewer than 2^31 in one call");
  const OnCuda on(like);
  SN_CHECK(!is_captured(on), kCompact,
           ": the stream is captured into a CUDA graph, whose replays would read a table of ",
           "this call that is no longer there; call it outside");
  const int64_t entries_at = layout.add(entries.data(), entries.size() * sizeof(Entry));
  const int64_t flags_at = layout.size(), flag_bytes = (tiles + 1) * sizeof(unsigned);
  Tensor table = new_bytes(like, flags_at + flag_bytes);
  char* const base = static_cast<char*>(table.data_ptr());
  size_t e = 0;
  for (const Piece& piece : pieces) {
    if (piece.moves()) {
      Tiles& moved = entries[e++].tiles;
      const auto at = [&](int64_t place) { return reinterpret_cast<const int64_t*>(base + place); };
      moved.rows.list = piece.rows < 0 ? nullptr : at(list_at[piece.rows]);
      moved.columns.list = at(moved.holes ? tail_at[piece.columns] : list_at[piece.columns]);
      moved.holes = moved.holes ? at(holes_at[piece.columns]) : nullptr;
    }
  }
  const Tensor host = new_pinned_bytes(flags_at);
  layout.write(static_cast<char*>(host.data_ptr()));
  Tensor head = torch::stable::narrow(table, 0, 0, flags_at);
  torch::stable::copy_(head, host, true);
  unsigned* const flags = reinterpret_cast<unsigned*>(base + flags_at);
  STD_CUDA_CHECK(cudaMemsetAsync(flags, 0, flag_bytes, on.stream));
  launch<compact_kernel>(on, static_cast<unsigned>(tiles), reinterpret_cast<const Entry*>(base + entries_at),
                         static_cast<int64_t>(entries.size()), flags, flags + 1);
}

void compact_(std::vector<Tensor> tensors, std::vector<Tensor> kept, std::vector<int64_t> tensor,
              std::vector<int64_t> dim, std::vector<int64_t> index) {
  const std::vector<KeptList> lists = check_lists(kept);
  const std::vector<Piece> pieces =
      make_pieces(tensors, lists, tensor, dim, index, [](int word) -> int64_t { return kTileBytes / word; });
  if (!tensors.empty()) {
    move_all(pieces, lists, tensors[0]);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("compact_", TORCH_BOX(&compact_));
}

}  // namespace shrinknets
