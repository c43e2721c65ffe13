#include "gemm.h"

#include <dlfcn.h>

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

char letter(Side side) { return side == kPlain ? 'N' : 'T'; }

template <class Function, class T>
void dispatch(Function dnnl, Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const T *a,
              int64_t lda, const T *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  bool done = dnnl != nullptr && k > 0 &&
              dnnl(letter(a_side), letter(b_side), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) == 0;
  if (!done) own::gemm(a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace

void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
          const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  dispatch(dnnl_float, a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const bf16 *a, int64_t lda,
          const bf16 *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  dispatch(dnnl_half, a_side, b_side, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

bool use_onednn(const char *path) {
  dnnl_float = nullptr;
  dnnl_half = nullptr;
  void *library = *path != '\0' ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (library == nullptr) return false;
  auto single = reinterpret_cast<DnnlFloat>(dlsym(library, "dnnl_sgemm"));
  auto half = reinterpret_cast<DnnlHalf>(dlsym(library, "dnnl_gemm_bf16bf16f32"));
  if (single == nullptr || half == nullptr) return false;
  dnnl_float = single;
  dnnl_half = half;
  return true;
}

}  // namespace mindmoe
