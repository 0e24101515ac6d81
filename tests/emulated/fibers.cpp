// Threads of a kernel as fibers: stacks of their own on one thread of the CPU, switched by hand. x86-64 alone.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATED_ASAN 1
#else
#define EMULATED_ASAN 0
#endif

// What a function has to find again lies on the stack that is left.
extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch,@function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch,.-emulated_switch
)");

namespace emulated {

Fiber* self = nullptr;
int inside = 0;

namespace {
void* host_stack_pointer = nullptr;
[[maybe_unused]] void* host_fake_stack = nullptr;
[[maybe_unused]] const void* host_bottom = nullptr;
[[maybe_unused]] size_t host_size = 0;
void (*begin_thread)() = nullptr;

void thread_main() {
#if EMULATED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &host_bottom, &host_size);
#endif
  inside = 0;
  begin_thread();
}
}  // namespace

// Memory between two pages that nobody may touch.
char* mapped(size_t bytes) {
  const size_t page = 4096, rounded = (bytes + page - 1) / page * page;
  char* p = static_cast<char*>(
      mmap(nullptr, rounded + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (p == MAP_FAILED || mprotect(p + page, rounded, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("emulated: no memory for a stack");
  }
  return p + page;
}

void poison([[maybe_unused]] char* memory, [[maybe_unused]] size_t bytes, [[maybe_unused]] bool forbidden) {
#if EMULATED_ASAN
  if (forbidden) {
    __asan_poison_memory_region(memory, bytes);
  } else {
    __asan_unpoison_memory_region(memory, bytes);
  }
#endif
}

// The thread will start in begin(), which never returns.
void prepare(Thread* t, void (*begin)()) {
  begin_thread = begin;
  if (!t->stack) {
    t->stack = mapped(kStack);
  }
  poison(t->stack, kStack, false);
  // not all at one place modulo 4096: they would share a few lines of the cache
  void** entry = reinterpret_cast<void**>(t->stack + kStack - 16 - t->number % 64 * 128 - t->number / 64 * 64);
  entry[0] = reinterpret_cast<void*>(&thread_main);
  entry[1] = nullptr;
  std::fill(entry - 6, entry, nullptr);
  t->stack_pointer = entry - 6;
  t->state = State::kReady;
  t->turns = 0;
  t->copies.clear();
  t->known.reset();
  t->fake_stack = nullptr;
}

void to_thread(Thread* t) {
  ++counters.switches;
  self = t;
#if EMULATED_ASAN
  __sanitizer_start_switch_fiber(&host_fake_stack, t->stack, kStack);
#endif
  emulated_switch(&host_stack_pointer, t->stack_pointer);
#if EMULATED_ASAN
  __sanitizer_finish_switch_fiber(host_fake_stack, nullptr, nullptr);
#endif
  self = nullptr;
}

void to_host([[maybe_unused]] bool forever) {
  Thread* t = current();
  const int before = inside;
#if EMULATED_ASAN
  __sanitizer_start_switch_fiber(forever ? nullptr : &t->fake_stack, host_bottom, host_size);
#endif
  emulated_switch(&t->stack_pointer, host_stack_pointer);
#if EMULATED_ASAN
  __sanitizer_finish_switch_fiber(t->fake_stack, &host_bottom, &host_size);
#endif
  inside = before;
}

}  // namespace emulated
