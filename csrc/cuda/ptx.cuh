// What the kernels say in PTX, since CUDA C++ has no words for it.
#pragma once

#include <cuda_runtime.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "shrinknets_fast needs compute capability 8.0 or newer: cp.async; leave older ones out of TORCH_CUDA_ARCH_LIST"
#endif

#if defined(__CUDACC__)

namespace shrinknets::ptx {

// *flag = 1; whoever reads it by load_acquire sees all that this thread has written or seen before.
__device__ __forceinline__ void store_release(unsigned* flag) {
  asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// 4, 8 or 16 bytes from global to shared memory, without a register and without waiting.
template <typename W>
__device__ __forceinline__ void start_copy(W* to, const W* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(sizeof(W)));
}

// Waits for this thread's own copies.
__device__ __forceinline__ void finish_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace shrinknets::ptx

#endif  // else tests/emulated has them
