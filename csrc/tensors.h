// Allocation with torch's own rules, through the dispatcher: the stable wrappers of these ops lack the options needed
// here.
#pragma once

#include "checks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <optional>

namespace shrinknets {

// Where a kernel runs, made of a tensor there. The CPU needs nothing; CUDA's has a guard and a stream.
struct OnCpu {
  explicit OnCpu(const Tensor&) {}
};

// torch.empty_like(like, dtype=type): keeps the memory format of a dense tensor.
inline Tensor empty_like(const Tensor& like, ScalarType type) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional(type)), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt),        from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

inline Tensor empty_vector(const Tensor& like, int64_t size, ScalarType type) {
  const std::array<int64_t, 1> shape{size};
  return torch::stable::new_empty(like, shape, type);
}

inline bool is_double(const std::optional<Tensor>& t) {
  return t.has_value() && t->scalar_type() == ScalarType::Double;
}

// A matrix is copied to float64 where only a vector beside it has float64: rare, and it saves 9 more kernels of each
// kind.
inline Tensor widened(const Tensor& t, bool wide) {
  return wide ? torch::stable::to(t, ScalarType::Double) : t;
}

// Vectors are read by index alone, so they are made contiguous where they are not; a call of torch's op costs 0.5 us.
inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional(dense(*t)) : std::nullopt;
}

// Allocation gives an empty tensor where an optional argument is absent.
inline Tensor empty_or_absent(const std::optional<Tensor>& t, const Tensor& like) {
  return t.has_value() ? empty_like(*t, t->scalar_type()) : empty_vector(like, 0, like.scalar_type());
}

}  // namespace shrinknets
