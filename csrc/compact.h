// The arguments of compact_, checked before a byte moves, and each tensor as tiles; for both devices.
#pragma once

#include "checks.h"
#include "tiles.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

namespace shrinknets {

constexpr const char* kCompact = "compact_";

// A kept list and its form: ascending, or a fill (see tiles.h), whose tail entries ascend too.
struct KeptList {
  const int64_t* data = nullptr;
  int64_t size = 0;
  int64_t largest = -1;
  bool ascends = true;
  std::vector<int64_t> holes, tail;  // of a fill: tail[i] goes to holes[i]

  Kept of(int64_t old_size) const { return {data, old_size, size, ascends}; }
};

inline KeptList check_kept(const Tensor& kept, size_t index) {
  const std::string name = "kept[" + std::to_string(index) + "]";
  SN_CHECK(kept.scalar_type() == ScalarType::Long && kept.dim() == 1 && kept.is_cpu() && kept.is_contiguous(), kCompact,
           ": ", name, " has dtype ", name_of(kept.scalar_type()), " and shape ", shape_of(kept), " on ",
           device_of(kept), ", expected a contiguous int64 vector on cpu");
  KeptList list;
  list.data = static_cast<const int64_t*>(kept.data_ptr());
  list.size = kept.size(0);
  bool fills = true;
  int64_t tail = list.size - 1;  // the largest source so far of a filled hole
  for (int64_t i = 0; i < list.size; ++i) {
    const int64_t from = list.data[i];
    SN_CHECK(from >= 0, kCompact, ": ", name, " holds ", from, " at position ", i, ", expected a position from 0");
    list.ascends = list.ascends && (i == 0 || list.data[i - 1] < from);
    list.largest = std::max(list.largest, from);
    fills = fills && (from == i || from > tail);
    tail = from != i ? from : tail;
    SN_CHECK(list.ascends || fills, kCompact, ": ", name, " holds ", from, " at position ", i,
             ", expected ascending positions, or each position itself or, ascending, one from ", list.size, " on");
  }
  for (int64_t i = 0; i < list.size && !list.ascends; ++i) {
    if (list.data[i] != i) {
      list.holes.push_back(i);
      list.tail.push_back(list.data[i]);
    }
  }
  return list;
}

// A tensor of the call: where it lies, and how it is cut.
struct Piece {
  char* data = nullptr;
  int64_t bytes = 0;  // of the tensor as it was
  int word = 1;       // bytes
  Tiles tiles;
  int rows = -1, columns = -1;  // which kept lists

  bool moves() const { return tiles.words() > 0 && (rows >= 0 || columns >= 0); }
};

// Dimensions in memory order, outermost first, those of size 1 left out; an error where the tensor has gaps.
inline std::vector<int64_t> memory_order(const Tensor& t, size_t index) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) != 1) {
      order.push_back(d);
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend() && t.numel() > 0; ++d) {
    SN_CHECK(t.stride(*d) == expected, kCompact, ": tensors[", index, "] of shape ", shape_of(t), " has stride ",
             t.stride(*d), " along dimension ", *d, ", expected ", expected, ": it has gaps");
    expected *= t.size(*d);
  }
  return order;
}

// The largest power of two up to 16 that divides all of these numbers of bytes.
inline int common_word(std::initializer_list<uint64_t> bytes) {
  uint64_t bits = 16;
  for (uint64_t b : bytes) {
    bits |= b;
  }
  return static_cast<int>(bits & (~bits + 1));
}

// How many words of this many bytes a device moves at a time.
using TileWords = int64_t (*)(int word);

