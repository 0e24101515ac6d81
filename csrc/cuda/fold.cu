// fold on CUDA: one launch forward (bias included), one backward.
#include "../fold.h"
#include "common.cuh"

#include <tuple>

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

struct BackwardVectors {
  Vector grad_bias, bias, theta, dbias, dtheta;
};

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
void launch_fold(const Rows<2>& rows, const W* weight, O* out, Vector bias, Vector out_bias, Vector theta,
                 cudaStream_t s) {
  constexpr int V = 4;
  const bool packs = rows.dense() && rows.inner % V == 0 && rows.row_stride[0] % V == 0 &&
                     rows.row_stride[1] % V == 0 && aligned_for(weight, V) && aligned_for(out, V);
  const int64_t work = std::max(rows.rows * rows.inner / (packs ? V : 1), rows.rows);
  if (packs) {
    fold_kernel<W, O, V><<<grid_for(work), kThreads, 0, s>>>(rows, weight, out, bias, out_bias, theta);
  } else {
    fold_kernel<W, O, 1><<<grid_for(work), kThreads, 0, s>>>(rows, weight, out, bias, out_bias, theta);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename G, typename W>
void launch_fold_backward(const Rows<3>& rows, const G* grad, const W* weight, W* dweight, const BackwardVectors& v,
                          cudaStream_t s) {
  constexpr int64_t kLongRow = 1024;  // past this a warp would loop more than 32 times
  if (rows.inner > kLongRow) {
    const unsigned grid = static_cast<unsigned>(std::min<int64_t>(rows.rows, 1 << 20));
    fold_backward_kernel<G, W, kThreads><<<grid, kThreads, 0, s>>>(rows, grad, weight, dweight, v);
  } else {
    const unsigned grid = static_cast<unsigned>(std::min<int64_t>(ceil_div(rows.rows, kThreads / kWarp), 1 << 20));
    fold_backward_kernel<G, W, kWarp><<<grid, kThreads, 0, s>>>(rows, grad, weight, dweight, v);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor> fold(Tensor weight, std::optional<Tensor> bias, Tensor theta,
                                std::optional<ScalarType> dtype) {
  check_fold("fold", weight, bias, theta);
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  const ScalarType type = dtype.value_or(weight.scalar_type());
  check_dtype("fold", "dtype", type);
  Tensor out = empty_like(weight, type);
  Tensor out_bias = empty_vector(weight, bias.has_value() ? weight.size(0) : 0, type);
  if (weight.size(0) == 0) {
    return {out, out_bias};
  }
  weight = widened(weight, type != ScalarType::Double && (is_double(theta) || is_double(bias)));
  const auto rows = make_rows<2>({&weight, &out});
  const auto dense_bias = dense(bias);
  const Tensor dense_theta = dense(theta);
  const cudaStream_t stream = current_stream(weight);
  dispatch(weight.scalar_type(), [&](auto w) {
    dispatch(type, [&](auto o) {
      using W = typename decltype(w)::type;
      using O = typename decltype(o)::type;
      launch_fold<W, O>(rows, static_cast<const W*>(weight.data_ptr()), static_cast<O*>(out.data_ptr()),
                        Vector(dense_bias), Vector(out_bias), Vector(dense_theta), stream);
    });
  });
  return {out, out_bias};
}

std::tuple<Tensor, Tensor, Tensor> fold_backward(Tensor grad_weight, std::optional<Tensor> grad_bias, Tensor weight,
                                                 std::optional<Tensor> bias, Tensor theta) {
  check_fold_backward(grad_weight, grad_bias, weight, bias, theta);
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  Tensor dweight = empty_like(weight, weight.scalar_type());
  Tensor dbias = bias.has_value() ? empty_vector(weight, weight.size(0), bias->scalar_type())
                                  : empty_vector(weight, 0, weight.scalar_type());
  Tensor dtheta = empty_vector(weight, weight.size(0), theta.scalar_type());
  if (weight.size(0) == 0) {
    return {dweight, dbias, dtheta};
  }
  grad_weight =
      widened(grad_weight, !is_double(weight) && (is_double(theta) || is_double(bias) || is_double(grad_bias)));
  const auto rows = make_rows<3>({&grad_weight, &weight, &dweight});
  const auto dense_grad_bias = dense(grad_bias);
  const auto dense_bias = dense(bias);
  const Tensor dense_theta = dense(theta);
  const BackwardVectors vectors{Vector(dense_grad_bias), Vector(dense_bias), Vector(dense_theta), Vector(dbias),
                                Vector(dtheta)};
  const cudaStream_t stream = current_stream(weight);
  dispatch(grad_weight.scalar_type(), [&](auto g) {
    dispatch(weight.scalar_type(), [&](auto w) {
      using G = typename decltype(g)::type;
      using W = typename decltype(w)::type;
      launch_fold_backward<G, W>(rows, static_cast<const G*>(grad_weight.data_ptr()),
                                 static_cast<const W*>(weight.data_ptr()), static_cast<W*>(dweight.data_ptr()), vectors,
                                 stream);
    });
  });
  return {dweight, dbias, dtheta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("fold", TORCH_BOX(&fold));
  m.impl("fold_backward", TORCH_BOX(&fold_backward));
}

}  // namespace shrinknets
