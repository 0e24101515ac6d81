// Loops over neighbouring elements, in chunks: float16 and bfloat16 pass through buffers of floats, float32 and
// float64 are used in place.
#pragma once

#include "narrow.h"

#include <algorithm>

namespace shrinknets {

constexpr int64_t kChunk = 1024;  // three float buffers of it take 12 of the 32 KB of a first-level cache

template <typename T>
constexpr bool is_narrow = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>;

template <typename T, bool narrow = is_narrow<T>>
struct Source {
  const T* get(const T* p, int64_t) { return p; }
};

template <typename T>
struct Source<T, true> {
  float buffer[kChunk];

  const float* get(const T* p, int64_t n) {
    widen(p, buffer, n);
    return buffer;
  }
};

// What is written to get(p) is at p after put(p, n).
template <typename T, bool narrow = is_narrow<T>>
struct Target {
  using type = T;

  T* get(T* p) { return p; }
  void put(T*, int64_t) {}
};

template <typename T>
struct Target<T, true> {
  using type = float;
  float buffer[kChunk];

  float* get(T*) { return buffer; }
  void put(T* p, int64_t n) { shrinknets::narrow(buffer, p, n); }
};

// to = s from, or relu of it, for a live s.
template <bool relu = false, typename acc, typename I, typename O>
SN_VECTOR void scale_run(const I* from, O* to, int64_t n, acc s) {
  Source<I> source;
  Target<O> target;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t count = std::min(kChunk, n - start);
    const auto* in = source.get(from + start, count);
    auto* out = target.get(to + start);
    for (int64_t k = 0; k < count; ++k) {
      out[k] = static_cast<typename Target<O>::type>(activated<relu>(static_cast<acc>(in[k]) * s));
    }
    target.put(to + start, count);
  }
}

// In pairs of halves; widths that are known when it is compiled keep the lanes in registers.
template <int n, typename acc>
inline acc sum_of(const acc* lanes) {
  if constexpr (n == 1) {
    return lanes[0];
  } else {
    acc halves[n / 2];
    for (int lane = 0; lane < n / 2; ++lane) {
      halves[lane] = lanes[lane] + lanes[lane + n / 2];
    }
    return sum_of<n / 2>(halves);
  }
}

// <G, W> of one run and dW = s G for a live s, in one read; with relu W is its output, which G has to pass. 16 sums
// side by side, flushed into a double after every chunk, keep the error below torch's own sum while the loop stays
// vector code.
template <bool relu = false, typename acc, typename G, typename W>
SN_VECTOR double scale_and_dot(const G* grad, const W* weight, W* dweight, int64_t n, acc s) {
  constexpr int kLanes = 16;
  Source<G> grads;
  Source<W> weights;
  Target<W> target;
  double total = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t count = std::min(kChunk, n - start);
    const auto* __restrict g = grads.get(grad + start, count);
    const auto* __restrict w = weights.get(weight + start, count);
    auto* __restrict dw = target.get(dweight + start);
    acc lanes[kLanes] = {};
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const acc value = static_cast<acc>(w[k + lane]);
        const acc upstream = passed<relu>(static_cast<acc>(g[k + lane]), value);
        lanes[lane] += upstream * value;
        dw[k + lane] = static_cast<typename Target<W>::type>(upstream * s);
      }
    }
    acc rest = 0;  // an index into lanes that is known at run time only would keep them out of registers
    for (; k < count; ++k) {
      const acc value = static_cast<acc>(w[k]);
      const acc upstream = passed<relu>(static_cast<acc>(g[k]), value);
      rest += upstream * value;
      dw[k] = static_cast<typename Target<W>::type>(upstream * s);
    }
    target.put(dweight + start, count);
    total += sum_of<kLanes>(lanes) + rest;
  }
  return total;
}

// body(k, c) for n elements, `inner` of each feature c.
template <typename Body>
void for_elements(int64_t n, int64_t inner, const Body& body) {
  if (inner == 1) {  // the loop that compilers turn into vector code
    for (int64_t k = 0; k < n; ++k) {
      body(k, k);
    }
    return;
  }
  for (int64_t c = 0; c * inner < n; ++c) {
    for (int64_t k = c * inner; k < (c + 1) * inner; ++k) {
      body(k, c);
    }
  }
}

// to = s from, or relu of it, for n neighbouring elements, no more than a chunk, `inner` of each feature; s may be
// dead.
template <bool relu, typename acc, typename T>
SN_VECTOR void scale_columns(const T* from, T* to, int64_t n, int64_t inner, const acc* s) {
  Source<T> source;
  Target<T> target;
  const auto* in = source.get(from, n);
  auto* out = target.get(to);
  for_elements(n, inner, [=](int64_t k, int64_t c) {
    out[k] = static_cast<typename Target<T>::type>(activated<relu>(scaled(static_cast<acc>(in[k]), s[c])));
  });
  target.put(to, n);
}

// dx = s grad, and sums += grad x for each feature, over elements as in scale_columns; relu as in scale_and_dot.
template <bool relu, typename acc, typename G, typename T>
SN_VECTOR void scale_and_add_columns(const G* grad, const T* x, T* dx, int64_t n, int64_t inner, const acc* s,
                                     double* sums) {
  Source<G> grads;
  Source<T> inputs;
  Target<T> target;
  const auto* g = grads.get(grad, n);
  const auto* in = inputs.get(x, n);
  auto* out = target.get(dx);
  for_elements(n, inner, [=](int64_t k, int64_t c) {
    const acc value = static_cast<acc>(in[k]);
    const acc upstream = passed<relu>(static_cast<acc>(g[k]), value);
    sums[c] += static_cast<double>(upstream * value);
    out[k] = static_cast<typename Target<T>::type>(scaled(upstream, s[c]));
  });
  target.put(dx, n);
}

}  // namespace shrinknets
