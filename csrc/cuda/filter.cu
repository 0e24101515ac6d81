// filter on CUDA: memory order; the backward reads the gradient and the input once, then adds up a few partial sums.
#include "../filter.h"
#include "common.cuh"

namespace shrinknets {
namespace {

constexpr int kWarps = kThreads / kWarp;

// y = x s, or relu of it, V neighbouring elements at a time; all of a pack lie in one run, or a run is one element.
template <bool relu, typename T, typename acc, int V>
__global__ void filter_kernel(Blocks blocks, const T* x, T* y, Vector theta) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < blocks.numel(); i += step) {
    const int64_t first = (i / blocks.inner) % blocks.features;
    const Pack<T, V> in = *reinterpret_cast<const Pack<T, V>*>(x + i);
    Pack<T, V> out;
    acc s = scale_of<acc>(theta, first);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v > 0 && blocks.inner == 1) {
        s = scale_of<acc>(theta, first + v);
      }
      out.value[v] = static_cast<T>(activated<relu>(scaled(static_cast<acc>(in.value[v]), s)));
    }
    *reinterpret_cast<Pack<T, V>*>(y + i) = out;
  }
}

// Long runs: block (c, part) takes a share of feature c's elements; partial[part][c] is its sum. relu: x is the output.
template <bool relu, typename G, typename T>
__global__ void runs_backward_kernel(Blocks blocks, const G* grad, const T* x, T* dx, Vector theta,
                                     acc_t<G, T>* partial) {
  using acc = acc_t<G, T>;
  const int64_t c = blockIdx.x;
  const acc s = scale_of<acc>(theta, c);
  const int64_t count = blocks.outer * blocks.inner;
  const int64_t share = (count + gridDim.y - 1) / gridDim.y;
  const int64_t begin = share * blockIdx.y;
  const int64_t end = begin + share < count ? begin + share : count;
  acc sum = 0;
  for (int64_t j = begin + threadIdx.x; j < end; j += kThreads) {
    const int64_t o = j / blocks.inner;
    const int64_t i = (o * blocks.features + c) * blocks.inner + (j - o * blocks.inner);
    const acc value = static_cast<acc>(x[i]);
    const acc g = passed<relu>(static_cast<acc>(grad[i]), value);
    sum += g * value;
    dx[i] = static_cast<T>(scaled(g, s));
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    partial[blockIdx.y * blocks.features + c] = sum;
  }
}

// Runs shorter than a warp: x is a matrix of `outer` rows and features * inner columns. A block takes as many whole
// features as a warp has lanes for, a share of the rows, and all rows at once that it has threads for; partial[part][c]
// is a feature's sum.
template <bool relu, typename G, typename T>
__global__ void columns_backward_kernel(Blocks blocks, const G* grad, const T* x, T* dx, Vector theta,
                                        acc_t<G, T>* partial) {
  using acc = acc_t<G, T>;
  SN_SHARED(acc, sums, [kThreads]);
  const int width = static_cast<int>(blocks.inner), lanes = kWarp / width * width, rows = kThreads / lanes;
  const int lane = threadIdx.x % lanes, first_row = threadIdx.x / lanes;
  const int64_t columns = blocks.features * width;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * lanes + lane;
  const int64_t share = (blocks.outer + gridDim.y - 1) / gridDim.y;
  const int64_t begin = share * blockIdx.y;
  const int64_t end = begin + share < blocks.outer ? begin + share : blocks.outer;
  acc sum = 0;
  if (first_row < rows && column < columns) {
    const acc s = scale_of<acc>(theta, column / width);
    for (int64_t row = begin + first_row; row < end; row += rows) {
      const int64_t i = row * columns + column;
      const acc value = static_cast<acc>(x[i]);
      const acc g = passed<relu>(static_cast<acc>(grad[i]), value);
      sum += g * value;
      dx[i] = static_cast<T>(scaled(g, s));
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    sum = 0;
    for (int at = threadIdx.x; threadIdx.x < lanes && at < rows * lanes; at += lanes) {
      sum += sums[at];
    }
    const int place = lane % width;  // in its feature
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const acc other = __shfl_down_sync(kFullMask, sum, step);
      sum += place + step < width ? other : acc(0);
    }
    if (place == 0 && threadIdx.x < lanes && column < columns) {
      partial[blockIdx.y * blocks.features + column / width] = sum;
    }
  }
}

