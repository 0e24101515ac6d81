// One check per property of an argument; shrinknets_fast/ops/checks.py is their twin. Messages name the op, the
// argument and the actual value.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cctype>
#include <sstream>
#include <stdexcept>
#include <string>

// Throws the message alone: STD_TORCH_CHECK puts the C++ function and the path of the build's source in front of it.
#define SN_CHECK(condition, ...)                               \
  do {                                                         \
    if (!(condition)) {                                        \
      throw std::runtime_error(shrinknets::text(__VA_ARGS__)); \
    }                                                          \
  } while (false)

namespace shrinknets {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

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

// The name of a dtype in Python: "int64" for torch's "Long".
inline std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default: {
      std::string name = torch::headeronly::toString(type);
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      return name;
    }
  }
}

inline void check_dtype(const char* op, const char* name, ScalarType type) {
  SN_CHECK(is_computed(type), op, ": ", name, " has dtype ", name_of(type),
           ", expected float64, float32, float16 or bfloat16");
}

inline void check_dtype(const char* op, const char* name, const Tensor& t) {
  check_dtype(op, name, t.scalar_type());
}

inline std::string device_of(const Tensor& t) {
  return t.is_cpu() ? "cpu" : (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& u) {
  SN_CHECK(t.is_cpu() == u.is_cpu() && t.get_device_index() == u.get_device_index(), op, ": ", name, " is on ",
           device_of(t), ", expected ", device_of(u), " as ", other);
}

// match(): what the size has to fit, in words.
template <typename Match>
void check_vector(const char* op, const char* name, const Tensor& t, int64_t size, const Match& match) {
  SN_CHECK(t.dim() == 1 && t.size(0) == size, op, ": ", name, " has shape ", shape_of(t), ", expected (", size,
           ",) to match ", match());
}

inline void check_same_shape(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& u) {
  bool same = t.dim() == u.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) {
    same = t.size(d) == u.size(d);
  }
  SN_CHECK(same, op, ": ", name, " has shape ", shape_of(t), ", expected ", shape_of(u), " as ", other);
}

}  // namespace shrinknets
