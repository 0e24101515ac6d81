// What filter and filter_backward do on any device: checks, outputs, layouts, dtypes. A device adds its kernels.
#pragma once

#include "scalar.h"
#include "tensors.h"

#include <algorithm>
#include <tuple>

namespace shrinknets {

// A dense tensor in its own memory order: element ((o * features) + c) * inner + i belongs to feature c.
struct Blocks {
  int64_t outer = 1, features = 1, inner = 1;

  SN_HOST_DEVICE int64_t numel() const { return outer * features * inner; }
};

inline bool is_gate(const Tensor& x, const Tensor& theta, int64_t dim) {
  return theta.numel() == 1 && (x.dim() == 0 || x.size(dim) != 1);
}

inline int64_t check_filter(const char* op, const Tensor& x, const Tensor& theta, int64_t dim) {
  check_dtype(op, "x", x);
  check_dtype(op, "theta", theta);
  check_same_device(op, "theta", theta, "x", x);
  SN_CHECK(theta.dim() == 1, op, ": theta has shape ", shape_of(theta), ", expected one dimension");
  const int64_t ndim = x.dim();
  if (ndim == 0 || theta.numel() == 1) {  // a gate takes any tensor
    SN_CHECK(theta.numel() == 1, op, ": x has shape (), expected a dimension of size ", theta.numel());
    return ndim == 0 ? 0 : std::clamp<int64_t>(dim < 0 ? dim + ndim : dim, 0, ndim - 1);
  }
  SN_CHECK(dim >= -ndim && dim < ndim, op, ": dim is ", dim, ", expected ", -ndim, " to ", ndim - 1, " for x ",
           shape_of(x));
  dim = dim < 0 ? dim + ndim : dim;
  check_vector(op, "theta", theta, x.size(dim), [&] { return text("dimension ", dim, " of x ", shape_of(x)); });
  return dim;
}

inline int64_t check_filter_backward(const Tensor& grad, const Tensor& x, const Tensor& theta, int64_t dim) {
  const char* op = "filter_backward";
  dim = check_filter(op, x, theta, dim);
  check_dtype(op, "grad", grad);
  check_same_device(op, "grad", grad, "x", x);
  check_same_shape(op, "grad", grad, "x", x);
  return dim;
}

inline bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

// `t` itself, or a copy of it, with this dtype and the memory layout of the dense tensor `like` (an output:
// torch.empty_like's choice).
inline Tensor laid_out_as(const Tensor& t, const Tensor& like, ScalarType type) {
  if (t.scalar_type() == type && same_layout(t, like)) {
    return t;
  }
  Tensor copy = empty_like(like, type);
  return torch::stable::copy_(copy, t);
}

// The gradient is copied to float64 where only theta has float64: rare, and it saves 9 more kernels.
inline Tensor upstream_for(const Tensor& grad, const Tensor& dx, const Tensor& theta) {
  const bool wide = is_double(theta) && !is_double(dx);
  return laid_out_as(grad, dx, wide ? ScalarType::Double : grad.scalar_type());
}

inline Blocks make_blocks(const Tensor& x, const Tensor& theta, int64_t dim) {
  Blocks blocks;
  if (x.dim() == 0 || is_gate(x, theta, dim)) {
    blocks.inner = x.numel();
    return blocks;
  }
  blocks.features = x.size(dim);
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d != dim && x.size(d) != 1) {
      (x.stride(d) > x.stride(dim) ? blocks.outer : blocks.inner) *= x.size(d);
    }
  }
  if (blocks.features == 1) {  // its stride says nothing about its place, and it does not matter
    blocks.outer = 1;
    blocks.inner = x.numel();
  }
  return blocks;
}

// launch(device, relu, acc, blocks, x, out, theta): relu is a constant (see with_flag), acc a Type.
template <typename Device, typename Launch>
Tensor filter_on(const Tensor& x, const Tensor& theta, int64_t dim, bool relu, const Launch& launch) {
  dim = check_filter("filter", x, theta, dim);
  const Device device(x);
  Tensor y = empty_like(x, x.scalar_type());
  if (x.numel() == 0) {
    return y;
  }
  const Tensor from = laid_out_as(x, y, x.scalar_type());
  const Blocks blocks = make_blocks(y, theta, dim);
  const Tensor values = dense(theta);
  dispatch(x.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T* in = static_cast<const T*>(from.data_ptr());
    T* out = static_cast<T*>(y.data_ptr());
    with_flag(relu, [&](auto flag) {
      if (is_double(theta)) {
        launch(device, flag, Type<double>{}, blocks, in, out, Vector(values));
      } else {
        launch(device, flag, Type<acc_t<T>>{}, blocks, in, out, Vector(values));
      }
    });
  });
  return y;
}

// launch(device, relu, blocks, grad, x, dx, theta, dtheta). With relu, x is the op's output.
template <typename Device, typename Launch>
std::tuple<Tensor, Tensor> filter_backward_on(const Tensor& grad, const Tensor& x, const Tensor& theta, int64_t dim,
                                              bool relu, const Launch& launch) {
  dim = check_filter_backward(grad, x, theta, dim);
  const Device device(x);
  Tensor dx = empty_like(x, x.scalar_type());
  Tensor dtheta = empty_vector(theta, theta.numel(), theta.scalar_type());
  if (x.numel() == 0) {
    return {dx, torch::stable::zero_(dtheta)};
  }
  const Tensor from = laid_out_as(x, dx, x.scalar_type()), upstream = upstream_for(grad, dx, theta);
  const Blocks blocks = make_blocks(dx, theta, dim);
  const Tensor values = dense(theta);
  dispatch(upstream.scalar_type(), [&](auto g) {
    dispatch(x.scalar_type(), [&](auto t) {
      using G = typename decltype(g)::type;
      using T = typename decltype(t)::type;
      with_flag(relu, [&](auto flag) {
        launch(device, flag, blocks, static_cast<const G*>(upstream.data_ptr()), static_cast<const T*>(from.data_ptr()),
               static_cast<T*>(dx.data_ptr()), Vector(values), Vector(dtheta));
      });
    });
  });
  return {dx, dtheta};
}

}  // namespace shrinknets
