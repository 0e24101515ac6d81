// One check per property of an argument. Messages name the op, the argument and the actual value.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace shrinknets {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(t.size(d));
  }
  return text + (t.dim() == 1 ? ",)" : ")");
}

inline bool is_computed(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline void check_dtype(const char* op, const char* name, ScalarType type) {
  STD_TORCH_CHECK(is_computed(type), op, ": ", name, " has dtype ", torch::headeronly::toString(type),
                  ", expected float64, float32, float16 or bfloat16");
}

inline void check_dtype(const char* op, const char* name, const Tensor& t) {
  check_dtype(op, name, t.scalar_type());
}

inline std::string device_of(const Tensor& t) {
  return t.is_cpu() ? "cpu" : (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& u) {
  STD_TORCH_CHECK(t.is_cpu() == u.is_cpu() && t.get_device_index() == u.get_device_index(), op, ": ", name, " is on ",
                  device_of(t), ", expected ", device_of(u), " as ", other);
}

inline void check_vector(const char* op, const char* name, const Tensor& t, int64_t size, const char* match) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == size, op, ": ", name, " has shape ", shape_of(t), ", expected (", size,
                  ",) to match ", match);
}

inline void check_same_shape(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& u) {
  bool same = t.dim() == u.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) {
    same = t.size(d) == u.size(d);
  }
  STD_TORCH_CHECK(same, op, ": ", name, " has shape ", shape_of(t), ", expected ", shape_of(u), " as ", other);
}

}  // namespace shrinknets