// dtheta[c] = sum of partial[part][c] over the parts; a warp per feature, always in the same order.
template <bool relu, typename acc>
__global__ void reduce_partial_kernel(int64_t features, int64_t parts, const acc* partial, Vector theta,
                                      Vector dtheta) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= features) {
    return;  // whole warps leave together
  }
  acc sum = 0;
  for (int64_t part = threadIdx.x % kWarp; part < parts; part += kWarp) {
    sum += partial[part * features + c];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) {
    const acc s = scale_of<acc>(theta, c);
    dtheta.set<acc>(c, s == acc(0) ? acc(0) : relu ? sum / s : sum);
  }
}

template <bool relu, typename acc, typename T>
void launch_filter(const OnCuda& on, const Blocks& blocks, const T* x, T* y, Vector theta) {
  constexpr int V = 4;
  const int64_t unit = blocks.inner == 1 ? blocks.features : blocks.inner;
  if (unit % V == 0 && aligned_for(x, V) && aligned_for(y, V)) {
    launch<filter_kernel<relu, T, acc, V>>(on, grid_for(blocks.numel() / V), blocks, x, y, theta);
  } else {
    launch<filter_kernel<relu, T, acc, 1>>(on, grid_for(blocks.numel()), blocks, x, y, theta);
  }
}

int64_t parts_for(int64_t elements) {
  return std::clamp<int64_t>(ceil_div(elements, kShare), 1, kMostShares);
}

template <bool relu, typename G, typename T>
void launch_filter_backward(const OnCuda& on, const Tensor& like, const Blocks& blocks, const G* grad, const T* x,
                            T* dx, Vector theta, Vector dtheta) {
  using acc = acc_t<G, T>;
  const bool runs = blocks.inner >= kWarp;
  const int64_t parts = runs ? parts_for(blocks.outer * blocks.inner) : parts_for(blocks.outer * kWarp);
  const ScalarType type = std::is_same_v<acc, double> ? ScalarType::Double : ScalarType::Float;
  Tensor scratch = empty_vector(like, parts * blocks.features, type);
  acc* partial = static_cast<acc*>(scratch.data_ptr());
  const int64_t across = runs ? blocks.features : ceil_div(blocks.features, kWarp / blocks.inner);
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(parts));
  if (runs) {
    launch<runs_backward_kernel<relu, G, T>>(on, grid, blocks, grad, x, dx, theta, partial);
  } else {
    launch<columns_backward_kernel<relu, G, T>>(on, grid, blocks, grad, x, dx, theta, partial);
  }
  const auto groups = static_cast<unsigned>(ceil_div(blocks.features, kWarps));
  launch<reduce_partial_kernel<relu, acc>>(on, groups, blocks.features, parts, partial, theta, dtheta);
}

Tensor filter(Tensor x, Tensor theta, int64_t dim, bool relu) {
  return filter_on<OnCuda>(
      x, theta, dim, relu,
      [](const OnCuda& on, auto flag, auto acc, const Blocks& blocks, auto in, auto out, Vector theta) {
        launch_filter<flag(), typename decltype(acc)::type>(on, blocks, in, out, theta);
      });
}

std::tuple<Tensor, Tensor> filter_backward(Tensor grad, Tensor x, Tensor theta, int64_t dim, bool relu) {
  return filter_backward_on<OnCuda>(grad, x, theta, dim, relu, [&](const OnCuda& on, auto flag, const auto&... given) {
    launch_filter_backward<flag()>(on, theta, given...);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("filter", TORCH_BOX(&filter));
  m.impl("filter_backward", TORCH_BOX(&filter_backward));
}

}  // namespace shrinknets
