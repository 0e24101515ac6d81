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

constexpr int kTileBytes = 32 << 10;  // four blocks of 64 registers fill a multiprocessor and hold 128 KB in flight

// A tensor in device memory, in the call's one sequence of tiles.
struct Entry {
  char* data;
  Tiles tiles;
  int64_t first;  // its first tile's number
  int word;
};

__device__ __forceinline__ void publish(unsigned* flag) {
  asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}

__device__ __forceinline__ bool published(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value != 0;
}

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

// One word from global to shared memory; from four bytes on without a register and without waiting.
template <typename W>
__device__ __forceinline__ void start_read(W* to, const W* from) {
  if constexpr (sizeof(W) >= 4) {
    const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(sizeof(W)));
  } else {
    *to = *from;
  }
}

template <typename W>
__device__ void move(const Entry& entry, int64_t t, unsigned* read, void* buffer, Span* shared_waits) {
  const Tiles& tiles = entry.tiles;
  const Span range = tiles.range(t);
  const int size = static_cast<int>(range.end - range.begin);
  W* const data = reinterpret_cast<W*>(entry.data);
  W* const held = static_cast<W*>(buffer);
  const Places places(tiles, range.begin);
#pragma unroll 1
  for (int i = threadIdx.x; i < size; i += kThreads) {
    start_read(held + i, data + places.source(i));
  }
  if (threadIdx.x == 0) {
    *shared_waits = tiles.waits(t);  // while the words are on their way
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();  // all of the tile has been read
  if (threadIdx.x == 0) {
    publish(read + t);
  }
  const Span lower = *shared_waits;
  for (int64_t other = lower.begin + threadIdx.x; other < lower.end; other += kThreads) {
    while (!published(read + other)) {
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
  __shared__ unsigned ticket;
  __shared__ Span waits;
  __shared__ alignas(16) char buffer[kTileBytes];
  if (threadIdx.x == 0) {
    ticket = atomicAdd(next, 1u);
  }
  __syncthreads();
  const Entry& entry = entries[entry_of(entries, count, ticket)];
  const int64_t t = ticket - entry.first;
  read += entry.first;
  switch (entry.word) {
    case 1:
      return move<uint8_t>(entry, t, read, buffer, &waits);
    case 2:
      return move<uint16_t>(entry, t, read, buffer, &waits);
    case 4:
      return move<uint32_t>(entry, t, read, buffer, &waits);
    case 8:
      return move<uint2>(entry, t, read, buffer, &waits);
    default:
      return move<uint4>(entry, t, read, buffer, &waits);
  }
}

// Bytes laid out one after the other, to be copied to the device as a whole.
class Layout {
 public:
  // Where `bytes` of `data` will be, from the beginning.
  int64_t add(const void* data, int64_t bytes) {
    const int64_t place = size_;
    parts_.push_back({data, bytes, place});
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

Tensor new_bytes(int64_t size, const Tensor& like, bool on_host) {
  using torch::headeronly::DeviceType;
  using torch::stable::Device;
  const Device device = on_host ? Device(DeviceType::CPU) : Device(DeviceType::CUDA, like.get_device_index());
  return torch::stable::empty({size}, ScalarType::Byte, std::nullopt, device, on_host);
}

// The table goes to the device from pinned memory, so that nothing waits for the device.
void launch(const std::vector<Piece>& pieces, const std::vector<KeptList>& lists, const Tensor& like) {
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
  const int64_t entries_at = layout.add(entries.data(), entries.size() * sizeof(Entry));
  const int64_t flags_at = layout.size(), flag_bytes = (tiles + 1) * sizeof(unsigned);
  Tensor table = new_bytes(flags_at + flag_bytes, like, false);
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
  const Tensor host = new_bytes(flags_at, like, true);
  layout.write(static_cast<char*>(host.data_ptr()));
  const cudaStream_t stream = current_stream(like);
  Tensor head = torch::stable::narrow(table, 0, 0, flags_at);
  torch::stable::copy_(head, host, true);
  unsigned* const flags = reinterpret_cast<unsigned*>(base + flags_at);
  STD_CUDA_CHECK(cudaMemsetAsync(flags, 0, flag_bytes, stream));
  compact_kernel<<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(
      reinterpret_cast<const Entry*>(base + entries_at), entries.size(), flags, flags + 1);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void compact_(std::vector<Tensor> tensors, std::vector<Tensor> kept, std::vector<int64_t> tensor,
              std::vector<int64_t> dim, std::vector<int64_t> index) {
  const std::vector<KeptList> lists = check_lists(kept);
  const std::vector<Piece> pieces =
      make_pieces(tensors, lists, tensor, dim, index, [](int word) -> int64_t { return kTileBytes / word; });
  if (!tensors.empty()) {
    const torch::stable::accelerator::DeviceGuard guard(tensors[0].get_device_index());
    launch(pieces, lists, tensors[0]);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("compact_", TORCH_BOX(&compact_));
}

}  // namespace shrinknets
