// What the host code calls, of CUDA's runtime and of torch's: the symbols below are found before torch's own. And what
// tests call through ctypes.
#include "emulator.h"

#include <torch/csrc/stable/c/shim.h>

#include <sstream>
#include <stdexcept>

namespace emulated {
namespace {

char current_stream;  // its address is the stream
int guards = 0;
bool captured = false;
std::string unchecked;  // the kernel whose launch nobody has checked yet
std::string complaint;  // what nobody could be told by an exception

void check_stream(const char* what, cudaStream_t stream) {
  if (stream != &current_stream) {
    throw std::runtime_error(std::string("emulated: ") + what + " on a stream that is not the current one");
  }
}

}  // namespace

// "... [with auto kernel = shrinknets::{anonymous}::fold_kernel<float, float, 4>; Args = ...]"
std::string name_of(const Launch& launch) {
  const std::string text = launch.function, before = "kernel = ";
  const size_t at = text.find(before);
  const std::string name = at == std::string::npos ? text : text.substr(at + before.size());
  const size_t end = name.find_first_of("<;]"), begin = name.rfind(':', end);
  return name.substr(begin + 1, end - begin - 1);
}

void check_launch(const Launch& launch) {
  std::ostringstream words;
  const auto between = [&](const char* name, uint64_t value, uint64_t low, uint64_t high) {
    if (value < low || value > high) {
      words << name << " is " << value << ", expected " << low << " to " << high << "; ";
    }
  };
  between("gridDim.x", launch.grid.x, 1, 0x7fffffff);
  between("gridDim.y", launch.grid.y, 1, 65535);
  between("gridDim.z", launch.grid.z, 1, 65535);
  between("threads", uint64_t{launch.block.x} * launch.block.y * launch.block.z, 1, 1024);
  between("bytes of arguments", launch.argument_bytes, 0, 32764);
  if (guards == 0) {
    words << "no device guard is alive; ";
  }
  if (!unchecked.empty()) {
    words << "the launch of " << unchecked << " before it was never checked; ";
  }
  check_stream("a launch", launch.stream);
  if (!words.str().empty()) {
    throw std::runtime_error("emulated: launch of " + name_of(launch) + ": " + words.str());
  }
  unchecked = name_of(launch);
}

}  // namespace emulated

// ---- CUDA's

cudaError_t cudaGetLastError() {
  emulated::unchecked.clear();
  return 0;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  emulated::check_stream("cudaMemsetAsync", stream);
  std::memset(to, value, bytes);
  return 0;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  emulated::check_stream("cudaStreamIsCapturing", stream);
  *status = emulated::captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return 0;
}

// ---- torch's

extern "C" {

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  ++emulated::guards;
  *guard = reinterpret_cast<DeviceGuardHandle>(&emulated::guards);  // any but null, which is never deleted
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --emulated::guards;
  if (!emulated::unchecked.empty()) {
    emulated::complaint = "emulated: the launch of " + emulated::unchecked + " was never checked";
    emulated::unchecked.clear();
  }
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = &emulated::current_stream;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = nullptr;
  return error == 0 ? AOTI_TORCH_SUCCESS : AOTI_TORCH_FAILURE;
}

void torch_c10_cuda_free_error_msg(char*) {}
}

// ---- the tests'

#define EMULATED_EXPORT extern "C" __attribute__((visibility("default")))

EMULATED_EXPORT void emulated_options(uint64_t seed, int policy, int resident, int order, int preempt, int freeze,
                                      int lazy, int watch) {
  emulated::options = {seed, policy, resident, order, preempt, freeze, lazy, watch};
  emulated::counters.launches = 0;  // it takes part in the seed
}

EMULATED_EXPORT void emulated_counters(uint64_t* to) {
  const emulated::Counters& c = emulated::counters;
  const uint64_t all[] = {c.launches, c.blocks, c.switches, c.barriers,    c.exchanges,
                          c.sleeps,   c.copies, c.atomics,  c.preemptions, c.accesses};
  std::copy(std::begin(all), std::end(all), to);
}

EMULATED_EXPORT void emulated_capture(bool captured) {
  emulated::captured = captured;
}

// What went wrong where no exception could say it; said once.
EMULATED_EXPORT const char* emulated_complaint() {
  static std::string said;
  said = emulated::complaint;
  emulated::complaint.clear();
  return said.c_str();
}
