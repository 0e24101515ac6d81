// aliveness on the CPU.
#include "../aliveness.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

namespace shrinknets {
namespace {

Tensor aliveness(std::vector<Tensor> thetas, std::vector<int64_t> group) {
  const std::vector<Look> looks = make_looks(thetas, group);
  const Seen seen(thetas[0], looks);
  for (size_t i = 0; i < looks.size(); ++i) {
    const Look& look = looks[i];
    const bool starts = i == 0 || look.group != looks[i - 1].group;
    uint8_t* const mask = seen.masks + look.at;
    int64_t alive = 0, broken = 0;
    for (int64_t k = 0; k < look.size; ++k) {
      const double theta = look.theta.get<double>(k);
      mask[k] = theta <= 0 && (starts || mask[k]);
      alive += !mask[k];
      broken += !std::isfinite(theta);
    }
    seen.counts[2 * look.group] = look.size - alive;  // the last one of a group knows
    seen.counts[2 * look.group + 1] = broken + (starts ? 0 : seen.counts[2 * look.group + 1]);
  }
  return seen.bytes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("aliveness", TORCH_BOX(&aliveness));
}

}  // namespace shrinknets
