// Small pieces that every kernel shares: sizes, fences, conversions and row-wise broadcasts.
#ifndef MINDMOE_COMMON_H
#define MINDMOE_COMMON_H
#include "compat.h"

namespace mindmoe {
using namespace AscendC;

constexpr uint32_t BLOCK = 32;   // bytes of one UB block
constexpr uint32_t LANES = 64;   // floats of one vector repeat
constexpr uint32_t BLOCK_F = 8;  // floats of one block: a per-row value is kept as one block of equal lanes
constexpr float LOWEST = -1.0e30f;  // stands for minus infinity; exp of it is 0 and sums of it stay finite

__aicore__ inline uint32_t Smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
__aicore__ inline uint32_t CeilDiv(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
__aicore__ inline uint32_t RoundUp(uint32_t a, uint32_t to) { return CeilDiv(a, to) * to; }

// Orders the second pipe of the event after everything issued so far on the first.
template <HardEvent event> __aicore__ inline void Fence()
{
    const event_t id = static_cast<event_t>(GetTPipePtr()->FetchEventID(event));
    SetFlag<event>(id);
    WaitFlag<event>(id);
}

template <typename T>
__aicore__ inline void ToFloat(const LocalTensor<float> &dst, const LocalTensor<T> &src, uint32_t n)
{
    if constexpr (IsSameType<T, float>::value) {
        Adds(dst, src, 0.0f, static_cast<int32_t>(n));
    } else {
        Cast(dst, src, RoundMode::CAST_NONE, n);
    }
}

template <typename T>
__aicore__ inline void FromFloat(const LocalTensor<T> &dst, const LocalTensor<float> &src, uint32_t n)
{
    if constexpr (IsSameType<T, float>::value) {
        Adds(dst, src, 0.0f, static_cast<int32_t>(n));
    } else {
        Cast(dst, src, RoundMode::CAST_RINT, n);
    }
}

// Lane mask of the first k lanes of every block of a [rows, 8] tensor.
__aicore__ inline uint64_t FirstOfBlocks(uint32_t k) { return ((1ULL << k) - 1) * 0x0101010101010101ULL; }

// blocks[r, 0..7] = row[r] for `rows` rows; reads row up to the next multiple of 8.
__aicore__ inline void SpreadRows(const LocalTensor<float> &blocks, const LocalTensor<float> &row, uint32_t rows)
{
    Brcb(blocks, row, static_cast<uint8_t>(CeilDiv(rows, BLOCK_F)), BrcbRepeatParams(1, 8));
}

// Copies of one contiguous run of n elements that need not fill whole blocks.
template <typename T>
__aicore__ inline void CopyIn(const LocalTensor<T> &dst, const GlobalTensor<T> &src, uint32_t n)
{
    DataCopyPad(dst, src, DataCopyExtParams(1, n * static_cast<uint32_t>(sizeof(T)), 0, 0, 0),
                DataCopyPadExtParams<T>(false, 0, 0, static_cast<T>(0)));
}

template <typename T>
__aicore__ inline void CopyOut(const GlobalTensor<T> &dst, const LocalTensor<T> &src, uint32_t n)
{
    DataCopyPad(dst, src, DataCopyExtParams(1, n * static_cast<uint32_t>(sizeof(T)), 0, 0, 0));
}

// A tensor whose element 0 is the sum of n floats, added by levels of 64. Both operands are overwritten; scratch holds
// ceil(n / 64) floats and n is at most 64 * 255. A reduction may not overlap its source, hence the two buffers.
__aicore__ inline LocalTensor<float> SumOf(LocalTensor<float> values, LocalTensor<float> scratch, uint32_t n)
{
    while (n > 1) {
        const uint32_t full = n / LANES, tail = n % LANES;
        if (full > 0) {
            WholeReduceSum(scratch, values, static_cast<int32_t>(LANES), static_cast<int32_t>(full), 1, 1, 8);
        }
        if (tail > 0) {
            WholeReduceSum(scratch[full], values[full * LANES], static_cast<int32_t>(tail), 1, 1, 1, 8);
        }
        PipeBarrier<PIPE_V>();
        n = full + (tail > 0 ? 1 : 0);
        const LocalTensor<float> next = scratch;
        scratch = values;
        values = next;
    }
    return values;
}
}  // namespace mindmoe
#endif