// edits: (dimension, index of the kept list) of this tensor.
inline Piece make_piece(const Tensor& t, size_t index, const std::vector<std::pair<int64_t, int64_t>>& edits,
                        const std::vector<KeptList>& lists, TileWords tile_words) {
  Piece piece;
  piece.data = static_cast<char*>(t.data_ptr());
  piece.bytes = t.numel() * static_cast<int64_t>(t.element_size());
  const std::vector<int64_t> order = memory_order(t, index);
  std::vector<int64_t> which(t.dim(), -1);
  bool empty = t.numel() == 0;
  int count = 0;
  for (const auto& [dim, list] : edits) {
    SN_CHECK(dim >= 0 && dim < t.dim(), kCompact, ": dim ", dim, " of tensors[", index, "], expected 0 to ",
             t.dim() - 1, " for shape ", shape_of(t));
    SN_CHECK(which[dim] < 0, kCompact, ": dim ", dim, " of tensors[", index, "] is given twice");
    which[dim] = list;
    const KeptList& kept = lists[list];
    SN_CHECK(kept.largest < t.size(dim), kCompact, ": kept[", list, "] holds ", kept.largest,
             ", expected positions below ", t.size(dim), ", the size of dimension ", dim, " of tensors[", index, "]");
    empty = empty || kept.size == 0;
    count += t.size(dim) > 1;
  }
  SN_CHECK(count <= 2, kCompact, ": tensors[", index, "] loses positions along ", count,
           " dimensions, expected 1 or 2");
  if (empty || count == 0) {
    return piece;
  }
  Tiles& tiles = piece.tiles;
  int64_t after = 1;  // the product of the sizes since the last kept dimension
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    const int64_t list = which[*d];
    if (list < 0) {
      after *= t.size(*d);
    } else if (piece.columns < 0) {
      piece.columns = static_cast<int>(list);
      tiles.unit = std::exchange(after, 1);
      tiles.columns = lists[list].of(t.size(*d));
    } else {
      piece.rows = static_cast<int>(list);
      tiles.inner = std::exchange(after, 1);
      tiles.rows = lists[list].of(t.size(*d));
    }
  }
  tiles.outer = after;
  const KeptList& columns = lists[piece.columns];
  if (!columns.ascends && piece.rows < 0 && tiles.outer == 1) {
    tiles.holes = columns.holes.data();
    tiles.columns.list = columns.tail.data();
    tiles.columns.new_size = columns.tail.size();
  }
  const uint64_t unit_bytes = tiles.unit * t.element_size();
  piece.word = common_word({unit_bytes, reinterpret_cast<uint64_t>(piece.data)});
  tiles.unit = unit_bytes / piece.word;
  tiles.tile = tile_words(piece.word);
  return piece;
}

inline void check_apart(const std::vector<Piece>& pieces) {
  std::vector<size_t> order;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].bytes > 0) {
      order.push_back(i);
    }
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return pieces[a].data < pieces[b].data; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Piece &low = pieces[order[i - 1]], &high = pieces[order[i]];
    SN_CHECK(low.data + low.bytes <= high.data, kCompact, ": tensors[", std::min(order[i - 1], order[i]),
             "] and tensors[", std::max(order[i - 1], order[i]), "] share memory");
  }
}

// Edit e: tensors[tensor[e]] keeps the positions kept[index[e]] along dimension dim[e].
inline std::vector<Piece> make_pieces(const std::vector<Tensor>& tensors, const std::vector<KeptList>& lists,
                                      const std::vector<int64_t>& tensor, const std::vector<int64_t>& dim,
                                      const std::vector<int64_t>& index, TileWords tile_words) {
  SN_CHECK(tensor.size() == dim.size() && dim.size() == index.size(), kCompact, ": tensor, dim and index have ",
           tensor.size(), ", ", dim.size(), " and ", index.size(), " entries, expected as many of each");
  std::vector<std::vector<std::pair<int64_t, int64_t>>> edits(tensors.size());
  for (size_t e = 0; e < tensor.size(); ++e) {
    const auto bound = static_cast<int64_t>(tensors.size()), known = static_cast<int64_t>(lists.size());
    SN_CHECK(tensor[e] >= 0 && tensor[e] < bound, kCompact, ": tensor holds ", tensor[e], ", expected 0 to ",
             bound - 1);
    SN_CHECK(index[e] >= 0 && index[e] < known, kCompact, ": index holds ", index[e], ", expected 0 to ", known - 1);
    edits[tensor[e]].emplace_back(dim[e], index[e]);
  }
  std::vector<Piece> pieces;
  pieces.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_same_device(kCompact, "tensors", tensors[i], "the others", tensors[0]);
    pieces.push_back(make_piece(tensors[i], i, edits[i], lists, tile_words));
  }
  check_apart(pieces);
  return pieces;
}

inline std::vector<KeptList> check_lists(const std::vector<Tensor>& kept) {
  std::vector<KeptList> lists;
  for (size_t i = 0; i < kept.size(); ++i) {
    lists.push_back(check_kept(kept[i], i));
  }
  return lists;
}

}  // namespace shrinknets
