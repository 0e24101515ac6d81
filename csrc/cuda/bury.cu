// bury_ on CUDA: one launch for all thetas of an optimizer and their state.
#include "../aliveness.h"
#include "common.cuh"

#include <torch/csrc/stable/library.h>

namespace shrinknets {
namespace {

// Blocks in x take the thetas, each from its first burial on, blocks in y their elements. theta[k] is read and zeroed
// by one thread, which zeroes it last; where a batch ends between a theta's burials, the next launch comes after this
// one.
template <typename Burials>
__global__ void bury_kernel(Burials burials) {
  const int first = blockIdx.x;
  const Burial& burial = burials.item[first];
  if (first > 0 && burials.item[first - 1].owner == burial.owner) {
    return;
  }
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; k < burial.size; k += step) {
    if (burial.dead(k)) {
      for (int i = first; i < burials.count && burials.item[i].owner == burial.owner; ++i) {
        burials.item[i].bury(k);
      }
    }
  }
}

void bury_(std::vector<Tensor> thetas, std::vector<Tensor> state, std::vector<int64_t> owner) {
  const std::vector<Burial> burials = make_burials(thetas, state, owner);
  if (burials.empty()) {
    return;
  }
  const OnCuda on(thetas[0]);
  const auto all = static_cast<int64_t>(burials.size());
  for (int64_t begin = 0; begin < all; begin += LargeBatch<Burial>::kMost) {
    const int64_t count = std::min<int64_t>(LargeBatch<Burial>::kMost, all - begin);
    with_batch(burials.data() + begin, count, [&](const auto& batch) {
      launch<bury_kernel<std::decay_t<decltype(batch)>>>(on, dim3(static_cast<unsigned>(count), 4), batch);
    });
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("bury_", TORCH_BOX(&bury_));
}

}  // namespace shrinknets
