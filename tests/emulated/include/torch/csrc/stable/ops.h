// torch's, and memory on the host that no kernel may touch in place of page-locked memory, which takes a GPU.
#pragma once

#include_next <torch/csrc/stable/ops.h>

namespace emulated {
void host_only(const void* data);
}

namespace torch::stable {

// Chosen where torch's would have to convert its arguments.
inline Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef size, torch::headeronly::ScalarType dtype, std::nullopt_t,
                    Device device, bool pinned) {
  Tensor tensor = empty(size, std::optional(dtype), std::nullopt, std::optional(device), std::optional(false));
  if (pinned) {
    emulated::host_only(tensor.data_ptr());
  }
  return tensor;
}

}  // namespace torch::stable
