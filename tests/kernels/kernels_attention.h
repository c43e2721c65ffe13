// The attention kernels for both element types.
#pragma once
#define MINDMOE_USES_MATMUL
#include "kernel_operator.h"

#define DTYPE_Q float
#define DTYPE_GRAD float
#define DTYPE_OUT float
#define attention attention_fp32
#define attention_delta attention_delta_fp32
#define attention_grad_key_value attention_grad_key_value_fp32
#define attention_grad_query attention_grad_query_fp32
#define attention_sink attention_sink_fp32
#include "op_kernel/attention.cpp"
#include "op_kernel/attention_delta.cpp"
#include "op_kernel/attention_grad_key_value.cpp"
#include "op_kernel/attention_grad_query.cpp"
#include "op_kernel/attention_sink.cpp"
#undef DTYPE_Q
#undef DTYPE_GRAD
#undef DTYPE_OUT
#undef attention
#undef attention_delta
#undef attention_grad_key_value
#undef attention_grad_query
#undef attention_sink
#define DTYPE_Q bfloat16_t
#define DTYPE_GRAD bfloat16_t
#define DTYPE_OUT bfloat16_t
#define attention attention_bf16
#define attention_delta attention_delta_bf16
#define attention_grad_key_value attention_grad_key_value_bf16
#define attention_grad_query attention_grad_query_bf16
#define attention_sink attention_sink_bf16
#include "op_kernel/attention.cpp"
#include "op_kernel/attention_delta.cpp"
#include "op_kernel/attention_grad_key_value.cpp"
#include "op_kernel/attention_grad_query.cpp"
#include "op_kernel/attention_sink.cpp"
#undef DTYPE_Q
#undef DTYPE_GRAD
#undef DTYPE_OUT
#undef attention
#undef attention_delta
#undef attention_grad_key_value
#undef attention_grad_query
#undef attention_sink
