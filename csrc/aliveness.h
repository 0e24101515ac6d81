// The arguments of aliveness and bury_, for both devices.
#pragma once

#include "checks.h"
#include "scalar.h"
#include "tensors.h"

#include <algorithm>
#include <string>
#include <vector>

namespace shrinknets {

// One theta among those that must all be dead for a feature to be.
struct Look {
  Vector theta;
  int64_t size;
  int64_t at;  // where its mask begins
  int64_t group;
};

// The result: for each group two int64, how many are dead and how many not finite, then all masks, a byte a feature.
// One tensor, so that one copy brings it to the host.
struct Seen {
  Tensor bytes;
  int64_t* counts;
  uint8_t* masks;

  explicit Seen(const Tensor& like, const std::vector<Look>& looks)
      : bytes(
            empty_vector(like, 16 * (looks.back().group + 1) + looks.back().at + looks.back().size, ScalarType::Byte)),
        counts(static_cast<int64_t*>(bytes.data_ptr())),
        masks(static_cast<uint8_t*>(bytes.data_ptr()) + 16 * (looks.back().group + 1)) {}
};

// A tensor whose elements become zero where theta is dead: theta itself, or its optimizer's state.
struct Burial {
  Vector theta;
  void* target;
  int64_t size;
  int bytes;  // of an element
  int owner;  // theta's number

  SN_HOST_DEVICE bool dead(int64_t k) const { return theta.get<double>(k) <= 0; }

  SN_HOST_DEVICE void bury(int64_t k) const {
    switch (bytes) {
      case 2:
        static_cast<uint16_t*>(target)[k] = 0;
        break;
      case 4:
        static_cast<uint32_t*>(target)[k] = 0;
        break;
      default:
        static_cast<uint64_t*>(target)[k] = 0;
    }
  }
};

inline void check_theta(const char* op, const std::string& name, const Tensor& t, const Tensor& first) {
  check_dtype(op, name.c_str(), t);
  SN_CHECK(t.dim() == 1 && t.is_contiguous(), op, ": ", name, " has shape ", shape_of(t),
           ", expected one dimension without gaps");
  check_same_device(op, name.c_str(), t, "thetas[0]", first);
}

// group: ascending from 0 without gaps, one entry for each theta.
inline std::vector<Look> make_looks(const std::vector<Tensor>& thetas, const std::vector<int64_t>& group) {
  const char* op = "aliveness";
  SN_CHECK(thetas.size() == group.size(), op, ": group has ", group.size(), " entries, expected ", thetas.size());
  std::vector<Look> looks;
  int64_t end = 0;
  for (size_t i = 0; i < thetas.size(); ++i) {
    const std::string name = "thetas[" + std::to_string(i) + "]";
    check_theta(op, name, thetas[i], thetas[0]);
    const bool starts = i == 0 || group[i] != group[i - 1];
    const int64_t expected = i == 0 ? 0 : group[i - 1] + starts, size = thetas[i].size(0);
    SN_CHECK(group[i] == expected, op, ": group holds ", group[i], " at position ", i, ", expected ", expected);
    SN_CHECK(starts || size == looks.back().size, op, ": ", name, " has shape ", shape_of(thetas[i]), ", expected (",
             looks.back().size, ",) as its group");
    looks.push_back({Vector(thetas[i]), size, starts ? end : looks.back().at, group[i]});
    end = looks.back().at + size;
  }
  return looks;
}

// owner[i]: the theta to which state[i] belongs. A theta's burials lie behind each other, its own is the last of them.
inline std::vector<Burial> make_burials(const std::vector<Tensor>& thetas, const std::vector<Tensor>& state,
                                        const std::vector<int64_t>& owner) {
  const char* op = "bury_";
  SN_CHECK(state.size() == owner.size(), op, ": owner has ", owner.size(), " entries, expected ", state.size());
  std::vector<Burial> burials;
  const auto add = [&](const Tensor& target, int64_t theta) {
    burials.push_back({Vector(thetas[theta]), target.data_ptr(), target.size(0),
                       static_cast<int>(target.element_size()), static_cast<int>(theta)});
  };
  for (size_t i = 0; i < thetas.size(); ++i) {
    check_theta(op, "thetas[" + std::to_string(i) + "]", thetas[i], thetas[0]);
  }
  for (size_t i = 0; i < state.size(); ++i) {
    const std::string name = "state[" + std::to_string(i) + "]";
    const auto bound = static_cast<int64_t>(thetas.size());
    SN_CHECK(owner[i] >= 0 && owner[i] < bound, op, ": owner holds ", owner[i], ", expected 0 to ", bound - 1);
    check_theta(op, name, state[i], thetas[0]);
    check_same_shape(op, name.c_str(), state[i], "its theta", thetas[owner[i]]);
    add(state[i], owner[i]);
  }
  for (size_t i = 0; i < thetas.size(); ++i) {
    add(thetas[i], static_cast<int64_t>(i));
  }
  std::stable_sort(burials.begin(), burials.end(), [](const auto& a, const auto& b) { return a.owner < b.owner; });
  return burials;
}

}  // namespace shrinknets
