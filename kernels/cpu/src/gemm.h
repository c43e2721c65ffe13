// Matrix products with fp32 accumulation. Row-major; fp32 or bf16 operands, fp32 result.
//
// On x86-64 they come from the oneDNN that MindSpore ships (use_onednn), those of bf16 from the tile unit where the CPU
// has one (use_tiles), else from the blocked product of gemm_own.h.
// A call never uses more than the calling thread.
#pragma once

#include <cstdint>
#include <type_traits>

#include "arena.h"
#include "pool.h"
#include "simd.h"

namespace mindmoe {

enum class Side { Plain, Transposed };
constexpr Side kPlain = Side::Plain;
constexpr Side kTransposed = Side::Transposed;

// c (m, n) = alpha * op(a) (m, k) @ op(b) (k, n) + beta * c, where op transposes a Transposed operand.
// Leading dimensions count elements of the stored (not transposed) rows.
void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const bf16 *a, int64_t lda,
          const bf16 *b, int64_t ldb, float beta, float *c, int64_t ldc);

// The same with b rounded to bf16: weights that are kept in fp32.
void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const bf16 *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

// Takes dnnl_sgemm and dnnl_gemm_bf16bf16f32 from the library at `path`; false (and our own product) if it lacks them.
// Without `native_half` products of bf16 run through dnnl_sgemm, on operands widened to fp32: as exact, and faster on
// CPUs whose bf16 instructions are slow. An empty path returns to our own product.
bool use_onednn(const char *path, bool native_half);

// Sends products of bf16 to the tile unit (gemm_amx.h), or back to the above; false if this library or machine has none.
bool use_tiles(bool wanted);

enum class Source { Own, OnednnWidened, Onednn, Amx };
Source gemm_source();

// How the result (m, n) of one of `copies` products of a shape is cut into tasks: a function of the shape alone.
struct Tiles {
  int64_t m, n, rows, columns;

  Tiles(int64_t m, int64_t n, int64_t copies = 1)
      : m(m), n(n), rows(std::min<int64_t>(m, 256)), columns(std::min<int64_t>(n, 1024)) {
    while (copies * count() < 16 && rows > 128) rows = (rows + 1) / 2;
    while (copies * count() < 8 && columns > 128) columns = ((columns + 1) / 2 + 15) / 16 * 16;
    while (copies * count() < 8 && rows > 32) rows = (rows + 1) / 2;
  }
  int64_t across() const { return (n + columns - 1) / columns; }
  int64_t count() const { return rows == 0 || columns == 0 ? 0 : (m + rows - 1) / rows * across(); }
};

// body(row, rows, column, columns) for every tile, in parallel.
template <class Body>
void parallel_tiles(const Tiles &tiles, Body &&body) {
  parallel(tiles.count(), [&](int64_t index) {
    int64_t row = index / tiles.across() * tiles.rows, column = index % tiles.across() * tiles.columns;
    body(row, std::min(tiles.rows, tiles.m - row), column, std::min(tiles.columns, tiles.n - column));
  });
}

// A parallel product into c (m, n), dense rows.
template <class T>
void parallel_gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, const T *a, int64_t lda, const T *b,
                   int64_t ldb, float beta, float *c) {
  parallel_tiles(Tiles(m, n), [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const T *a_tile = a + (a_side == kPlain ? row * lda : row);
    const T *b_tile = b + (b_side == kPlain ? column : column * ldb);
    gemm(a_side, b_side, rows, columns, k, 1.0f, a_tile, lda, b_tile, ldb, beta, c + row * n + column, n);
  });
}

// The values as T: themselves if they are, else a parallel conversion into scratch.
template <class T, class From>
const T *converted(const From *from, int64_t count, Scratch &scratch) {
  if constexpr (std::is_same_v<T, From>) {
    return from;
  } else {
    T *to = scratch.take<T>(count);
    parallel_blocks(count, 1 << 15, [&](int64_t begin, int64_t end) {
      copy_row(to + begin, from + begin, end - begin);
    });
    return to;
  }
}

}  // namespace mindmoe
