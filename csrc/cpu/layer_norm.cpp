// layer_norm on the CPU: rows in parallel. Sums over rows are in parts that the shape alone fixes, so they do not depend on the
// number of threads.
#include "../layer_norm.h"
#include "layer_norm_rows.h"

#include <cmath>
#include <vector>

namespace shrinknets {
namespace {

constexpr int64_t kGrain = 32768;   // elements per task, as for fold
constexpr int64_t kColumns = 512;   // of the sums that one task finishes
constexpr int64_t kPartRows = 64;   // at most, so that float32 sums stay as exact as torch's cascades
constexpr int64_t kWanted = 32;     // parts at least, where they still have kFewRows
constexpr int64_t kFewRows = 16;    // each part takes two rows of memory

int64_t grain(int64_t inner) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(inner, 1));
}

// weight and bias with the filter in them, in the type that is computed in.
template <typename acc>
struct Folded {
  std::vector<acc> weight, bias;
  std::vector<bits_t<acc>> alive;
  int64_t count = 0;

  Folded(Vector raw_weight, Vector raw_bias, Vector theta, int64_t n) : weight(n), bias(n), alive(n) {
    for (int64_t k = 0; k < n; ++k) {
      const acc s = scale_of<acc>(theta, k);
      weight[k] = scaled(raw_weight ? raw_weight.get<acc>(k) : acc(1), s);
      bias[k] = scaled(raw_bias ? raw_bias.get<acc>(k) : acc(0), s);
      alive[k] = s == acc(0) ? 0 : -1;
      count += s == acc(0) ? 0 : 1;
    }
  }

  Affine<acc> affine() const {
    const int64_t n = static_cast<int64_t>(weight.size());
    return {weight.data(), bias.data(), alive.data(), n, static_cast<acc>(std::max<int64_t>(count, 1)), count == n};
  }
};

// Rows of float16 and bfloat16 pass through a buffer of floats; others are used in place.
template <typename T, bool narrow = is_narrow<T>>
struct Row {
  using acc = T;
  explicit Row(int64_t) {}
  const T* read(const T* p) { return p; }
  T* begin(T* p) { return p; }
  void end(T*) {}
};

template <typename T>
struct Row<T, true> {
  using acc = float;
  std::vector<float> buffer;
  explicit Row(int64_t n) : buffer(n) {}
  const float* read(const T* p) {
    widen(p, buffer.data(), static_cast<int64_t>(buffer.size()));
    return buffer.data();
  }
  float* begin(T*) { return buffer.data(); }
  void end(T* p) { narrow(buffer.data(), p, static_cast<int64_t>(buffer.size())); }
};

template <bool all, bool rms, typename T, typename acc>
void norm_rows(const Affine<acc>& a, int64_t rows, const T* x, T* y, acc* mean, acc* rstd, double eps) {
  torch::stable::parallel_for(0, rows, grain(a.n), [&](int64_t begin, int64_t end) {
    Row<T> input(a.n), output(a.n);
    for (int64_t r = begin; r < end; ++r) {
      const acc* in = input.read(x + r * a.n);
      const acc m = rms ? acc(0) : static_cast<acc>(sum_row<all>(in, a.alive, a.n) / a.count);
      const double variance = squares_row<all>(in, a.alive, a.n, m) / a.count;
      const acc s = static_cast<acc>(1 / std::sqrt(variance + eps));
      norm_row<all>(in, output.begin(y + r * a.n), a.weight, a.bias, a.alive, a.n, m, s);
      output.end(y + r * a.n);
      rstd[r] = s;
      if (!rms) {
        mean[r] = m;
      }
    }
  });
}

// dx, where it is wanted, and the sums of g xhat and g over each part's rows: two rows of `sums` a part.
template <bool all, bool rms, typename T, typename acc>
void gradient_rows(const Affine<acc>& a, int64_t rows, int64_t part_rows, const T* grad, const T* x, const acc* mean,
                   const acc* rstd, T* dx, acc* sums) {
  const int64_t parts = (rows + part_rows - 1) / part_rows;
  torch::stable::parallel_for(0, parts, grain(a.n * part_rows), [&](int64_t begin, int64_t end) {
    Row<T> input(a.n), upstream(a.n), output(a.n);
    for (int64_t r = begin * part_rows; r < std::min(end * part_rows, rows); ++r) {
      const acc *in = input.read(x + r * a.n), *g = upstream.read(grad + r * a.n);
      const acc m = rms ? acc(0) : mean[r];
      acc* own = nullptr;
      double totals[2];
      if (sums != nullptr) {
        own = sums + r / part_rows * 2 * a.n;
        if (r % part_rows == 0) {
          std::fill_n(own, 2 * a.n, acc(0));
        }
        reduce_row<all, true>(g, in, a.weight, a.alive, a.n, m, rstd[r], own, totals);
      } else {
        reduce_row<all, false>(g, in, a.weight, a.alive, a.n, m, rstd[r], own, totals);
      }
      if (dx != nullptr) {
        const acc first = rms ? acc(0) : static_cast<acc>(totals[0] / a.count);
        const acc second = static_cast<acc>(totals[1] / a.count);
        gradient_row<all>(g, in, output.begin(dx + r * a.n), a.weight, a.alive, a.n, m, rstd[r], first, second);
        output.end(dx + r * a.n);
      }
    }
  });
}

struct Vectors {
  Vector weight, bias, theta, dweight, dbias, dtheta;
};

