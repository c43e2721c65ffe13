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

}  // namespace mindmoe
