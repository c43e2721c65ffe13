// Tensors as operands of products: in the element type the product computes with.
#pragma once

#include "custom.h"
#include "gemm.h"

namespace mindmoe {

// The tensor's values as T: its own memory if it holds T, else a parallel conversion into scratch.
template <class T>
const T *tensor_as(const Tensor &tensor, Scratch &scratch) {
  return tensor.is_half() ? converted<T>(tensor.half(), tensor.size(), scratch)
                          : converted<T>(tensor.f32(), tensor.size(), scratch);
}

// Memory for a product whose result ends in `to`: `to` itself if that is fp32, else scratch for `deliver` to convert.
template <class To>
float *product_memory(To *to, int64_t count, Scratch &scratch) {
  if constexpr (std::is_same_v<To, float>) {
    return to;
  } else {
    return scratch.take<float>(count);
  }
}

template <class To>
void deliver(const float *product, int64_t count, To *to) {
  if constexpr (!std::is_same_v<To, float>) copy_row(to, product, count);
}

}  // namespace mindmoe
