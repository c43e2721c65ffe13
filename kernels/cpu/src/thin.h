// Products with few rows on the left: the steps of generation, and experts that few tokens chose. Reading the weights
// once is all the time they take, so they are rounded in registers rather than converted in memory first.
#pragma once

#include <algorithm>

#include "simd.h"

namespace mindmoe {

constexpr int64_t kThinRows = 4;

// fp32 weights as the operands of a product of T.
template <class T, class Lanes>
MINDMOE_INLINE Vec load_rounded(const float *from, Lanes lanes) {
  Vec value = load(from, lanes);
  if constexpr (std::is_same_v<T, bf16>) return widen(narrow(value));
  return value;
}

// c (rows, n) += a (rows, k) @ b (k, n), rows at most kThinRows.
template <class T>
void thin_product(int64_t rows, int64_t n, int64_t k, const T *a, int64_t lda, const float *b, int64_t ldb, float *c,
                  int64_t ldc) {
  constexpr int kStripes = 4;  // with kThinRows rows, 16 accumulators stay in registers
  auto stripe = [&](int64_t column, auto count, auto lanes) {
    constexpr int kCount = decltype(count)::value;
    Vec total[kThinRows][kCount] = {};
    for (int64_t p = 0; p < k; ++p) {
      Vec weight[kCount];
      for (int j = 0; j < kCount; ++j) weight[j] = load_rounded<T>(b + p * ldb + column + j * kWidth, lanes);
      for (int64_t row = 0; row < kThinRows; ++row) {
        if (row >= rows) break;
        float value = to_float(a[row * lda + p]);
        for (int j = 0; j < kCount; ++j) total[row][j] += value * weight[j];
      }
    }
    for (int64_t row = 0; row < kThinRows; ++row) {
      if (row >= rows) break;
      for (int j = 0; j < kCount; ++j) {
        float *to = c + row * ldc + column + j * kWidth;
        store(to, load(to, lanes) + total[row][j], lanes);
      }
    }
  };
  int64_t column = 0;
  for (; column + kStripes * kWidth <= n; column += kStripes * kWidth)
    stripe(column, std::integral_constant<int, kStripes>{}, AllLanes{});
  for (; column < n; column += kWidth)
    if (column + kWidth <= n)
      stripe(column, std::integral_constant<int, 1>{}, AllLanes{});
    else
      stripe(column, std::integral_constant<int, 1>{}, SomeLanes{static_cast<int>(n - column)});
}

// c (rows, n) += a (rows, k) @ b (n, k)^T, rows at most kThinRows.
template <class T>
void thin_product_transposed(int64_t rows, int64_t n, int64_t k, const T *a, int64_t lda, const float *b, int64_t ldb,
                             float *c, int64_t ldc) {
  for (int64_t column = 0; column < n; ++column) {
    Vec total[kThinRows] = {};
    for_lanes(k, [&](int64_t p, auto lanes) {
      Vec weight = load_rounded<T>(b + column * ldb + p, lanes);
      for (int64_t row = 0; row < kThinRows; ++row) {
        if (row >= rows) break;
        total[row] += load(a + row * lda + p, lanes) * weight;
      }
    });
    for (int64_t row = 0; row < rows; ++row) c[row * ldc + column] += sum(total[row]);
  }
}

}  // namespace mindmoe
