// The permute kernels for both element types.
#pragma once
#include "kernel_operator.h"

#include "op_kernel/moe_capacity.cpp"

#define DTYPE_X float
#define DTYPE_Y float
#define DTYPE_GRAD float
#define moe_permute moe_permute_fp32
#define moe_combine moe_combine_fp32
#define moe_combine_grad moe_combine_grad_fp32
#include "op_kernel/moe_combine.cpp"
#include "op_kernel/moe_combine_grad.cpp"
#include "op_kernel/moe_permute.cpp"
#undef DTYPE_X
#undef DTYPE_Y
#undef DTYPE_GRAD
#undef moe_permute
#undef moe_combine
#undef moe_combine_grad
#define DTYPE_X bfloat16_t
#define DTYPE_Y bfloat16_t
#define DTYPE_GRAD bfloat16_t
#define moe_permute moe_permute_bf16
#define moe_combine moe_combine_bf16
#define moe_combine_grad moe_combine_grad_bf16
#include "op_kernel/moe_combine.cpp"
#include "op_kernel/moe_combine_grad.cpp"
#include "op_kernel/moe_permute.cpp"
#undef DTYPE_X
#undef DTYPE_Y
#undef DTYPE_GRAD
#undef moe_permute
#undef moe_combine
#undef moe_combine_grad
