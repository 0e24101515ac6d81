// bury_ on CUDA: one launch for all thetas of an optimizer and their state.
#include "../aliveness.h"
#include "common.cuh"

#include <torch/csrc/stable/library.h>

namespace shrinknets {
namespace {

// Blocks in x take the tensors, blocks in y their elements. A theta that another block has buried is still dead.
template <typename Burials>
__global__ void bury_kernel(Burials burials) {
  const Burial& burial = burials.item[blockIdx.x];
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; k < burial.size; k += step) {
    bury_one(burial, k);
  }
}

void bury_(std::vector<Tensor> thetas, std::vector<Tensor> state, std::vector<int64_t> owner) {
  const std::vector<Burial> burials = make_burials(thetas, state, owner);
  if (burials.empty()) {
    return;
  }
  const torch::stable::accelerator::DeviceGuard guard(thetas[0].get_device_index());
  const cudaStream_t stream = current_stream(thetas[0]);
  const auto all = static_cast<int64_t>(burials.size());
  for (int64_t begin = 0; begin < all; begin += LargeBatch<Burial>::kMost) {
    const int64_t count = std::min<int64_t>(LargeBatch<Burial>::kMost, all - begin);
    with_batch(burials.data() + begin, count, [&](const auto& batch) {
      bury_kernel<<<dim3(static_cast<unsigned>(count), 4), kThreads, 0, stream>>>(batch);
    });
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("bury_", TORCH_BOX(&bury_));
}

}  // namespace shrinknets
