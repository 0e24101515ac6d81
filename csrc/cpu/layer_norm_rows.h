// One row of a norm over the alive features, in loops that become vector code. A row is n neighbouring values in the type that is
// computed in; weight and bias have the filter in them and are 0 where a feature is dead.
#pragma once

#include "narrow.h"
#include "runs.h"

#include <algorithm>
#include <cstring>

namespace shrinknets {

// All bits of a number or none.
template <typename acc>
using bits_t = std::conditional_t<std::is_same_v<acc, double>, int64_t, int32_t>;

// What all rows share. count: of the alive features, at least 1. all: whether no feature is dead.
template <typename acc>
struct Affine {
  const acc *weight, *bias;
  const bits_t<acc>* alive;
  int64_t n;
  acc count;
  bool all;
};

// 0 where a feature is dead, whatever it holds. By bits: of a selection compilers make loads under a mask, which are slow.
template <bool all, typename acc>
inline acc counted(acc value, bits_t<acc> alive) {
  if constexpr (all) {
    return value;
  }
  bits_t<acc> bits;
  std::memcpy(&bits, &value, sizeof(acc));
  bits &= alive;
  std::memcpy(&value, &bits, sizeof(acc));
  return value;
}

constexpr int kLanes = 16;  // sums side by side, flushed into a double after every chunk, as scale_and_dot has them

template <bool all, typename acc>
SN_VECTOR double sum_row(const acc* __restrict x, const bits_t<acc>* __restrict alive, int64_t n) {
  double total = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = start + std::min(kChunk, n - start);
    acc lanes[kLanes] = {}, rest = 0;
    int64_t k = start;
    for (; k + kLanes <= end; k += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += counted<all>(x[k + lane], alive[k + lane]);
      }
    }
    for (; k < end; ++k) {
      rest += counted<all>(x[k], alive[k]);
    }
    total += sum_of<kLanes>(lanes) + rest;
  }
  return total;
}

template <bool all, typename acc>
SN_VECTOR double squares_row(const acc* __restrict x, const bits_t<acc>* __restrict alive, int64_t n, acc mean) {
  double total = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = start + std::min(kChunk, n - start);
    acc lanes[kLanes] = {}, rest = 0;
    int64_t k = start;
    for (; k + kLanes <= end; k += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const acc centred = counted<all>(x[k + lane] - mean, alive[k + lane]);
        lanes[lane] += centred * centred;
      }
    }
    for (; k < end; ++k) {
      const acc centred = counted<all>(x[k] - mean, alive[k]);
      rest += centred * centred;
    }
    total += sum_of<kLanes>(lanes) + rest;
  }
  return total;
}

// y = (x - mean) rstd weight + bias
template <bool all, typename acc>
SN_VECTOR void norm_row(const acc* __restrict x, acc* __restrict y, const acc* __restrict weight,
                        const acc* __restrict bias, const bits_t<acc>* __restrict alive, int64_t n, acc mean,
                        acc rstd) {
  for (int64_t k = 0; k < n; ++k) {
    y[k] = counted<all>((x[k] - mean) * rstd * weight[k] + bias[k], alive[k]);
  }
}

// The sums of h = g weight and of h xhat. With `sums`, g xhat is added to the first n of dsums and g to the next n; what
// dead features add there is nobody's.
template <bool all, bool sums, typename acc>
SN_VECTOR void reduce_row(const acc* __restrict g, const acc* __restrict x, const acc* __restrict weight,
                          const bits_t<acc>* __restrict alive, int64_t n, acc mean, acc rstd, acc* __restrict dsums,
                          double* __restrict result) {
  double first = 0, second = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = start + std::min(kChunk, n - start);
    acc lanes[kLanes] = {}, products[kLanes] = {}, rest = 0, products_rest = 0;
    int64_t k = start;
    for (; k + kLanes <= end; k += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t i = k + lane;
        const acc xhat = (x[i] - mean) * rstd, upstream = g[i];
        const acc product = upstream * xhat;
        lanes[lane] += counted<all>(upstream * weight[i], alive[i]);
        products[lane] += counted<all>(product * weight[i], alive[i]);
        if constexpr (sums) {
          dsums[i] += product;
          dsums[n + i] += upstream;
        }
      }
    }
    for (; k < end; ++k) {
      const acc product = g[k] * ((x[k] - mean) * rstd);
      rest += counted<all>(g[k] * weight[k], alive[k]);
      products_rest += counted<all>(product * weight[k], alive[k]);
      if constexpr (sums) {
        dsums[k] += product;
        dsums[n + k] += g[k];
      }
    }
    first += sum_of<kLanes>(lanes) + rest;
    second += sum_of<kLanes>(products) + products_rest;
  }
  result[0] = first;
  result[1] = second;
}

// dx = rstd (g weight - first - xhat second)
template <bool all, typename acc>
SN_VECTOR void gradient_row(const acc* __restrict g, const acc* __restrict x, acc* __restrict dx,
                            const acc* __restrict weight, const bits_t<acc>* __restrict alive, int64_t n, acc mean,
                            acc rstd, acc first, acc second) {
  const acc slope = rstd * second;
  for (int64_t k = 0; k < n; ++k) {
    dx[k] = counted<all>(rstd * (g[k] * weight[k] - first - (x[k] - mean) * slope), alive[k]);
  }
}

}  // namespace shrinknets
