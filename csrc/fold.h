// What fold and fold_backward do on any device: checks, outputs, dtypes. A device adds its kernels.
#pragma once

#include "rows.h"
#include "tensors.h"

#include <tuple>

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

// launch(device, rows, weight, out, bias, out_bias, theta), rows of: 0 = weight, 1 = out. Device: made after the
// checks.
template <typename Device, typename Launch>
std::tuple<Tensor, Tensor> fold_on(Tensor weight, std::optional<Tensor> bias, Tensor theta,
                                   std::optional<ScalarType> dtype, const Launch& launch) {
  check_fold("fold", weight, bias, theta);
  const ScalarType type = dtype.value_or(weight.scalar_type());
  check_dtype("fold", "dtype", type);
  const Device device(weight);
  Tensor out = empty_like(weight, type);
  Tensor out_bias = empty_vector(weight, bias.has_value() ? weight.size(0) : 0, type);
  if (weight.size(0) == 0) {
    return {out, out_bias};
  }
  weight = widened(weight, type != ScalarType::Double && (is_double(theta) || is_double(bias)));
  const auto rows = make_rows<2>({&weight, &out});
  const auto dense_bias = dense(bias);
  const Tensor dense_theta = dense(theta);
  dispatch(weight.scalar_type(), [&](auto w) {
    dispatch(type, [&](auto o) {
      using W = typename decltype(w)::type;
      using O = typename decltype(o)::type;
      launch(device, rows, static_cast<const W*>(weight.data_ptr()), static_cast<O*>(out.data_ptr()),
             Vector(dense_bias), Vector(out_bias), Vector(dense_theta));
    });
  });
  return {out, out_bias};
}

struct BackwardVectors {
  Vector grad_bias, bias, theta, dbias, dtheta;
};

// launch(device, rows, grad_weight, weight, dweight, vectors), rows of: 0 = grad_weight, 1 = weight, 2 = dweight.
template <typename Device, typename Launch>
std::tuple<Tensor, Tensor, Tensor> fold_backward_on(Tensor grad_weight, std::optional<Tensor> grad_bias, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor theta, const Launch& launch) {
  check_fold_backward(grad_weight, grad_bias, weight, bias, theta);
  const Device device(weight);
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
  dispatch(grad_weight.scalar_type(), [&](auto g) {
    dispatch(weight.scalar_type(), [&](auto w) {
      using G = typename decltype(g)::type;
      using W = typename decltype(w)::type;
      launch(device, rows, static_cast<const G*>(grad_weight.data_ptr()), static_cast<const W*>(weight.data_ptr()),
             static_cast<W*>(dweight.data_ptr()), vectors);
    });
  });
  return {dweight, dbias, dtheta};
}

}  // namespace shrinknets
