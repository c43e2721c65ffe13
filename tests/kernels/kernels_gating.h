// The gating kernels for both element types.
#pragma once
#include "kernel_operator.h"

#define DTYPE_LOGITS float
#define moe_gating moe_gating_fp32
#define moe_gating_grad moe_gating_grad_fp32
#include "op_kernel/moe_gating.cpp"
#include "op_kernel/moe_gating_grad.cpp"
#undef DTYPE_LOGITS
#undef moe_gating
#undef moe_gating_grad
#define DTYPE_LOGITS bfloat16_t
#define moe_gating moe_gating_bf16
#define moe_gating_grad moe_gating_grad_bf16
#include "op_kernel/moe_gating.cpp"
#include "op_kernel/moe_gating_grad.cpp"
#undef DTYPE_LOGITS
#undef moe_gating
#undef moe_gating_grad
