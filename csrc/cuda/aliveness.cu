// aliveness on CUDA: one launch for all thetas of a device, a block for each group, nothing copied to the host.
#include "../aliveness.h"
#include "common.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace shrinknets {
namespace {

template <typename Looks>
__global__ void aliveness_kernel(Looks looks, uint8_t* dead, int64_t* counts) {
  // the looks of this block's group
  int first = 0;
  while (looks.item[first].group != looks.item[0].group + blockIdx.x) {
    ++first;
  }
  const Look& look = looks.item[first];
  int64_t found = 0, broken = 0;
  for (int64_t k = threadIdx.x; k < look.size; k += kThreads) {
    bool gone = true;
    for (int i = first; i < looks.count && looks.item[i].group == look.group; ++i) {
      const double theta = looks.item[i].theta.template get<double>(k);
      gone = gone && theta <= 0;
      broken += !isfinite(theta);
    }
    dead[look.at + k] = gone;
    found += gone;
  }
  found = block_sum(found);
  broken = block_sum(broken);
  if (threadIdx.x == 0) {
    counts[2 * look.group] = found;
    counts[2 * look.group + 1] = broken;
  }
}

Tensor aliveness(std::vector<Tensor> thetas, std::vector<int64_t> group) {
  const std::vector<Look> looks = make_looks(thetas, group);
  const OnCuda on(thetas[0]);
  const Seen seen(thetas[0], looks);
  const auto all = static_cast<int64_t>(looks.size());
  for (int64_t begin = 0; begin < all;) {
    // as many whole groups as a launch takes
    int64_t end = std::min<int64_t>(all, begin + LargeBatch<Look>::kMost);
    while (end < all && end > begin && looks[end].group == looks[end - 1].group) {
      --end;
    }
    SN_CHECK(end > begin, "aliveness: group ", looks[begin].group, " has more than ", LargeBatch<Look>::kMost,
             " thetas");
    const auto blocks = static_cast<unsigned>(looks[end - 1].group - looks[begin].group + 1);
    with_batch(looks.data() + begin, end - begin, [&](const auto& batch) {
      launch<aliveness_kernel<std::decay_t<decltype(batch)>>>(on, blocks, batch, seen.masks, seen.counts);
    });
    begin = end;
  }
  return seen.bytes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast, CUDA, m) {
  m.impl("aliveness", TORCH_BOX(&aliveness));
}

}  // namespace shrinknets
