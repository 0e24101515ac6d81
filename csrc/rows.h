// The index arithmetic of row-wise ops on strided tensors, shared by the CPU and the CUDA kernels.
#pragma once

#include "checks.h"
#include "scalar.h"

#include <algorithm>
#include <array>

namespace shrinknets {

constexpr int kMaxDims = 8;

// N tensors of one shape seen as rows (dimension 0) of `inner` elements. The inner dimensions are in the memory order
// of the first tensor, and merged where all tensors allow; most weights end with one.
template <int N>
struct Rows {
  int64_t rows = 0;
  int64_t inner = 1;
  int ndim = 1;
  int64_t size[kMaxDims] = {1};
  int64_t stride[N][kMaxDims] = {};
  int64_t row_stride[N] = {};

  // Inner element i of a row, as an offset from the row's start in tensor n.
  SN_HOST_DEVICE int64_t offset(int n, int64_t i) const {
    if (ndim == 1) {
      return i * stride[n][0];
    }
    int64_t result = 0;
    for (int d = ndim - 1; d > 0; --d) {
      result += (i % size[d]) * stride[n][d];
      i /= size[d];
    }
    return result + i * stride[n][0];
  }

  // Whether every tensor's rows are runs of neighbouring elements.
  bool dense() const {
    bool result = ndim == 1;
    for (int n = 0; n < N; ++n) {
      result = result && (stride[n][0] == 1 || inner == 1);
    }
    return result;
  }
};

// All of one shape, of 1 to kMaxDims dimensions.
template <int N>
Rows<N> make_rows(const std::array<const Tensor*, N>& tensors) {
  const Tensor& first = *tensors[0];
  Rows<N> rows;
  rows.rows = first.size(0);
  for (int n = 0; n < N; ++n) {
    rows.row_stride[n] = tensors[n]->stride(0);
  }
  std::array<int, kMaxDims> order{};
  int count = 0;
  for (int d = 1; d < first.dim(); ++d) {
    rows.inner *= first.size(d);
    if (first.size(d) != 1) {
      order[count++] = d;
    }
  }
  std::stable_sort(order.begin(), order.begin() + count,
                   [&](int a, int b) { return first.stride(a) > first.stride(b); });
  int merged = 0;
  for (int i = 0; i < count; ++i) {
    const int d = order[i];
    bool joins = merged > 0;
    for (int n = 0; n < N && joins; ++n) {
      joins = rows.stride[n][merged - 1] == tensors[n]->stride(d) * first.size(d);
    }
    const int slot = joins ? merged - 1 : merged++;
    rows.size[slot] = joins ? rows.size[slot] * first.size(d) : first.size(d);
    for (int n = 0; n < N; ++n) {
      rows.stride[n][slot] = tensors[n]->stride(d);
    }
  }
  rows.ndim = std::max(merged, 1);
  return rows;
}

}  // namespace shrinknets
