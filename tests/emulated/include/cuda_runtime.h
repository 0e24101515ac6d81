// CUDA for an ordinary C++ compiler: as much of its language and runtime as csrc/cuda needs. Every thread of a kernel
// is a fiber (fibers.cpp), and whatever it calls here is a place where another one may go on (scheduler.cpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

// Inlined for the watcher's sake: where a call's result is stored in memory, g++ -fsanitize=thread does not tell. What
// is the emulator's own is not looked at.
#if defined(__SANITIZE_THREAD__)
#define __device__ __attribute__((always_inline))
#define SN_HOST_DEVICE __attribute__((always_inline)) inline
#define EMULATED_INSIDE __attribute__((no_sanitize_thread, noinline))
#else
#define __device__
#define EMULATED_INSIDE
#endif
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::isfinite;
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// ---- the runtime

using cudaStream_t = void*;
using cudaError_t = int;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };

cudaError_t cudaGetLastError();
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);

namespace emulated {

// ---- threads

struct Block;

struct Fiber {
  dim3 thread;
  Block* block = nullptr;
};

extern Fiber* self;  // the running one; null on the host
extern dim3 block_size, grid_size;
const dim3& index_of(const Block* block);

EMULATED_INSIDE inline dim3 thread_index() {
  return self->thread;
}
EMULATED_INSIDE inline dim3 block_index() {
  return index_of(self->block);
}
EMULATED_INSIDE inline dim3 size_of_block() {
  return block_size;
}
EMULATED_INSIDE inline dim3 size_of_grid() {
  return grid_size;
}

struct Place {
  const char* what = "";
  const char* file = "";
  int line = 0;
};

void barrier(Place place);
// All lanes of the mask give a value and get everybody's: slots[lane].
void exchange(unsigned mask, Place place, const void* mine, size_t bytes, const void** slots);
void pause();  // others may come in between
void sleep(unsigned nanoseconds);
void* shared_memory(const void* key, size_t bytes, size_t alignment);
void start_copy(void* to, const void* from, size_t bytes);
void finish_copies();
void atomic_access(const void* address, size_t bytes, bool reads, bool writes, bool acquires, bool releases);

// A variable of the block: each use of SN_SHARED has a key of its own.
template <typename T, typename Tag>
T& shared(Tag) {
  static const char key = 0;
  return *static_cast<T*>(shared_memory(&key, sizeof(T), alignof(T)));
}

template <typename T>
EMULATED_INSIDE T shuffle_down(unsigned mask, T value, int step, Place place) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  const void* slots[32];
  exchange(mask, place, &value, sizeof(T), slots);
  const int from = static_cast<int>(thread_index().x % 32) + step;
  if (from < 32) {  // past the warp: its own value, as CUDA has it
    std::memcpy(&value, slots[from], sizeof(T));
  }
  return value;
}

EMULATED_INSIDE inline unsigned ballot(unsigned mask, bool predicate, Place place) {
  const void* slots[32];
  exchange(mask, place, &predicate, sizeof(predicate), slots);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    bool vote = false;
    std::memcpy(&vote, slots[lane], sizeof(vote));
    result |= static_cast<unsigned>(vote) << lane;
  }
  return result;
}

template <typename T>
EMULATED_INSIDE T atomic_add(T* address, T value) {
  pause();
  atomic_access(address, sizeof(T), true, true, false, false);
  const T before = *const_cast<volatile T*>(address);
  *const_cast<volatile T*>(address) = before + value;
  pause();
  return before;
}

// ---- launches

struct Launch {
  const char* function;  // in whose name the kernel's is
  dim3 grid, block;
  cudaStream_t stream;
  size_t argument_bytes;
};
void run(const Launch& launch, void (*body)(const void*), const void* arguments, size_t bytes);

// The kernel's arguments as one object; from here on as bytes.
template <typename... Params, typename... Args>
void start(Launch launch, void (*kernel)(Params...), const Args&... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...), "a kernel's arguments are copied as bytes");
  struct All {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
  };
  const All all{kernel, std::tuple<Params...>(static_cast<Params>(args)...)};
  launch.argument_bytes = 0;
  ((launch.argument_bytes =
        (launch.argument_bytes + alignof(Params) - 1) / alignof(Params) * alignof(Params) + sizeof(Params)),
   ...);
  const auto body = [](const void* p) {
    const All& all = *static_cast<const All*>(p);
    std::apply(all.kernel, all.args);
  };
  run(launch, body, &all, sizeof(all));
}

template <auto kernel>
struct Launcher {
  Launch launch;

  template <typename... Args>
  void operator()(const Args&... args) const {
    start(launch, kernel, args...);
  }
};

}  // namespace emulated

// ---- PTX: csrc/cuda/ptx.cuh

namespace shrinknets::ptx {

EMULATED_INSIDE inline void store_release(unsigned* flag) {
  emulated::pause();
  emulated::atomic_access(flag, sizeof(unsigned), false, true, false, true);
  *const_cast<volatile unsigned*>(flag) = 1;
  emulated::pause();
}

EMULATED_INSIDE inline unsigned load_acquire(const unsigned* flag) {
  emulated::pause();
  const unsigned value = *const_cast<const volatile unsigned*>(flag);
  emulated::atomic_access(flag, sizeof(unsigned), true, false, true, false);
  return value;
}

template <typename W>
EMULATED_INSIDE void start_copy(W* to, const W* from) {
  emulated::start_copy(to, from, sizeof(W));
}

EMULATED_INSIDE inline void finish_copies() {
  emulated::finish_copies();
}

}  // namespace shrinknets::ptx

#define SN_SHARED(type, name, ...) auto& name = ::emulated::shared<type __VA_ARGS__>([] {})
#define SN_LAUNCH(kernel, grid, threads, stream) \
  ::emulated::Launcher<kernel> {{__PRETTY_FUNCTION__, grid, dim3(threads), stream, 0}}
#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
#define blockDim (::emulated::size_of_block())
#define gridDim (::emulated::size_of_grid())
#define __syncthreads() ::emulated::barrier({"__syncthreads", __FILE__, __LINE__})
#define __shfl_down_sync(mask, value, step) \
  ::emulated::shuffle_down(mask, value, step, {"__shfl_down_sync", __FILE__, __LINE__})
#define __ballot_sync(mask, predicate) ::emulated::ballot(mask, predicate, {"__ballot_sync", __FILE__, __LINE__})
#define __popc(bits) __builtin_popcount(bits)
#define __nanosleep(nanoseconds) ::emulated::sleep(nanoseconds)
#define atomicAdd(address, value) ::emulated::atomic_add(address, value)
