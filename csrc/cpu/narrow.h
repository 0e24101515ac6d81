// float16 and bfloat16 to float32 and back, many at a time: to and fro takes 2.9 ns a float16 value with c10's own
// conversion on x86; with F16C a whole fold of it takes 0.14 ns.
#pragma once

#include "../scalar.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SN_F16C __attribute__((target("avx,f16c")))
#endif

// Built twice, for AVX2 and for every x86-64; the loader takes the one that the CPU runs. No FMA: results are the same.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define SN_VECTOR __attribute__((target_clones("avx2", "default")))
#else
#define SN_VECTOR
#endif

namespace shrinknets {

#ifdef SN_F16C
// Chosen when the library is loaded: it is built for every x86-64, and CPUs before 2012 lack F16C.
inline const bool kHasF16C = __builtin_cpu_supports("f16c");

// The number of values done: whole groups of 8.
SN_F16C inline int64_t widen_f16c(const Half* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  return i;
}

SN_F16C inline int64_t narrow_f16c(const float* from, Half* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  return i;
}
#else  // on aarch64 the plain loops below are vector code
constexpr bool kHasF16C = false;
inline int64_t widen_f16c(const Half*, float*, int64_t) {
  return 0;
}
inline int64_t narrow_f16c(const float*, Half*, int64_t) {
  return 0;
}
#endif

template <typename T>
SN_VECTOR void widen(const T* from, float* to, int64_t n) {
  int64_t i = 0;
  if constexpr (std::is_same_v<T, Half>) {
    i = kHasF16C ? widen_f16c(from, to, n) : 0;
  }
  for (; i < n; ++i) {
    to[i] = static_cast<float>(from[i]);
  }
}

template <typename T>
SN_VECTOR void narrow(const float* from, T* to, int64_t n) {
  int64_t i = 0;
  if constexpr (std::is_same_v<T, Half>) {
    i = kHasF16C ? narrow_f16c(from, to, n) : 0;
  }
  for (; i < n; ++i) {
    to[i] = static_cast<T>(from[i]);
  }
}

}  // namespace shrinknets
