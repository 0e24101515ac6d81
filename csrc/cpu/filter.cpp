// filter on the CPU: memory order, split into tasks; the backward reads the gradient and the input once.
#include "../filter.h"

#include <tuple>
#include <vector>

namespace shrinknets {
namespace {

constexpr int64_t kRun = 16384;  // elements per task
constexpr int64_t kShort = 16;   // below this, runs of one feature are too short for a loop of their own

// Tasks cut an array of `outer` rows of features * inner elements: whole rows where runs are short, parts of a run
// elsewhere.
struct Tasks {
  Blocks blocks;
  bool by_row;
  int64_t pieces = 1;  // of each run
  int64_t count = 0;
  int64_t grain = 1;

  explicit Tasks(const Blocks& b) : blocks(b), by_row(b.inner < kShort) {
    const int64_t row = b.features * b.inner;
    pieces = by_row ? 1 : (b.inner + kRun - 1) / kRun;
    count = by_row ? b.outer : b.outer * b.features * pieces;
    grain = std::max<int64_t>(1, kRun / std::max<int64_t>(by_row ? row : std::min(b.inner, kRun), 1));
  }

  // body(feature, start, length): neighbouring elements of one feature.
  template <typename Body>
  void for_runs(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t task = begin; task < end; ++task) {
      if (by_row) {
        int64_t at = task * blocks.features * blocks.inner;
        for (int64_t c = 0; c < blocks.features; ++c, at += blocks.inner) {
          body(c, at, blocks.inner);
        }
      } else {
        const int64_t plane = task / pieces, start = (task % pieces) * kRun;
        body(plane % blocks.features, plane * blocks.inner + start, std::min(kRun, blocks.inner - start));
      }
    }
  }
};

template <typename acc>
std::vector<acc> scales(const Tensor& theta) {
  std::vector<acc> result(theta.numel());
  const Vector values(theta);
  for (size_t k = 0; k < result.size(); ++k) {
    result[k] = scale_of<acc>(values, k);
  }
  return result;
}

template <typename T, typename acc>
void scale_all(const Blocks& blocks, const T* x, T* y, const std::vector<acc>& s) {
  const Tasks tasks(blocks);
  torch::stable::parallel_for(0, tasks.count, tasks.grain, [&](int64_t begin, int64_t end) {
    if (blocks.inner == 1) {  // (outer, features): one loop over the features of each row
      for (int64_t o = begin; o < end; ++o) {
        const T* from = x + o * blocks.features;
        T* to = y + o * blocks.features;
        for (int64_t c = 0; c < blocks.features; ++c) {
          to[c] = static_cast<T>(scaled(static_cast<acc>(from[c]), s[c]));
        }
      }
      return;
    }
    tasks.for_runs(begin, end, [&](int64_t c, int64_t at, int64_t length) {
      const acc scale = s[c];
      for (int64_t i = at; i < at + length; ++i) {
        y[i] = static_cast<T>(scaled(static_cast<acc>(x[i]), scale));
      }
    });
  });
}

// Each task group of a fixed size has its own sums, so the result does not depend on which thread ran it.
template <typename G, typename T>
void scale_and_reduce(const Blocks& blocks, const G* grad, const T* x, T* dx, const std::vector<acc_t<G, T>>& s,
                      std::vector<double>& dtheta) {
  using acc = acc_t<G, T>;
  const Tasks tasks(blocks);
  const int64_t groups = std::min<int64_t>(64, (tasks.count + tasks.grain - 1) / tasks.grain);
  const int64_t per_group = groups ? (tasks.count + groups - 1) / groups : 0;
  std::vector<double> sums(groups * blocks.features, 0.0);
  torch::stable::parallel_for(0, groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      double* own = sums.data() + group * blocks.features;
      const int64_t begin = group * per_group, end = std::min(begin + per_group, tasks.count);
      if (blocks.inner == 1) {
        for (int64_t o = begin; o < end; ++o) {
          const int64_t row = o * blocks.features;
          for (int64_t c = 0; c < blocks.features; ++c) {
            const acc g = static_cast<acc>(grad[row + c]);
            own[c] += static_cast<double>(g * static_cast<acc>(x[row + c]));
            dx[row + c] = static_cast<T>(scaled(g, s[c]));
          }
        }
        continue;
      }
      tasks.for_runs(begin, end, [&](int64_t c, int64_t at, int64_t length) {
        const acc scale = s[c];
        acc lanes[8] = {};
        int64_t i = at;
        for (; i + 8 <= at + length; i += 8) {
          for (int lane = 0; lane < 8; ++lane) {
            const acc g = static_cast<acc>(grad[i + lane]);
            lanes[lane] += g * static_cast<acc>(x[i + lane]);
            dx[i + lane] = static_cast<T>(scaled(g, scale));
          }
        }
        for (; i < at + length; ++i) {
          const acc g = static_cast<acc>(grad[i]);
          lanes[i % 8] += g * static_cast<acc>(x[i]);
          dx[i] = static_cast<T>(scaled(g, scale));
        }
        for (acc lane : lanes) {
          own[c] += lane;
        }
      });
    }
  });
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t c = 0; c < blocks.features; ++c) {
      dtheta[c] += s[c] == acc(0) ? 0.0 : sums[group * blocks.features + c];
    }
  }
}

Tensor filter(Tensor x, Tensor theta, int64_t dim) {
  dim = check_filter("filter", x, theta, dim);
  Tensor y = empty_like(x, x.scalar_type());
  const Tensor from = laid_out_as(x, y, x.scalar_type());
  const Blocks blocks = make_blocks(y, theta, dim);
  const Tensor values = torch::stable::contiguous(theta);
  dispatch(x.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T* in = static_cast<const T*>(from.data_ptr());
    T* out = static_cast<T*>(y.data_ptr());
    if (is_double(theta)) {
      scale_all(blocks, in, out, scales<double>(values));
    } else {
      scale_all(blocks, in, out, scales<acc_t<T>>(values));
    }
  });
  return y;
}

std::tuple<Tensor, Tensor> filter_backward(Tensor grad, Tensor x, Tensor theta, int64_t dim) {
  dim = check_filter_backward(grad, x, theta, dim);
  Tensor dx = empty_like(x, x.scalar_type());
  Tensor dtheta = empty_vector(theta, theta.numel(), theta.scalar_type());
  const Tensor from = laid_out_as(x, dx, x.scalar_type()), upstream = upstream_for(grad, dx, theta);
  const Blocks blocks = make_blocks(dx, theta, dim);
  const Tensor values = torch::stable::contiguous(theta);
  std::vector<double> sums(theta.numel(), 0.0);
  dispatch(upstream.scalar_type(), [&](auto g) {
    dispatch(x.scalar_type(), [&](auto t) {
      using G = typename decltype(g)::type;
      using T = typename decltype(t)::type;
      scale_and_reduce<G, T>(blocks, static_cast<const G*>(upstream.data_ptr()), static_cast<const T*>(from.data_ptr()),
                             static_cast<T*>(dx.data_ptr()), scales<acc_t<G, T>>(values), sums);
    });
  });
  const Vector out(dtheta);
  for (size_t k = 0; k < sums.size(); ++k) {
    out.set<double>(k, sums[k]);
  }
  return {dx, dtheta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("filter", TORCH_BOX(&filter));
  m.impl("filter_backward", TORCH_BOX(&filter_backward));
}

}  // namespace shrinknets
