// y = x @ w^T + bias + residual, with fp32 or bf16 products.
#include "custom.h"
#include "operand.h"
#include "thin.h"

namespace mindmoe {
namespace {

template <class T>
void forward(const T *x, const T *w, const float *bias, const float *residual, int64_t rows, int64_t in, int64_t out,
             const Tensor &y) {
  parallel_tiles(Tiles(rows, out), [&](int64_t row, int64_t count, int64_t column, int64_t columns) {
    Scratch scratch;
    bool half = y.is_half();
    int64_t ld = half ? columns : out;
    float *tile = half ? scratch.take<float>(count * columns) : y.f32() + row * out + column;
    for (int64_t i = 0; i < count; ++i) {
      float *to = tile + i * ld;
      if (residual != nullptr)
        copy_row(to, residual + (row + i) * out + column, columns);
      else
        std::fill(to, to + columns, 0.0f);
      if (bias != nullptr) add_row(to, bias + column, columns);
    }
    float beta = bias != nullptr || residual != nullptr ? 1.0f : 0.0f;
    gemm(kPlain, kTransposed, count, columns, in, 1.0f, x + row * in, in, w + column * in, in, beta, tile, ld);
    if (half)
      for (int64_t i = 0; i < count; ++i) copy_row(y.half() + (row + i) * out + column, tile + i * ld, columns);
  });
}

// The same for at most kThinRows rows of x: w is read once, as it is stored.
template <class T>
void forward_thin(const T *x, const float *w, const float *bias, const float *residual, int64_t rows, int64_t in,
                  int64_t out, const Tensor &y) {
  parallel_blocks(out, 256, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    int64_t columns = end - begin;
    float *sums = scratch.take<float>(rows * columns);
    for (int64_t row = 0; row < rows; ++row) {
      float *to = sums + row * columns;
      if (residual != nullptr)
        copy_row(to, residual + row * out + begin, columns);
      else
        std::fill(to, to + columns, 0.0f);
      if (bias != nullptr) add_row(to, bias + begin, columns);
    }
    thin_product_transposed(rows, columns, in, x, in, w + begin * in, in, sums, columns);
    for (int64_t row = 0; row < rows; ++row)
      with_type(y.is_half(), [&](auto tag) {
        copy_row(data_as<decltype(tag)>(y) + row * out + begin, sums + row * columns, columns);
      });
  });
}

// Sums of the columns of dy (rows, out), each in the order of its rows.
template <class T>
void column_sums(const T *dy, int64_t rows, int64_t out, float *sums) {
  parallel_blocks(out, 64, [&](int64_t begin, int64_t end) {
    std::fill(sums + begin, sums + end, 0.0f);
    for (int64_t row = 0; row < rows; ++row) add_row(sums + begin, dy + row * out + begin, end - begin);
  });
}

template <class T>
void backward(const Tensor &dy_tensor, const Tensor &x_tensor, const Tensor &w_tensor, const Tensor &dx, float *dw) {
  Scratch scratch;
  int64_t out = w_tensor.dim(0), in = w_tensor.dim(1), rows = x_tensor.rows();
  const T *dy = tensor_as<T>(dy_tensor, scratch), *x = tensor_as<T>(x_tensor, scratch);
  const T *w = tensor_as<T>(w_tensor, scratch);
  float *dx_sum = dx.is_half() ? scratch.take<float>(rows * in) : dx.f32();
  parallel_gemm(kPlain, kPlain, rows, in, out, dy, out, w, in, 0.0f, dx_sum);
  if (dx.is_half())
    parallel_blocks(rows * in, 1 << 15, [&](int64_t begin, int64_t end) {
      copy_row(dx.half() + begin, dx_sum + begin, end - begin);
    });
  parallel_gemm(kTransposed, kPlain, out, in, rows, dy, out, x, in, 0.0f, dw);
}

}  // namespace
}  // namespace mindmoe

// in: x (..., in), w (out, in), bias (out), residual (..., out), [half, has bias, has residual]; out: y (..., out)
MINDMOE_OP(linear_forward) {
  const double *set = t[4].f64();
  const float *bias = set[1] != 0 ? t[2].f32() : nullptr, *residual = set[2] != 0 ? t[3].f32() : nullptr;
  with_type(set[0] != 0, [&](auto tag) {
    using T = decltype(tag);
    Scratch scratch;
    const T *x = tensor_as<T>(t[0], scratch);
    int64_t rows = t[0].rows(), in = t[1].dim(1), out = t[1].dim(0);
    if (rows <= kThinRows)
      forward_thin(x, t[1].f32(), bias, residual, rows, in, out, t[5]);
    else
      forward(x, tensor_as<T>(t[1], scratch), bias, residual, rows, in, out, t[5]);
  });
}

// in: dy (..., out), x, w, bias, [as forward]; out: dx, dw, dbias (as bias)
MINDMOE_OP(linear_backward) {
  const double *set = t[4].f64();
  with_type(set[0] != 0, [&](auto tag) { backward<decltype(tag)>(t[0], t[1], t[2], t[5], t[6].f32()); });
  if (set[1] == 0) {
    std::fill_n(t[7].f32(), t[7].size(), 0.0f);
    return;
  }
  with_type(t[0].is_half(), [&](auto tag) {
    column_sums(data_as<decltype(tag)>(t[0]), t[0].rows(), t[0].dim(-1), t[7].f32());
  });
}
