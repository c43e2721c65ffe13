// The calling convention of MindSpore's ops.Custom(func_type="aot"): inputs, then outputs, as untyped arrays.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "progress.h"
#include "simd.h"

namespace mindmoe {

struct Tensor {
  void *data;
  int rank;
  const int64_t *shape;
  const char *dtype;

  int64_t size() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= shape[i];
    return product;
  }
  // Axis from the front, or from the back if negative.
  int64_t dim(int axis) const { return shape[axis < 0 ? rank + axis : axis]; }
  // Everything but the last axis as one.
  int64_t rows() const { return dim(-1) == 0 ? 0 : size() / dim(-1); }

  float *f32() const { return typed<float>("float32"); }
  double *f64() const { return typed<double>("float64"); }
  int32_t *i32() const { return typed<int32_t>("int32"); }
  bf16 *half() const { return typed<bf16>("bfloat16"); }
  bool is_half() const { return std::strcmp(dtype, "bfloat16") == 0; }

 private:
  template <class T>
  T *typed(const char *expected) const {
    if (std::strcmp(dtype, expected) != 0)
      throw std::invalid_argument(std::string("got ") + dtype + ", not " + expected);
    return static_cast<T *>(data);
  }
};

class Tensors {
 public:
  Tensors(int count, void **data, int *ranks, int64_t **shapes, const char **dtypes)
      : count_(count), data_(data), ranks_(ranks), shapes_(shapes), dtypes_(dtypes) {}
  int count() const { return count_; }
  Tensor operator[](int i) const { return {data_[i], ranks_[i], shapes_[i], dtypes_[i]}; }

 private:
  int count_;
  void **data_;
  int *ranks_;
  int64_t **shapes_;
  const char **dtypes_;
};

inline int call_op(const char *name, void (*op)(const Tensors &), const Tensors &tensors) {
  try {
    op(tensors);
    op_ended();
    return 0;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "mindmoe cpu op %s: %s\n", name, error.what());
    return 1;
  }
}

// Calls body with a value of the tensor's element type (float or bf16) as a tag.
template <class Body>
void with_type(bool half, Body &&body) {
  if (half)
    body(bf16{});
  else
    body(float{});
}

template <class T>
T *data_as(const Tensor &tensor) {
  if constexpr (std::is_same_v<T, bf16>)
    return tensor.half();
  else
    return tensor.f32();
}

}  // namespace mindmoe

// Defines the exported op `name`; its body follows and sees `t`, the tensors.
#define MINDMOE_OP(name)                                                                                       \
  namespace mindmoe {                                                                                          \
  static void name##_body(const Tensors &t);                                                                   \
  }                                                                                                            \
  extern "C" __attribute__((visibility("default"))) int name(int count, void **data, int *ranks,               \
                                                             int64_t **shapes, const char **dtypes, void *, void *) { \
    return mindmoe::call_op(#name, mindmoe::name##_body, mindmoe::Tensors(count, data, ranks, shapes, dtypes)); \
  }                                                                                                            \
  static void mindmoe::name##_body(const Tensors &t)
