// bury_ on the CPU.
#include "../aliveness.h"

#include <torch/csrc/stable/library.h>

namespace shrinknets {
namespace {

void bury_(std::vector<Tensor> thetas, std::vector<Tensor> state, std::vector<int64_t> owner) {
  for (const Burial& burial : make_burials(thetas, state, owner)) {
    for (int64_t k = 0; k < burial.size; ++k) {
      if (burial.dead(k)) {
        burial.bury(k);
      }
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CPU, m) {
  m.impl("bury_", TORCH_BOX(&bury_));
}

}  // namespace shrinknets
