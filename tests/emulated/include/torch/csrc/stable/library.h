// torch's, but the ops are registered for CPU tensors and under a name of their own, beside the package's.
#pragma once

#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) _STABLE_TORCH_LIBRARY_IMPL(shrinknets_fast_emulated, CPU, m, C10_UID)

// csrc/library.cpp is read with a name that becomes the emulated one before torch's macro makes a word of it
#if defined(EMULATED_SCHEMAS)
#define shrinknets_fast shrinknets_fast_emulated
#endif
