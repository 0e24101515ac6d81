// aliveness on the CPU.
#include "../aliveness.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

namespace shrinknets {
namespace {

std::tuple<Tensor, Tensor> aliveness(std::vector<Tensor> thetas, std::vector<int64_t> group) {
  const std::vector<Look> looks = make_looks(thetas, group);
  Tensor dead = empty_vector(thetas[0], looks.back().at + looks.back().size, ScalarType::Byte);
  Tensor counts = torch::stable::new_zeros(thetas[0], {looks.back().group + 1, 2}, ScalarType::Long);
  auto* const masks = static_cast<uint8_t*>(dead.data_ptr());
  auto* const count = static_cast<int64_t*>(counts.data_ptr());
  for (size_t i = 0; i < looks.size(); ++i) {
    const Look& look = looks[i];
    const bool starts = i == 0 || look.group != looks[i - 1].group;
    const bool ends = i + 1 == looks.size() || look.group != looks[i + 1].group;
    uint8_t* const mask = masks + look.at;
    int64_t alive = 0, broken = 0;
    for (int64_t k = 0; k < look.size; ++k) {
      const double theta = look.theta.get<double>(k);
      mask[k] = theta <= 0 && (starts || mask[k]);
      alive += !mask[k];
      broken += !std::isfinite(theta);
    }
    count[2 * look.group] = ends ? look.size - alive : 0;
    count[2 * look.group + 1] += broken;
  }
  return {dead, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("aliveness", TORCH_BOX(&aliveness));
}

}  // namespace shrinknets
