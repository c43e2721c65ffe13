// A blocked matrix product for machines without oneDNN: panels of both operands are packed as fp32, then a register
// tile of kTileRows x (2 vectors) runs down the inner dimension. Source: Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication" (ACM TOMS 34, 2008).
#pragma once

#include <algorithm>

#include "gemm.h"

namespace mindmoe {
namespace own {

constexpr int kTileRows = kWidth == 16 ? 12 : 6;  // accumulators fit the registers: 24 of 32, or 12 of 16
constexpr int kTileColumns = 2 * kWidth;
constexpr int64_t kInner = 256;            // inner block: one packed column panel stays in L1
constexpr int64_t kRows = 16 * kTileRows;  // row block: the packed block of a stays in L2

// Packs op(x)[0:count, 0:inner] into panels of `Lanes` rows, inner-major, zero padded.
template <int Lanes, class T>
void pack(bool rows_are_strided, const T *x, int64_t ld, int64_t count, int64_t inner, float scale, float *to) {
  for (int64_t panel = 0; panel < count; panel += Lanes) {
    int64_t lanes = std::min<int64_t>(Lanes, count - panel);
    for (int64_t p = 0; p < inner; ++p, to += Lanes) {
      const T *from = rows_are_strided ? x + panel * ld + p : x + p * ld + panel;
      int64_t step = rows_are_strided ? ld : 1;
      for (int64_t i = 0; i < lanes; ++i) to[i] = scale * to_float(from[i * step]);
      for (int64_t i = lanes; i < Lanes; ++i) to[i] = 0.0f;
    }
  }
}

// c[0:rows, 0:columns] += a panel @ b panel.
inline void tile(int64_t inner, const float *a, const float *b, float *c, int64_t ldc, int64_t rows, int64_t columns) {
  Vec total[kTileRows][2] = {};
  for (int64_t p = 0; p < inner; ++p, a += kTileRows, b += kTileColumns) {
    Vec left = load(b, AllLanes{}), right = load(b + kWidth, AllLanes{});
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      Vec value = splat(a[i]);
      total[i][0] += value * left;
      total[i][1] += value * right;
    }
  }
  if (columns == kTileColumns) {
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      if (i >= rows) break;
      store(c + i * ldc, load(c + i * ldc, AllLanes{}) + total[i][0], AllLanes{});
      store(c + i * ldc + kWidth, load(c + i * ldc + kWidth, AllLanes{}) + total[i][1], AllLanes{});
    }
    return;
  }
  float buffer[kTileRows][kTileColumns];
  std::memcpy(buffer, total, sizeof(buffer));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) c[i * ldc + j] += buffer[i][j];
}

inline void scale_result(int64_t m, int64_t n, float beta, float *c, int64_t ldc) {
  if (beta == 1.0f) return;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
}

template <class T>
void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const T *a, int64_t lda, const T *b,
          int64_t ldb, float beta, float *c, int64_t ldc) {
  scale_result(m, n, beta, c, ldc);
  if (m == 0 || n == 0) return;
  Scratch scratch;
  int64_t padded = (n + kTileColumns - 1) / kTileColumns * kTileColumns;
  float *b_panels = scratch.take<float>(padded * std::min(k, kInner));
  float *a_panels = scratch.take<float>(kRows * std::min(k, kInner));
  for (int64_t p = 0; p < k; p += kInner) {
    int64_t inner = std::min(kInner, k - p);
    pack<kTileColumns>(b_side == kTransposed, b + (b_side == kPlain ? p * ldb : p), ldb, n, inner, 1.0f, b_panels);
    for (int64_t i = 0; i < m; i += kRows) {
      int64_t rows = std::min(kRows, m - i);
      const T *a_block = a_side == kPlain ? a + i * lda + p : a + p * lda + i;
      pack<kTileRows>(a_side == kPlain, a_block, lda, rows, inner, alpha, a_panels);
      for (int64_t j = 0; j < n; j += kTileColumns)
        for (int64_t r = 0; r < rows; r += kTileRows)
          tile(inner, a_panels + r * inner, b_panels + j * inner, c + (i + r) * ldc + j, ldc,
               std::min<int64_t>(kTileRows, rows - r), std::min<int64_t>(kTileColumns, n - j));
    }
  }
}

}  // namespace own
}  // namespace mindmoe
