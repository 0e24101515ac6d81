// Whether an address is a kernel's business: inside an allocation of the device, a variable of its block, its
// arguments. Memory of the device is what torch's allocator for the CPU gives, once the one below is in its place.
#include "watch.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <sstream>

namespace emulated {
namespace {

constexpr size_t kMargin = 256;  // around an allocation, so that a step past one is in none

struct Range {
  size_t bytes;
  bool host;
};
std::mutex changing;
std::map<uintptr_t, Range> allocated;
std::map<uintptr_t, size_t> forbidden;
bool installed = false;
uintptr_t arguments_begin = 0, arguments_end = 0;

void give_back(void* p) {
  if (p) {
    const std::lock_guard<std::mutex> lock(changing);
    allocated.erase(reinterpret_cast<uintptr_t>(p));
    std::free(static_cast<char*>(p) - kMargin);
  }
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) {
      return {nullptr, nullptr, &give_back, cpu};
    }
    char* p = static_cast<char*>(std::aligned_alloc(64, (bytes + 2 * kMargin + 63) / 64 * 64));
    if (!p) {
      throw std::bad_alloc();
    }
    p += kMargin;
    std::memset(p, 0xff, bytes);  // NaN, and nothing useful as a number
    const std::lock_guard<std::mutex> lock(changing);
    allocated[reinterpret_cast<uintptr_t>(p)] = {bytes, false};
    return {p, p, &give_back, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

std::string trouble_in_shared(Block& b, size_t at, size_t bytes, bool writes) {
  std::ostringstream text;
  for (const auto& [_, variable] : b.shared) {
    const size_t begin = variable.data - b.arena;
    if (at < begin || at + bytes > begin + variable.bytes) {
      continue;
    }
    for (size_t i = at; i < at + bytes; ++i) {
      if (!writes && !b.written[i]) {
        text << "shared memory is read at byte " << at - begin << " of a variable of " << variable.bytes
             << " bytes, which nobody has written";
        return text.str();
      }
      b.written[i] = true;
    }
    return "";
  }
  return "an access of shared memory outside all variables";
}

}  // namespace

bool is_argument(uintptr_t address) {
  return address >= arguments_begin && address < arguments_end;
}

void forget_arguments(const void* arguments, size_t bytes) {
  arguments_begin = reinterpret_cast<uintptr_t>(arguments);
  arguments_end = arguments_begin + bytes;
}

std::string trouble(uintptr_t address, size_t bytes, bool writes) {
  Block& b = *current()->block;
  const auto arena = reinterpret_cast<uintptr_t>(b.arena);
  if (address >= arena && address < arena + kArenaBytes) {
    return trouble_in_shared(b, address - arena, bytes, writes);
  }
  if (is_argument(address)) {
    return writes ? "a write to the arguments" : "";
  }
  if (!installed) {
    return "";
  }
  const std::lock_guard<std::mutex> lock(changing);
  auto found = allocated.upper_bound(address);
  if (found == allocated.begin()) {
    return "an access outside the memory of the device";
  }
  --found;
  if (address + bytes > found->first + found->second.bytes) {
    std::ostringstream text;
    text << "an access " << address - found->first << " bytes into an allocation of " << found->second.bytes;
    return text.str();
  }
  if (found->second.host) {
    return "an access of memory of the host";
  }
  const auto no = forbidden.lower_bound(address + bytes);
  if (no != forbidden.begin() && std::prev(no)->first + std::prev(no)->second > address) {
    return "an access of forbidden memory";
  }
  return "";
}

void host_only(const void* data) {
  const std::lock_guard<std::mutex> lock(changing);
  const auto found = allocated.find(reinterpret_cast<uintptr_t>(data));
  if (found != allocated.end()) {
    found->second.host = true;
  }
}

}  // namespace emulated

#define EMULATED_EXPORT extern "C" __attribute__((visibility("default")))

// From here on every CPU tensor is made by the allocator above.
EMULATED_EXPORT void emulated_install_allocator() {
  if (!emulated::installed) {
    c10::SetCPUAllocator(new emulated::Allocator, 255);
    emulated::installed = true;
  }
}

EMULATED_EXPORT void emulated_forbid(uintptr_t address, size_t bytes) {
  const std::lock_guard<std::mutex> lock(emulated::changing);
  if (bytes > 0) {
    emulated::forbidden[address] = bytes;
  }
}

EMULATED_EXPORT void emulated_forbid_nothing() {
  const std::lock_guard<std::mutex> lock(emulated::changing);
  emulated::forbidden.clear();
}
