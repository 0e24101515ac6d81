// Reading and writing vectors whose dtype is known at run time only: one value per feature, so a switch costs nothing.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <type_traits>

#ifndef SN_HOST_DEVICE
#if defined(__CUDACC__)
#define SN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SN_HOST_DEVICE inline
#endif
#endif

namespace shrinknets {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// Sums and products are formed in this type: float32, or float64 where an operand has it, vectors included.
template <typename A, typename B = A>
using acc_t = std::conditional_t<std::is_same_v<A, double> || std::is_same_v<B, double>, double, float>;

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the C++ type of a dtype that passed its check.
template <typename F>
void dispatch(torch::headeronly::ScalarType type, const F& f) {
  switch (type) {
    case torch::headeronly::ScalarType::Double:
      return f(Type<double>{});
    case torch::headeronly::ScalarType::Half:
      return f(Type<Half>{});
    case torch::headeronly::ScalarType::BFloat16:
      return f(Type<BFloat16>{});
    default:
      return f(Type<float>{});
  }
}

// Calls f with a constant: f's argument, called, can name a template.
template <typename F>
void with_flag(bool flag, const F& f) {
  if (flag) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// A vector of any of the four dtypes; a null pointer stands for "not given".
struct Vector {
  void* data = nullptr;
  torch::headeronly::ScalarType type = torch::headeronly::ScalarType::Float;

  Vector() = default;
  explicit Vector(const torch::stable::Tensor& t) : data(t.data_ptr()), type(t.scalar_type()) {}
  explicit Vector(const std::optional<torch::stable::Tensor>& t) {
    if (t.has_value()) {
      *this = Vector(*t);
    }
  }

  SN_HOST_DEVICE explicit operator bool() const { return data != nullptr; }

  template <typename acc>
  SN_HOST_DEVICE acc get(int64_t i) const {
    switch (type) {
      case torch::headeronly::ScalarType::Double:
        return static_cast<acc>(static_cast<const double*>(data)[i]);
      case torch::headeronly::ScalarType::Half:
        return static_cast<acc>(static_cast<float>(static_cast<const Half*>(data)[i]));
      case torch::headeronly::ScalarType::BFloat16:
        return static_cast<acc>(static_cast<float>(static_cast<const BFloat16*>(data)[i]));
      default:
        return static_cast<acc>(static_cast<const float*>(data)[i]);
    }
  }

  template <typename acc>
  SN_HOST_DEVICE void set(int64_t i, acc value) const {
    switch (type) {
      case torch::headeronly::ScalarType::Double:
        static_cast<double*>(data)[i] = static_cast<double>(value);
        break;
      case torch::headeronly::ScalarType::Half:
        static_cast<Half*>(data)[i] = static_cast<Half>(static_cast<float>(value));
        break;
      case torch::headeronly::ScalarType::BFloat16:
        static_cast<BFloat16*>(data)[i] = static_cast<BFloat16>(static_cast<float>(value));
        break;
      default:
        static_cast<float*>(data)[i] = static_cast<float>(value);
    }
  }
};

// s = max(0, theta) by selection: dead (theta <= 0) is exactly zero, NaN is not dead and stays NaN. acc is float64
// wherever theta is: 1e-60 is alive, and would be zero in float32.
template <typename acc>
SN_HOST_DEVICE acc scale_of(const Vector& theta, int64_t k) {
  const acc value = theta.get<acc>(k);
  return value <= acc(0) ? acc(0) : value;
}

// A dead feature's value is zero whatever it was multiplied with, NaN and infinity included. The product comes first:
// compilers make vector code of a selection between values, not of a product on one side of a branch.
template <typename acc>
SN_HOST_DEVICE acc scaled(acc value, acc scale) {
  const acc product = value * scale;
  return scale == acc(0) ? acc(0) : product;
}

// relu as torch's: a NaN stays a NaN.
template <bool relu, typename acc>
SN_HOST_DEVICE acc activated(acc value) {
  return relu && value <= acc(0) ? acc(0) : value;
}

// The gradient behind a relu whose output is `out`.
template <bool relu, typename acc>
SN_HOST_DEVICE acc passed(acc grad, acc out) {
  return relu && out <= acc(0) ? acc(0) : grad;
}

}  // namespace shrinknets
