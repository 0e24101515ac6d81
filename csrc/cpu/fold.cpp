// fold on the CPU: rows in parallel, each row in one pass.
#include "../fold.h"
#include "runs.h"

namespace shrinknets {
namespace {

constexpr int64_t kGrain = 32768;  // elements per task: about 10 us of work, well above a task's cost

int64_t grain(int64_t inner) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(inner, 1));
}

// body(i, offset...) over the runs of one row: `run` neighbouring elements of the last merged dimension at a time.
template <int N, typename Body>
void for_runs(const Rows<N>& rows, const Body& body) {
  const int64_t run = rows.size[rows.ndim - 1];
  for (int64_t i = 0; i < rows.inner; i += run) {
    body(i, run);
  }
}

template <typename W, typename O>
void fold_rows(const Rows<2>& rows, const W* weight, O* out, Vector bias, Vector out_bias, Vector theta) {
  using acc = acc_t<W, O>;
  const int last = rows.ndim - 1;
  torch::stable::parallel_for(0, rows.rows, grain(rows.inner), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const acc s = scale_of<acc>(theta, r);
      if (bias) {
        out_bias.set<acc>(r, scaled(bias.get<acc>(r), s));
      }
      const int64_t step_in = rows.stride[0][last], step_out = rows.stride[1][last];
      for_runs(rows, [&](int64_t i, int64_t run) {
        const W* in = weight + r * rows.row_stride[0] + rows.offset(0, i);
        O* to = out + r * rows.row_stride[1] + rows.offset(1, i);
        if (s == acc(0)) {
          for (int64_t k = 0; k < run; ++k) {
            to[k * step_out] = O(0);
          }
        } else if (step_in == 1 && step_out == 1) {
          scale_run(in, to, run, s);
        } else {
          for (int64_t k = 0; k < run; ++k) {
            to[k * step_out] = static_cast<O>(static_cast<acc>(in[k * step_in]) * s);
          }
        }
      });
    }
  });
}

template <typename G, typename W>
void fold_rows_backward(const Rows<3>& rows, const G* grad, const W* weight, W* dweight, const BackwardVectors& v) {
  using acc = acc_t<G, W>;
  const int last = rows.ndim - 1;
  const int64_t step_g = rows.stride[0][last], step_w = rows.stride[1][last], step_dw = rows.stride[2][last];
  torch::stable::parallel_for(0, rows.rows, grain(rows.inner), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const acc s = scale_of<acc>(v.theta, r);
      double dot = 0;
      for_runs(rows, [&](int64_t i, int64_t run) {
        const G* g = grad + r * rows.row_stride[0] + rows.offset(0, i);
        const W* w = weight + r * rows.row_stride[1] + rows.offset(1, i);
        W* dw = dweight + r * rows.row_stride[2] + rows.offset(2, i);
        if (s == acc(0)) {
          for (int64_t k = 0; k < run; ++k) {
            dw[k * step_dw] = W(0);
          }
        } else if (step_g == 1 && step_w == 1 && step_dw == 1) {
          dot += scale_and_dot(g, w, dw, run, s);
        } else {
          for (int64_t k = 0; k < run; ++k) {
            const acc upstream = static_cast<acc>(g[k * step_g]);
            dot += static_cast<double>(upstream * static_cast<acc>(w[k * step_w]));
            dw[k * step_dw] = static_cast<W>(upstream * s);
          }
        }
      });
      const acc gb = v.grad_bias ? v.grad_bias.get<acc>(r) : acc(0);
      if (v.bias) {
        v.dbias.set<acc>(r, scaled(gb, s));
        dot += v.grad_bias ? static_cast<double>(gb) * v.bias.get<acc>(r) : 0.0;
      }
      v.dtheta.set<double>(r, s == acc(0) ? 0.0 : dot);
    }
  });
}

std::tuple<Tensor, Tensor> fold(Tensor weight, std::optional<Tensor> bias, Tensor theta,
                                std::optional<ScalarType> dtype) {
  return fold_on<OnCpu>(weight, bias, theta, dtype, [](const OnCpu&, const auto&... given) { fold_rows(given...); });
}

std::tuple<Tensor, Tensor, Tensor> fold_backward(Tensor grad_weight, std::optional<Tensor> grad_bias, Tensor weight,
                                                 std::optional<Tensor> bias, Tensor theta) {
  return fold_backward_on<OnCpu>(grad_weight, grad_bias, weight, bias, theta,
                                 [](const OnCpu&, const auto&... given) { fold_rows_backward(given...); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("fold", TORCH_BOX(&fold));
  m.impl("fold_backward", TORCH_BOX(&fold_backward));
}

}  // namespace shrinknets
