// Operations on the rows of a tile [rows, columns]: broadcast of a per-row value and folding to one repeat.
#ifndef MINDMOE_ROWS_H
#define MINDMOE_ROWS_H
#include "common.h"

namespace mindmoe {
// Row-wise Sub, Mul or Div of x [rows, columns] by one block of equal lanes per row, in place.
enum class RowOp { SUB, MUL, DIV };
template <RowOp operation>
__aicore__ inline void ByRow(const LocalTensor<float> &x, const LocalTensor<float> &blocks, uint32_t rows,
                             uint32_t columns)
{
    const uint8_t step = static_cast<uint8_t>(columns / BLOCK_F);
    const uint8_t repeat = static_cast<uint8_t>(rows);
    const BinaryRepeatParams perRow(1, 1, 0, step, step, 1);
    for (uint32_t c = 0; c < columns; c += LANES) {
        const uint64_t lanes = Smaller(LANES, columns - c);
        if constexpr (operation == RowOp::SUB) {
            Sub(x[c], x[c], blocks, lanes, repeat, perRow);
        } else if constexpr (operation == RowOp::MUL) {
            Mul(x[c], x[c], blocks, lanes, repeat, perRow);
        } else {
            Div(x[c], x[c], blocks, lanes, repeat, perRow);
        }
    }
    PipeBarrier<PIPE_V>();
}

// fold[r, 0..63] = sum or maximum of the 64-float pieces of row r of x [rows, columns]; overwrites fold. It begins by
// ordering what was issued before.
template <bool takeMax>
__aicore__ inline void FoldRows(const LocalTensor<float> &fold, const LocalTensor<float> &x, uint32_t rows,
                                uint32_t columns)
{
    const uint8_t step = static_cast<uint8_t>(columns / BLOCK_F);
    const BinaryRepeatParams pieces(1, 1, 1, 8, 8, step);
    Duplicate(fold, takeMax ? LOWEST : 0.0f, static_cast<int32_t>(rows * LANES));
    PipeBarrier<PIPE_V>();
    for (uint32_t c = 0; c < columns; c += LANES) {
        const uint64_t lanes = Smaller(LANES, columns - c);
        if constexpr (takeMax) {
            Max(fold, fold, x[c], lanes, static_cast<uint8_t>(rows), pieces);
        } else {
            Add(fold, fold, x[c], lanes, static_cast<uint8_t>(rows), pieces);
        }
        PipeBarrier<PIPE_V>();
    }
}

// row[r] = the lane that all of block r holds; the last group of 8 rows may be short.
__aicore__ inline void FirstLanes(const LocalTensor<float> &row, const LocalTensor<float> &blocks, uint32_t rows)
{
    const uint32_t whole = rows / BLOCK_F, left = rows % BLOCK_F;
    const uint64_t first[2] = {FirstOfBlocks(1), 0};
    if (whole > 0) {
        BlockReduceMax(row, blocks, static_cast<int32_t>(whole), first, 1, 1, 8);
    }
    if (left > 0) {
        const uint64_t some[2] = {first[0] & ((1ULL << left * BLOCK_F) - 1), 0};
        BlockReduceMax(row[whole * BLOCK_F], blocks[whole * LANES], 1, some, 1, 1, 8);
    }
    PipeBarrier<PIPE_V>();
}
}  // namespace mindmoe
#endif
