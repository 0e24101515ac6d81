// The index arithmetic of in-place compaction, shared by the CPU kernel, the CUDA kernel and the model of their
// protocol in tests/. No torch in here.
#pragma once

#include <cstdint>

#ifndef SN_HOST_DEVICE
#if defined(__CUDACC__)
#define SN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SN_HOST_DEVICE inline
#endif
#endif

namespace shrinknets {

// begin <= i < end.
struct Span {
  int64_t begin = 0;
  int64_t end = 0;
};

// The first position of the ascending list whose entry is at least `value`.
SN_HOST_DEVICE int64_t lower_bound(const int64_t* list, int64_t size, int64_t value) {
  int64_t low = 0, high = size;
  while (low < high) {
    const int64_t mid = (low + high) / 2;
    if (list[mid] < value) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

// One dimension: `kept` lists the old position of each new one, or is null where all stay. The list ascends (slide), or
// it is a fill: position i keeps i, or takes one from the tail that leaves, at or past new_size.
struct Kept {
  const int64_t* list = nullptr;
  int64_t old_size = 1;
  int64_t new_size = 1;
  bool ascends = true;

  SN_HOST_DEVICE int64_t source(int64_t i) const { return list ? list[i] : i; }

  // The first new position whose source, if the tail is left out, is at or past `old`.
  SN_HOST_DEVICE int64_t first_from(int64_t old) const {
    if (!list || !ascends) {
      return old < new_size ? old : new_size;
    }
    return lower_bound(list, new_size, old);
  }
};

// A dense tensor in memory order: lines of units of `unit` words. Within a line `columns` are kept; the lines are
// (outer, rows, inner) positions of which `rows` are kept. Where rows are filled, outer is 1.
//
// The words that move are cut into tiles of `tile` words. No word moves up: source(x) >= target(x). So where a tile
// writes, only it and lower tiles read, and those are all it must wait for: waits().
//
// Of a fill along the leading dimension only the holes move: unit i of the "result" goes to column holes[i], and the
// columns are those of the tail. Nothing is written in the tail, so all these moves are independent.
struct Tiles {
  int64_t outer = 1;
  Kept rows;
  int64_t inner = 1;
  Kept columns;
  int64_t unit = 1;
  int64_t tile = 1;
  const int64_t* holes = nullptr;

  SN_HOST_DEVICE int64_t old_line() const { return columns.old_size * unit; }
  SN_HOST_DEVICE int64_t new_line() const { return columns.new_size * unit; }
  SN_HOST_DEVICE int64_t lines() const { return outer * rows.new_size * inner; }
  SN_HOST_DEVICE int64_t words() const { return lines() * new_line(); }
  SN_HOST_DEVICE int64_t count() const { return (words() + tile - 1) / tile; }

  // Word range of tile t in the result.
  SN_HOST_DEVICE Span range(int64_t t) const {
    const int64_t end = (t + 1) * tile, all = words();
    return {t * tile, end < all ? end : all};
  }

  SN_HOST_DEVICE int64_t source_line(int64_t line) const {
    if (!rows.list) {
      return line;
    }
    const int64_t row = line / inner, block = row / rows.new_size;
    return (block * rows.old_size + rows.list[row - block * rows.new_size]) * inner + (line - row * inner);
  }

  SN_HOST_DEVICE int64_t source(int64_t word) const {
    const int64_t line = word / new_line(), rest = word - line * new_line(), column = rest / unit;
    return source_line(line) * old_line() + columns.source(column) * unit + (rest - column * unit);
  }

  SN_HOST_DEVICE int64_t target(int64_t word) const { return holes ? holes[word / unit] * unit + word % unit : word; }

  // The first line of the result whose source, the filling tail left out, is at or past the old line `old`.
  SN_HOST_DEVICE int64_t first_line_from(int64_t old) const {
    if (!rows.list) {
      return old;
    }
    const int64_t row = old / inner, block = row / rows.old_size, place = row - block * rows.old_size;
    const int64_t first = rows.first_from(place);
    const bool same = first < rows.new_size && (rows.source(first) == place || !rows.ascends);
    return (block * rows.new_size + first) * inner + (same ? old - row * inner : 0);
  }

  // The tiles below t that read from where tile t writes. They must have read before it writes.
  SN_HOST_DEVICE Span waits(int64_t t) const {
    const Span to = range(t);
    if (holes) {
      return {t, t};
    }
    if (!rows.ascends && outer > 1) {  // any row of the block may read there
      const int64_t old_block = rows.old_size * inner * old_line(), new_block = rows.new_size * inner * new_line();
      return below(t, to.begin / old_block * new_block, ((to.end - 1) / old_block + 1) * new_block);
    }
    const int64_t first_old = to.begin / old_line(), last_old = (to.end - 1) / old_line();
    const int64_t first = first_line_from(first_old), after = first_line_from(last_old + 1);
    int64_t low = first * new_line(), high = after * new_line();
    if (columns.ascends) {  // otherwise any unit of the line may read there
      if (first < after && source_line(first) == first_old) {
        low += columns.first_from((to.begin - first_old * old_line()) / unit) * unit;
      }
      if (first < after && source_line(after - 1) == last_old) {
        const int64_t past = (to.end - last_old * old_line() + unit - 1) / unit;
        high -= (columns.new_size - columns.first_from(past)) * unit;
      }
    }
    return below(t, low, high);
  }

 private:
  // The tiles below t of a range of words.
  SN_HOST_DEVICE Span below(int64_t t, int64_t low, int64_t high) const {
    const int64_t begin = low / tile, end = (high + tile - 1) / tile;
    return {begin < t ? begin : t, end < t ? end : t};
  }
};

}  // namespace shrinknets
