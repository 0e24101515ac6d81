// filter on the CPU: memory order, split into units; the backward reads the gradient and the input once.
#include "../filter.h"
#include "runs.h"

#include <vector>

namespace shrinknets {
namespace {

constexpr int64_t kRun = 16384;     // elements of a long run that one unit takes
constexpr int64_t kColumns = 2048;  // of a row, where sums are taken: few parts of the sums
constexpr int64_t kUnits = 256;     // enough to keep 64 threads busy
constexpr int64_t kShort = 16;      // below this, runs of one feature are too short for a loop of their own

// A share of the (outer, features, inner) array. Units of one part never share a feature.
struct Unit {
  int64_t part, first_row, last_row, first, last, begin, end;
};

// The split depends on the shape alone, so sums do not depend on the number of threads; and there are few parts, so
// that sums for each part take little memory: at most features + numel / 8 of them.
struct Units {
  Blocks blocks;
  int64_t pieces, width, across, groups, count, grain;

  // columns: elements of neighbouring features that one unit takes from each row.
  Units(const Blocks& b, int64_t columns) : blocks(b) {
    const int64_t numel = b.numel(), wanted = std::min(kUnits, (numel + kRun - 1) / kRun);
    pieces = std::max<int64_t>(1, (b.inner + kRun - 1) / kRun);
    width = std::max<int64_t>(1, columns / std::max<int64_t>(b.inner, 1));
    across = (b.features + width - 1) / width;
    const int64_t per_group = std::max<int64_t>(1, across * pieces);
    groups = std::clamp<int64_t>((wanted + per_group - 1) / per_group, 1, std::max<int64_t>(b.outer, 1));
    count = numel ? groups * across * pieces : 0;
    grain = numel ? std::max<int64_t>(1, kRun * count / numel) : 1;
  }

  int64_t parts() const { return groups * pieces; }

  Unit at(int64_t i) const {
    const int64_t piece = i % pieces, block = i / pieces % across, group = i / pieces / across;
    return {group * pieces + piece,
            blocks.outer * group / groups,
            blocks.outer * (group + 1) / groups,
            block * width,
            std::min((block + 1) * width, blocks.features),
            piece * kRun,
            std::min((piece + 1) * kRun, blocks.inner)};
  }

  template <typename Body>
  void in_parallel(const Body& body) const {
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        body(at(i));
      }
    });
  }

  // body(feature, start, length): neighbouring elements of one feature.
  template <typename Body>
  void for_runs(const Unit& u, const Body& body) const {
    for (int64_t row = u.first_row; row < u.last_row; ++row) {
      for (int64_t c = u.first; c < u.last; ++c) {
        body(c, (row * blocks.features + c) * blocks.inner + u.begin, u.end - u.begin);
      }
    }
  }

  // Short runs. body(feature, start, length): neighbouring elements of several features, no more than a chunk.
  template <typename Body>
  void for_chunks(const Unit& u, const Body& body) const {
    const int64_t step = kChunk / blocks.inner;
    for (int64_t row = u.first_row; row < u.last_row; ++row) {
      for (int64_t c = u.first; c < u.last; c += step) {
        const int64_t features = std::min(step, u.last - c);
        body(c, (row * blocks.features + c) * blocks.inner, features * blocks.inner);
      }
    }
  }
};

template <typename acc>
std::vector<acc> scales(Vector theta, int64_t features) {
  std::vector<acc> result(features);
  for (int64_t k = 0; k < features; ++k) {
    result[k] = scale_of<acc>(theta, k);
  }
  return result;
}

template <bool relu, typename T, typename acc>
void scale_all(const Blocks& blocks, const T* x, T* y, const std::vector<acc>& scale) {
  const Units units(blocks, kRun);
  units.in_parallel([&](const Unit& unit) {
    if (blocks.inner >= kShort) {
      units.for_runs(unit, [&](int64_t c, int64_t at, int64_t n) {
        if (scale[c] == acc(0)) {
          std::fill_n(y + at, n, T(0));
        } else {
          scale_run<relu>(x + at, y + at, n, scale[c]);
        }
      });
      return;
    }
    units.for_chunks(unit, [&](int64_t c, int64_t at, int64_t n) {
      scale_columns<relu>(x + at, y + at, n, blocks.inner, scale.data() + c);
    });
  });
}

template <bool relu, typename G, typename T>
void scale_and_reduce(const Blocks& blocks, const G* grad, const T* x, T* dx, Vector theta, Vector dtheta) {
  using acc = acc_t<G, T>;
  const std::vector<acc> scale = scales<acc>(theta, blocks.features);
  const Units units(blocks, kColumns);
  std::vector<double> sums(units.parts() * blocks.features, 0.0);
  units.in_parallel([&](const Unit& unit) {
    double* own = sums.data() + unit.part * blocks.features;
    if (blocks.inner >= kShort) {
      units.for_runs(unit, [&](int64_t c, int64_t at, int64_t n) {
        if (scale[c] == acc(0)) {
          std::fill_n(dx + at, n, T(0));
        } else {
          own[c] += scale_and_dot<relu>(grad + at, x + at, dx + at, n, scale[c]);
        }
      });
      return;
    }
    units.for_chunks(unit, [&](int64_t c, int64_t at, int64_t n) {
      scale_and_add_columns<relu>(grad + at, x + at, dx + at, n, blocks.inner, scale.data() + c, own + c);
    });
  });
  for (int64_t c = 0; c < blocks.features; ++c) {
    double sum = 0;
    if (scale[c] != acc(0)) {
      for (int64_t part = 0; part < units.parts(); ++part) {
        sum += sums[part * blocks.features + c];
      }
      sum /= relu ? scale[c] : acc(1);
    }
    dtheta.set<double>(c, sum);
  }
}

Tensor filter(Tensor x, Tensor theta, int64_t dim, bool relu) {
  return filter_on<OnCpu>(x, theta, dim, relu,
                          [](const OnCpu&, auto flag, auto acc, const Blocks& blocks, auto in, auto out, Vector theta) {
                            using A = typename decltype(acc)::type;
                            scale_all<flag()>(blocks, in, out, scales<A>(theta, blocks.features));
                          });
}

std::tuple<Tensor, Tensor> filter_backward(Tensor grad, Tensor x, Tensor theta, int64_t dim, bool relu) {
  return filter_backward_on<OnCpu>(grad, x, theta, dim, relu, [](const OnCpu&, auto flag, const auto&... given) {
    scale_and_reduce<flag()>(given...);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("filter", TORCH_BOX(&filter));
  m.impl("filter_backward", TORCH_BOX(&filter_backward));
}

}  // namespace shrinknets
