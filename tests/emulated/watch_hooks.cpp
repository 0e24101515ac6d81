// g++ -fsanitize=thread calls __tsan_read4(address) and the like before each access, and here these are ours: libtsan
// is not linked. So are the hooks of -fsanitize=alignment, for pointers that are no multiple of what their type needs.
#include "watch.h"

namespace emulated {

void watch_launch(const Launch&, uint64_t blocks, const void* arguments, size_t bytes) {
  forget_accesses(blocks);
  forget_arguments(arguments, bytes);
}

void watch_block(Block& block) {
  block.written.assign(kArenaBytes, false);
  forget_accesses(reinterpret_cast<uintptr_t>(block.arena), kArenaBytes);
}

void watch_access(const void* pointer, size_t bytes, bool writes, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const Thread* t = current();
  if (pointer >= t->stack && pointer < t->stack + kStack) {
    return;
  }
  ++counters.accesses;
  const std::string words = trouble(address, bytes, writes);
  if (!words.empty()) {
    fail(words + ": a " + (writes ? "write" : "read") + " of " + std::to_string(bytes) + " bytes by block " +
         std::to_string(t->block->number) + " thread " + std::to_string(t->number) + " at " + name_of_place(pc));
  }
  if (!is_argument(address)) {
    touch(address, bytes, !writes, writes, kPlain, pc);
  }
}

}  // namespace emulated

#define HOOK extern "C" __attribute__((visibility("hidden"), used)) void
#define SEEN(bytes, writes)                                                        \
  do {                                                                             \
    if (emulated::watching && emulated::self && emulated::inside == 0) {           \
      const emulated::Inside here;                                                 \
      emulated::watch_access(address, bytes, writes, __builtin_return_address(0)); \
      emulated::maybe_preempt();                                                   \
    }                                                                              \
  } while (false)
#define ACCESSES(bytes)                               \
  HOOK __tsan_read##bytes(void* address) {            \
    SEEN(bytes, false);                               \
  }                                                   \
  HOOK __tsan_write##bytes(void* address) {           \
    SEEN(bytes, true);                                \
  }                                                   \
  HOOK __tsan_unaligned_read##bytes(void* address) {  \
    SEEN(bytes, false);                               \
  }                                                   \
  HOOK __tsan_unaligned_write##bytes(void* address) { \
    SEEN(bytes, true);                                \
  }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HOOK __tsan_read_range(void* address, size_t bytes) {
  SEEN(bytes, false);
}
HOOK __tsan_write_range(void* address, size_t bytes) {
  SEEN(bytes, true);
}
HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}
HOOK __tsan_vptr_update(void**, void*) {}
HOOK __tsan_vptr_read(void**) {}

// of the host code: a shared_ptr counts so
extern "C" __attribute__((visibility("hidden"), used)) int __tsan_atomic32_fetch_add(volatile int* a, int value, int) {
  return __atomic_fetch_add(a, value, __ATOMIC_SEQ_CST);
}

struct TypeMismatch {
  struct {
    const char* file;
    uint32_t line, column;
  } place;
  const void* type;
  uint8_t log_alignment, kind;
};

// Null, misaligned or too small for its type.
HOOK __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
  const size_t alignment = size_t{1} << data->log_alignment;
  if (emulated::self && emulated::inside == 0 && pointer % alignment != 0) {
    const emulated::Inside here;
    emulated::fail("a pointer that is no multiple of " + std::to_string(alignment) + " bytes at " + data->place.file +
                   ":" + std::to_string(data->place.line));
  }
}
