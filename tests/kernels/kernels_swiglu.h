// The swiglu kernels for both element types.
#pragma once
#include "kernel_operator.h"

#define DTYPE_X float
#define swiglu swiglu_fp32
#define swiglu_grad swiglu_grad_fp32
#include "op_kernel/swiglu.cpp"
#include "op_kernel/swiglu_grad.cpp"
#undef DTYPE_X
#undef swiglu
#undef swiglu_grad
#define DTYPE_X bfloat16_t
#define swiglu swiglu_bf16
#define swiglu_grad swiglu_grad_bf16
#include "op_kernel/swiglu.cpp"
#include "op_kernel/swiglu_grad.cpp"
#undef DTYPE_X
#undef swiglu
#undef swiglu_grad
