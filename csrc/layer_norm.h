// What layer_norm and layer_norm_backward ask of their arguments, and the types they compute in.
#pragma once

#include "scalar.h"
#include "tensors.h"

#include <tuple>

namespace shrinknets {

inline void check_layer_norm(const char* op, const Tensor& x, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& bias, const Tensor& theta) {
  SN_CHECK(x.dim() >= 1, op, ": x has shape (), expected at least one dimension");
  check_dtype(op, "x", x);
  const auto match = [&] { return "the last dimension of x " + shape_of(x); };
  const auto check = [&](const char* name, const Tensor& t) {
    check_dtype(op, name, t);
    check_same_device(op, name, t, "x", x);
    check_vector(op, name, t, x.size(-1), match);
  };
  check("theta", theta);
  if (weight.has_value()) {
    check("weight", *weight);
  }
  if (bias.has_value()) {
    check("bias", *bias);
  }
}

inline int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) {
    rows *= x.size(d);
  }
  return rows;
}

inline void check_layer_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                      const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                      const Tensor& theta, bool rms) {
  const char* op = "layer_norm_backward";
  check_layer_norm(op, x, weight, bias, theta);
  check_dtype(op, "grad", grad);
  check_same_device(op, "grad", grad, "x", x);
  check_same_shape(op, "grad", grad, "x", x);
  const auto match = [&] { return "the rows of x " + shape_of(x); };
  check_dtype(op, "mean", mean);
  check_dtype(op, "rstd", rstd);
  check_same_device(op, "mean", mean, "x", x);
  check_same_device(op, "rstd", rstd, "x", x);
  check_vector(op, "mean", mean, rms ? 0 : rows_of(x), match);
  check_vector(op, "rstd", rstd, rows_of(x), match);
}

// x's own dtype, or float64 where another operand has it: rare, and copies save 12 more kernels.
inline ScalarType computed_type(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                const Tensor& theta) {
  return is_double(x) || is_double(weight) || is_double(bias) || is_double(theta) ? ScalarType::Double
                                                                                  : x.scalar_type();
}

inline ScalarType sum_type(ScalarType type) {
  return type == ScalarType::Double ? type : ScalarType::Float;
}

// Rows as neighbouring values of this dtype; the tensor itself where it is that.
inline Tensor as_rows(const Tensor& t, ScalarType type) {
  return dense(t.scalar_type() == type ? t : torch::stable::to(t, type));
}

inline Tensor cast_back(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

}  // namespace shrinknets
