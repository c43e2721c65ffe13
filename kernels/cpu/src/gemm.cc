#include "gemm.h"

#include <dlfcn.h>

#include "gemm_amx.h"
#include "gemm_own.h"

namespace mindmoe {
namespace {

// The C entry points of oneDNN (include/oneapi/dnnl/dnnl.h, "BLAS functions"); 0 is success.
using DnnlFloat = int (*)(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t,
                          float, float *, int64_t);
using DnnlHalf = int (*)(char, char, int64_t, int64_t, int64_t, float, const bf16 *, int64_t, const bf16 *, int64_t,
                         float, float *, int64_t);

DnnlFloat dnnl_float = nullptr;
DnnlHalf dnnl_half = nullptr;
bool tiles = false;

char letter(Side side) { return side == kPlain ? 'N' : 'T'; }

// A stored matrix (rows, columns) as fp32 with dense rows.
const float *widened(const bf16 *x, int64_t ld, int64_t rows, int64_t columns, Scratch &scratch) {
  float *to = scratch.take<float>(rows * columns);
  for (int64_t row = 0; row < rows; ++row) copy_row(to + row * columns, x + row * ld, columns);
  return to;
}

}  // namespace

void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  bool done = dnnl_float != nullptr && k > 0 &&
              dnnl_float(letter(a_side), letter(b_side), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) == 0;
  if (!done) own::gemm(a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const bf16 *a, int64_t lda,
          const bf16 *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  if (tiles && k > 0) {
    amx::gemm(a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  if (dnnl_half != nullptr && k > 0 &&
      dnnl_half(letter(a_side), letter(b_side), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) == 0)
    return;
  if (dnnl_float == nullptr) {
    own::gemm(a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  Scratch scratch;
  int64_t a_rows = a_side == kPlain ? m : k, b_rows = b_side == kPlain ? k : n;
  const float *wide_a = widened(a, lda, a_rows, m + k - a_rows, scratch);
  const float *wide_b = widened(b, ldb, b_rows, n + k - b_rows, scratch);
  gemm(a_side, b_side, m, n, k, alpha, wide_a, m + k - a_rows, wide_b, n + k - b_rows, beta, c, ldc);
}

void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const bf16 *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  if (tiles && k > 0) {
    amx::gemm(a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  Scratch scratch;
  int64_t rows = b_side == kPlain ? k : n, columns = n + k - rows;
  bf16 *half = scratch.take<bf16>(rows * columns);
  for (int64_t row = 0; row < rows; ++row) copy_row(half + row * columns, b + row * ldb, columns);
  gemm(a_side, b_side, m, n, k, alpha, a, lda, half, columns, beta, c, ldc);
}

bool use_onednn(const char *path, bool native_half) {
  dnnl_float = nullptr;
  dnnl_half = nullptr;
  void *library = *path != '\0' ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (library == nullptr) return false;
  auto single = reinterpret_cast<DnnlFloat>(dlsym(library, "dnnl_sgemm"));
  auto half = reinterpret_cast<DnnlHalf>(dlsym(library, "dnnl_gemm_bf16bf16f32"));
  if (single == nullptr || half == nullptr) return false;
  dnnl_float = single;
  dnnl_half = native_half ? half : nullptr;
  return true;
}

bool use_tiles(bool wanted) { return tiles = wanted && amx::permitted(); }

Source gemm_source() {
  if (tiles) return Source::Amx;
  if (dnnl_float == nullptr) return Source::Own;
  return dnnl_half == nullptr ? Source::OnednnWidened : Source::Onednn;
}

}  // namespace mindmoe