// dweight = s sum g xhat, dbias = s sum g, dtheta = weight sum g xhat + bias sum g, from the parts.
template <typename acc>
void finish(const acc* sums, int64_t parts, int64_t n, const Vectors& v) {
  torch::stable::parallel_for(0, (n + kColumns - 1) / kColumns, grain(2 * parts * kColumns), [&](int64_t begin,
                                                                                                int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kColumns, width = std::min(kColumns, n - first);
      double weights[kColumns] = {}, biases[kColumns] = {};
      for (int64_t part = 0; part < parts; ++part) {
        const acc* own = sums + part * 2 * n + first;
        for (int64_t k = 0; k < width; ++k) {
          weights[k] += own[k];
          biases[k] += own[n + k];
        }
      }
      for (int64_t k = 0; k < width; ++k) {
        const int64_t at = first + k;
        const double s = scale_of<acc>(v.theta, at);
        if (v.weight) {
          v.dweight.set<double>(at, scaled(weights[k], s));
        }
        if (v.bias) {
          v.dbias.set<double>(at, scaled(biases[k], s));
        }
        const double w = v.weight ? v.weight.get<double>(at) : 1, b = v.bias ? v.bias.get<double>(at) : 0;
        v.dtheta.set<double>(at, s == 0 ? 0 : weights[k] * w + biases[k] * b);
      }
    }
  });
}

// f(all, rms) with constants.
template <typename F>
void with_flags(bool all, bool rms, const F& f) {
  with_flag(all, [&](auto a) { with_flag(rms, [&](auto r) { f(a, r); }); });
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias,
                                              Tensor theta, double eps, bool rms) {
  check_layer_norm("layer_norm", x, weight, bias, theta);
  const ScalarType type = computed_type(x, weight, bias, theta);
  const int64_t rows = rows_of(x), n = x.size(-1);
  const Tensor from = as_rows(x, type), scales = dense(theta);
  const auto dense_weight = dense(weight), dense_bias = dense(bias);
  Tensor y = empty_like(from, type);
  Tensor mean = empty_vector(x, rms ? 0 : rows, sum_type(type)), rstd = empty_vector(x, rows, sum_type(type));
  if (n == 0) {
    return {cast_back(y, x.scalar_type()), torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  }
  dispatch(type, [&](auto t) {
    using T = typename decltype(t)::type;
    using acc = typename Row<T>::acc;
    const Folded<acc> folded{Vector(dense_weight), Vector(dense_bias), Vector(scales), n};
    const Affine<acc> affine = folded.affine();
    with_flags(affine.all, rms, [&](auto all, auto is_rms) {
      norm_rows<all(), is_rms()>(affine, rows, static_cast<const T*>(from.data_ptr()), static_cast<T*>(y.data_ptr()),
                                 static_cast<acc*>(mean.data_ptr()), static_cast<acc*>(rstd.data_ptr()), eps);
    });
  });
  return {cast_back(y, x.scalar_type()), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd,
                                                               std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                               Tensor theta, bool rms, bool wants_input,
                                                               bool wants_parameters) {
  check_layer_norm_backward(grad, x, mean, rstd, weight, bias, theta, rms);
  ScalarType type = computed_type(x, weight, bias, theta);
  if (grad.scalar_type() != type) {  // autograd's has x's dtype, so this is rare
    type = is_double(grad) ? ScalarType::Double : sum_type(type);
  }
  const int64_t rows = rows_of(x), n = x.size(-1);
  const Tensor from = as_rows(x, type), upstream = as_rows(grad, type), scales = dense(theta);
  const Tensor means = as_rows(mean, sum_type(type)), rates = as_rows(rstd, sum_type(type));
  const auto dense_weight = dense(weight), dense_bias = dense(bias);
  Tensor dx = wants_input ? empty_like(from, type) : empty_vector(x, 0, type);
  const auto vector = [&](const std::optional<Tensor>& t) {
    const bool wanted = wants_parameters && t.has_value();
    return empty_vector(x, wanted ? n : 0, t.has_value() ? t->scalar_type() : x.scalar_type());
  };
  Tensor dweight = vector(weight), dbias = vector(bias), dtheta = vector(theta);
  const int64_t part_rows = std::clamp((rows + kWanted - 1) / kWanted, kFewRows, kPartRows);
  const int64_t parts = (rows + part_rows - 1) / part_rows;
  if (n == 0) {
    return {cast_back(dx, x.scalar_type()), dweight, dbias, dtheta};
  }
  dispatch(type, [&](auto t) {
    using T = typename decltype(t)::type;
    using acc = typename Row<T>::acc;
    const Vectors vectors{Vector(dense_weight), Vector(dense_bias), Vector(scales),
                          Vector(dweight),      Vector(dbias),      Vector(dtheta)};
    const Folded<acc> folded{vectors.weight, vectors.bias, vectors.theta, n};
    const Affine<acc> affine = folded.affine();
    const Tensor memory = empty_vector(x, wants_parameters ? 2 * n * parts : 0, sum_type(type));
    acc* own = wants_parameters ? static_cast<acc*>(memory.data_ptr()) : nullptr;
    with_flags(affine.all, rms, [&](auto all, auto is_rms) {
      gradient_rows<all(), is_rms()>(affine, rows, part_rows, static_cast<const T*>(upstream.data_ptr()),
                                     static_cast<const T*>(from.data_ptr()),
                                     static_cast<const acc*>(means.data_ptr()),
                                     static_cast<const acc*>(rates.data_ptr()),
                                     wants_input ? static_cast<T*>(dx.data_ptr()) : nullptr, own);
    });
    if (wants_parameters) {
      finish(own, parts, n, vectors);
    }
  });
  return {cast_back(dx, x.scalar_type()), dweight, dbias, dtheta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
}

}  // namespace shrinknets
