// The arguments of fold and fold_backward: checked once, for both devices.
#pragma once

#include "rows.h"
#include "tensors.h"

namespace shrinknets {

inline void check_fold(const char* op, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& theta) {
  SN_CHECK(weight.dim() >= 1, op, ": weight has shape (), expected at least one dimension");
  SN_CHECK(weight.dim() <= kMaxDims, op, ": weight has ", weight.dim(), " dimensions, expected 1 to ", kMaxDims);
  check_dtype(op, "weight", weight);
  check_dtype(op, "theta", theta);
  const auto match = [&] { return "weight " + shape_of(weight); };
  check_same_device(op, "theta", theta, "weight", weight);
  check_vector(op, "theta", theta, weight.size(0), match);
  if (bias.has_value()) {
    check_dtype(op, "bias", *bias);
    check_same_device(op, "bias", *bias, "weight", weight);
    check_vector(op, "bias", *bias, weight.size(0), match);
  }
}

inline void check_fold_backward(const Tensor& grad_weight, const std::optional<Tensor>& grad_bias, const Tensor& weight,
                                const std::optional<Tensor>& bias, const Tensor& theta) {
  const char* op = "fold_backward";
  check_fold(op, weight, bias, theta);
  check_dtype(op, "grad_weight", grad_weight);
  check_same_device(op, "grad_weight", grad_weight, "weight", weight);
  check_same_shape(op, "grad_weight", grad_weight, "weight", weight);
  if (grad_bias.has_value()) {
    SN_CHECK(bias.has_value(), op, ": grad_bias is given, expected None as bias");
    check_dtype(op, "grad_bias", *grad_bias);
    check_same_device(op, "grad_bias", *grad_bias, "weight", weight);
    check_same_shape(op, "grad_bias", *grad_bias, "bias", *bias);
  }
}

}  // namespace shrinknets
