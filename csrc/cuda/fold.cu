// fold on CUDA: one launch forward (bias included), one backward.
#include "../fold.h"
#include "common.cuh"

namespace shrinknets {
namespace {

// out = s W over all elements, V at a time where rows are dense runs of a multiple of V; then the bias.
template <typename W, typename O, int V>
__global__ void fold_kernel(Rows<2> rows, const W* weight, O* out, Vector bias, Vector out_bias, Vector theta) {
  using acc = acc_t<W, O>;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t packs = rows.inner / V;
  for (int64_t i = start; i < rows.rows * packs; i += step) {
    const int64_t row = i / packs, k = (i - row * packs) * V;
    const acc s = scale_of<acc>(theta, row);
    const W* from = weight + row * rows.row_stride[0];
    O* to = out + row * rows.row_stride[1];
    if constexpr (V > 1) {
      const Pack<W, V> in = *reinterpret_cast<const Pack<W, V>*>(from + k);
      Pack<O, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        result.value[v] = static_cast<O>(scaled(static_cast<acc>(in.value[v]), s));
      }
      *reinterpret_cast<Pack<O, V>*>(to + k) = result;
    } else {
      to[rows.offset(1, k)] = static_cast<O>(scaled(static_cast<acc>(from[rows.offset(0, k)]), s));
    }
  }
  if (bias) {
    for (int64_t row = start; row < rows.rows; row += step) {
      out_bias.set<acc>(row, scaled(bias.get<acc>(row), scale_of<acc>(theta, row)));
    }
  }
}

// One group of kGroup threads per row: dW = s G and <G, W> in one read. kGroup is a warp for short rows, a block for
// long ones.
template <typename G, typename W, int kGroup>
__global__ void fold_backward_kernel(Rows<3> rows, const G* grad, const W* weight, W* dweight, BackwardVectors v) {
  using acc = acc_t<G, W>;
  constexpr int kRows = kThreads / kGroup;
  const int lane = threadIdx.x % kGroup;
  // the bound is the same for all threads of a block, so that every one of them reaches the block-wide sum
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < rows.rows;
       first += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t row = first + threadIdx.x / kGroup;
    const bool inside = row < rows.rows;
    const acc s = inside ? scale_of<acc>(v.theta, row) : acc(0);
    acc dot = 0;
    if (inside) {
      const G* g = grad + row * rows.row_stride[0];
      const W* w = weight + row * rows.row_stride[1];
      W* dw = dweight + row * rows.row_stride[2];
      for (int64_t k = lane; k < rows.inner; k += kGroup) {
        const acc upstream = static_cast<acc>(g[rows.offset(0, k)]);
        dot += upstream * static_cast<acc>(w[rows.offset(1, k)]);
        dw[rows.offset(2, k)] = static_cast<W>(scaled(upstream, s));
      }
    }
    if constexpr (kGroup == kWarp) {
      dot = warp_sum(dot);
    } else {
      dot = block_sum(dot);
    }
    if (inside && lane == 0) {
      const acc gb = v.grad_bias ? v.grad_bias.get<acc>(row) : acc(0);
      if (v.bias) {
        v.dbias.set<acc>(row, scaled(gb, s));
        dot += v.grad_bias ? gb * v.bias.get<acc>(row) : acc(0);
      }
      v.dtheta.set<acc>(row, s == acc(0) ? acc(0) : dot);
    }
  }
}

template <typename W, typename O>
void launch_fold(const OnCuda& on, const Rows<2>& rows, const W* weight, O* out, Vector bias, Vector out_bias,
                 Vector theta) {
  constexpr int V = 4;
  const bool packs = rows.dense() && rows.inner % V == 0 && rows.row_stride[0] % V == 0 &&
                     rows.row_stride[1] % V == 0 && aligned_for(weight, V) && aligned_for(out, V);
  const int64_t work = std::max(rows.rows * rows.inner / (packs ? V : 1), rows.rows);
  if (packs) {
    launch<fold_kernel<W, O, V>>(on, grid_for(work), rows, weight, out, bias, out_bias, theta);
  } else {
    launch<fold_kernel<W, O, 1>>(on, grid_for(work), rows, weight, out, bias, out_bias, theta);
  }
}

template <typename G, typename W>
void launch_fold_backward(const OnCuda& on, const Rows<3>& rows, const G* grad, const W* weight, W* dweight,
                          const BackwardVectors& v) {
  if (rows.inner > kLongRow) {
    const unsigned grid = static_cast<unsigned>(std::min(rows.rows, kMostRows));
    launch<fold_backward_kernel<G, W, kThreads>>(on, grid, rows, grad, weight, dweight, v);
  } else {
    const unsigned grid = static_cast<unsigned>(std::min(ceil_div(rows.rows, kThreads / kWarp), kMostRows));
    launch<fold_backward_kernel<G, W, kWarp>>(on, grid, rows, grad, weight, dweight, v);
  }
}

std::tuple<Tensor, Tensor> fold(Tensor weight, std::optional<Tensor> bias, Tensor theta,
                                std::optional<ScalarType> dtype) {
  return fold_on<OnCuda>(weight, bias, theta, dtype, [](const auto&... given) { launch_fold(given...); });
}

std::tuple<Tensor, Tensor, Tensor> fold_backward(Tensor grad_weight, std::optional<Tensor> grad_bias, Tensor weight,
                                                 std::optional<Tensor> bias, Tensor theta) {
  return fold_backward_on<OnCuda>(grad_weight, grad_bias, weight, bias, theta,
                                  [](const auto&... given) { launch_fold_backward(given...); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("fold", TORCH_BOX(&fold));
  m.impl("fold_backward", TORCH_BOX(&fold_backward));
}

}  // namespace shrinknets
