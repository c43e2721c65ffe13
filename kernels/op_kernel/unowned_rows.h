// Zeroes the rows of a permuted tensor that no (token, choice) pair owns: the tail of a dropless layout, or the
// unused slots of each expert in a capacity layout. Every row of an output is thus defined.
#ifndef MINDMOE_UNOWNED_ROWS_H
#define MINDMOE_UNOWNED_ROWS_H
#include "common.h"

namespace mindmoe {
template <typename T> class UnownedRows {
public:
    // zeros: UB of one row, used by nothing else.
    __aicore__ inline UnownedRows(const GlobalTensor<T> &rows, const LocalTensor<T> &zeros, uint32_t hidden)
        : rows_(rows), zeros_(zeros), hidden_(hidden)
    {
        Duplicate(zeros_, static_cast<T>(0.0f), static_cast<int32_t>(hidden_));
        Fence<HardEvent::V_MTE3>();
    }

    // This core's share of the rows [begin, end).
    __aicore__ inline void Clear(uint32_t begin, uint32_t end, uint32_t cores)
    {
        for (uint32_t row = begin + static_cast<uint32_t>(GetBlockIdx()); row < end; row += cores) {
            CopyOut(rows_[static_cast<uint64_t>(row) * hidden_], zeros_, hidden_);
        }
    }

private:
    GlobalTensor<T> rows_;
    LocalTensor<T> zeros_;
    uint32_t hidden_;
};

// Applies it to a whole layout; counts[e] are the rows that expert e owns, readable by the scalar unit.
template <typename T>
__aicore__ inline void ClearUnowned(UnownedRows<T> &unowned, const LocalTensor<int32_t> &counts, uint32_t experts,
                                    uint32_t capacity, uint32_t rowsOut, uint32_t cores)
{
    uint32_t owned = 0;
    for (uint32_t e = 0; e < experts; ++e) {
        const uint32_t n = static_cast<uint32_t>(counts.GetValue(e));
        if (capacity != 0) {
            unowned.Clear(e * capacity + n, (e + 1) * capacity, cores);
        }
        owned += n;
    }
    if (capacity == 0) {
        unowned.Clear(owned, rowsOut, cores);
    }
}
}  // namespace mindmoe
#endif
