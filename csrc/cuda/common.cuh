// What every CUDA kernel of the package uses.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cstdint>

#include "../tensors.h"
#include "limits.cuh"
#include "ptx.cuh"

// A variable of the block: SN_SHARED(float, sums, [8]). The two macros are what no other compiler reads; tests/emulated
// has its own.
#ifndef SN_SHARED
#define SN_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define SN_LAUNCH(kernel, grid, threads, stream) kernel<<<grid, threads, 0, stream>>>
#endif

namespace shrinknets {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// The device of a tensor, current as long as this lives, and its stream.
struct OnCuda {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit OnCuda(const Tensor& t) : guard(t.get_device_index()), stream(current_stream(t)) {}
};

// Whether what is asked of the stream is written down for later, into a CUDA graph.
inline bool is_captured(const OnCuda& on) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  STD_CUDA_CHECK(cudaStreamIsCapturing(on.stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// The one place where kernels start.
template <auto kernel, typename... Args>
void launch(const OnCuda& on, dim3 grid, const Args&... args) {
  SN_LAUNCH(kernel, grid, kThreads, on.stream)(args...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline Tensor new_bytes(const Tensor& like, int64_t size) {
  return empty_vector(like, size, ScalarType::Byte);
}

// On the host, page-locked: a copy from there neither waits for the device nor is waited for.
inline Tensor new_pinned_bytes(int64_t size) {
  const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
  return torch::stable::empty({size}, ScalarType::Byte, std::nullopt, host, true);
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Blocks of a grid-stride loop.
inline unsigned grid_for(int64_t work) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(work, kThreads), 1, kMostBlocks));
}

template <typename acc>
__device__ __forceinline__ acc warp_sum(acc value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_down_sync(kFullMask, value, step);
  }
  return value;
}

// The sum over a block of kThreads threads, valid in thread 0; always in the same order.
template <typename acc>
__device__ __forceinline__ acc block_sum(acc value) {
  SN_SHARED(acc, partial, [kThreads / kWarp]);
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) {
    partial[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    value = warp_sum(threadIdx.x < kThreads / kWarp ? partial[threadIdx.x] : acc(0));
  }
  __syncthreads();  // the caller may come again
  return value;
}

// A list handed to a kernel in its arguments: no table in device memory, nothing to copy or to wait for.
template <typename T, int kBytes>
struct Batch {
  static constexpr int kMost = kBytes / static_cast<int>(sizeof(T));

  T item[kMost];
  int count;

  Batch(const T* items, int64_t size) : count(static_cast<int>(size)) { std::copy(items, items + size, item); }
};

template <typename T>
using SmallBatch = Batch<T, kSmallBatch>;
template <typename T>
using LargeBatch = Batch<T, kLargeBatch>;

// launch(batch) with the smaller kind that holds the items.
template <typename T, typename Launch>
void with_batch(const T* items, int64_t size, const Launch& launch) {
  if (size <= SmallBatch<T>::kMost) {
    launch(SmallBatch<T>(items, size));
  } else {
    launch(LargeBatch<T>(items, size));
  }
}

// V neighbouring elements moved as one load or store.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

template <typename T>
bool aligned_for(const T* pointer, int v) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * v) == 0;
}

}  // namespace shrinknets
