// What moe_gating and its backward do to a tile of logits [rows, pitch] in UB.
#ifndef MINDMOE_MOE_LOGITS_H
#define MINDMOE_MOE_LOGITS_H
#include "rows.h"

namespace mindmoe {
// Brings logits, which may be infinite where an expert is masked, within the finite range of LOWEST.
__aicore__ inline void MakeFinite(const LocalTensor<float> &x, uint32_t n)
{
    Maxs(x, x, LOWEST, static_cast<int32_t>(n));
    PipeBarrier<PIPE_V>();
    Mins(x, x, -LOWEST, static_cast<int32_t>(n));
    PipeBarrier<PIPE_V>();
}

// x = softmax of each row. row holds `rows` floats up to a multiple of 8, all defined; spread a block and fold 64
// floats per row; all three are overwritten.
__aicore__ inline void SoftmaxRows(const LocalTensor<float> &x, const LocalTensor<float> &row,
                                   const LocalTensor<float> &spread, const LocalTensor<float> &fold, uint32_t rows,
                                   uint32_t pitch)
{
    const int32_t lanes = static_cast<int32_t>(LANES), repeat = static_cast<int32_t>(rows);
    FoldRows<true>(fold, x, rows, pitch);
    WholeReduceMax(row, fold, lanes, repeat, 1, 1, 8, ReduceOrder::ORDER_ONLY_VALUE);
    PipeBarrier<PIPE_V>();
    SpreadRows(spread, row, rows);
    PipeBarrier<PIPE_V>();
    ByRow<RowOp::SUB>(x, spread, rows, pitch);
    Exp(x, x, static_cast<int32_t>(rows * pitch));
    FoldRows<false>(fold, x, rows, pitch);
    WholeReduceSum(row, fold, lanes, repeat, 1, 1, 8);
    PipeBarrier<PIPE_V>();
    SpreadRows(spread, row, rows);
    PipeBarrier<PIPE_V>();
    ByRow<RowOp::DIV>(x, spread, rows, pitch);
}
}  // namespace mindmoe
#endif
