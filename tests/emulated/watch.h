// What the two halves of the watcher tell each other.
#pragma once

#include "emulator.h"

namespace emulated {

constexpr int kPlain = 1, kAtomic = 2;  // kinds of access; 0: none

// watch_memory.cpp: a line about an address that a kernel has no business with, or nothing.
std::string trouble(uintptr_t address, size_t bytes, bool writes);
bool is_argument(uintptr_t address);
void forget_arguments(const void* arguments, size_t bytes);

// watch_races.cpp
void forget_accesses(uint64_t blocks);
void forget_accesses(uintptr_t address, size_t bytes);
void touch(uintptr_t address, size_t bytes, bool reads, bool writes, int kind, const void* pc);
std::string name_of_place(const void* pc);

}  // namespace emulated
