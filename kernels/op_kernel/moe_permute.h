// Stable permutation of tokens by expert, a counting sort over (token, choice) pairs.
//   x [tokens, hidden], ids [tokens, topk] (outside 0..experts-1: the pair goes nowhere)
//   -> y [rowsOut, hidden], slot [tokens, topk] = row of the pair in y or -1, counts [experts] = rows kept
// With a capacity, the pairs of an expert beyond it are dropped in token order; moe_capacity drops by score first.
//
// Each core counts its pairs per expert into the workspace; after the barrier it knows where its share starts.
#ifndef MINDMOE_MOE_PERMUTE_H
#define MINDMOE_MOE_PERMUTE_H
#include "moe_permute_tiling.h"
#include "unowned_rows.h"

namespace mindmoe {
template <typename T> class MoePermute {
public:
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR ids, GM_ADDR y, GM_ADDR slot, GM_ADDR counts, GM_ADDR workspace,
                                const MoePermuteTilingData &t, TPipe *pipe)
    {
        t_ = t;
        me_ = static_cast<uint32_t>(GetBlockIdx());
        const uint32_t pairs = t_.tokens * t_.topk;
        first_ = me_ * t_.pairsPerCore;
        mine_ = first_ < pairs ? Smaller(t_.pairsPerCore, pairs - first_) : 0;
        xGm_.SetGlobalBuffer((__gm__ T *)x, static_cast<uint64_t>(t_.tokens) * t_.hidden);
        idsGm_.SetGlobalBuffer((__gm__ int32_t *)ids, pairs);
        yGm_.SetGlobalBuffer((__gm__ T *)y, static_cast<uint64_t>(t_.rowsOut) * t_.hidden);
        slotGm_.SetGlobalBuffer((__gm__ int32_t *)slot, pairs);
        countsGm_.SetGlobalBuffer((__gm__ int32_t *)counts, t_.experts);
        sharesGm_.SetGlobalBuffer((__gm__ int32_t *)workspace, static_cast<uint64_t>(t_.cores) * t_.expertPitch);
        const uint32_t table = t_.expertPitch * sizeof(int32_t);
        pipe->InitBuffer(idBuf_, t_.chunk * sizeof(int32_t));
        pipe->InitBuffer(slotBuf_, t_.chunk * sizeof(int32_t));
        pipe->InitBuffer(shareBuf_, table);
        pipe->InitBuffer(totalBuf_, table);
        pipe->InitBuffer(nextBuf_, table);
        pipe->InitBuffer(startBuf_, table);
        pipe->InitBuffer(zeroBuf_, RoundUp(t_.hidden * sizeof(T), BLOCK));
        pipe->InitBuffer(rowQueue_, ROWS_IN_FLIGHT, RoundUp(t_.hidden * sizeof(T), BLOCK));
    }

    __aicore__ inline void Process()
    {
        CountMine();
        SyncAll<true>();
        AddShares();
        Layout();
        for (uint32_t p = 0; p < mine_; p += t_.chunk) {
            Place(p);
        }
        UnownedRows<T> unowned(yGm_, zeroBuf_.Get<T>(), t_.hidden);
        ClearUnowned(unowned, totalBuf_.Get<int32_t>(), t_.experts, t_.capacity, t_.rowsOut, t_.cores);
    }

private:
    static constexpr uint32_t ROWS_IN_FLIGHT = 4;

    __aicore__ inline uint32_t LoadIds(uint32_t p)
    {
        const uint32_t n = Smaller(t_.chunk, mine_ - p);
        CopyIn(idBuf_.Get<int32_t>(), idsGm_[first_ + p], n);
        Fence<HardEvent::MTE2_S>();
        return n;
    }

    __aicore__ inline void CountMine()
    {
        LocalTensor<int32_t> share = shareBuf_.Get<int32_t>();
        LocalTensor<int32_t> ids = idBuf_.Get<int32_t>();
        Duplicate(share, static_cast<int32_t>(0), static_cast<int32_t>(t_.expertPitch));
        Fence<HardEvent::V_S>();
        for (uint32_t p = 0; p < mine_; p += t_.chunk) {
            const uint32_t n = LoadIds(p);
            for (uint32_t i = 0; i < n; ++i) {
                const uint32_t expert = static_cast<uint32_t>(ids.GetValue(i));
                if (expert < t_.experts) {
                    share.SetValue(expert, share.GetValue(expert) + 1);
                }
            }
            Fence<HardEvent::S_MTE2>();  // ids are overwritten by the next load
        }
        Fence<HardEvent::S_MTE3>();
        DataCopy(sharesGm_[static_cast<uint64_t>(me_) * t_.expertPitch], share, t_.expertPitch);
    }

    // total = pairs of each expert; next = those of the cores before this one.
    __aicore__ inline void AddShares()
    {
        LocalTensor<int32_t> share = shareBuf_.Get<int32_t>();
        LocalTensor<int32_t> total = totalBuf_.Get<int32_t>();
        LocalTensor<int32_t> next = nextBuf_.Get<int32_t>();
        const int32_t pitch = static_cast<int32_t>(t_.expertPitch);
        Duplicate(total, static_cast<int32_t>(0), pitch);
        Duplicate(next, static_cast<int32_t>(0), pitch);
        PipeBarrier<PIPE_V>();
        for (uint32_t c = 0; c < t_.cores; ++c) {
            DataCopy(share, sharesGm_[static_cast<uint64_t>(c) * t_.expertPitch], t_.expertPitch);
            Fence<HardEvent::MTE2_V>();
            Add(total, total, share, pitch);
            if (c < me_) {
                Add(next, next, share, pitch);
            }
            Fence<HardEvent::V_MTE2>();  // with the fence above it also orders the next additions
        }
        Fence<HardEvent::V_S>();
    }

    // start = first row of each expert; total becomes the rows kept, which core 0 writes out.
    __aicore__ inline void Layout()
    {
        LocalTensor<int32_t> total = totalBuf_.Get<int32_t>();
        LocalTensor<int32_t> start = startBuf_.Get<int32_t>();
        const int32_t capacity = static_cast<int32_t>(t_.capacity);
        int32_t row = 0;
        for (uint32_t e = 0; e < t_.experts; ++e) {
            const int32_t n = total.GetValue(e);
            start.SetValue(e, row);
            row += capacity != 0 ? capacity : n;
            if (capacity != 0 && n > capacity) {
                total.SetValue(e, capacity);
            }
        }
        if (me_ == 0) {
            Fence<HardEvent::S_MTE3>();
            CopyOut(countsGm_, total, t_.experts);
        }
    }

    __aicore__ inline void Place(uint32_t p)
    {
        LocalTensor<int32_t> ids = idBuf_.Get<int32_t>();
        LocalTensor<int32_t> slot = slotBuf_.Get<int32_t>();
        LocalTensor<int32_t> next = nextBuf_.Get<int32_t>();
        LocalTensor<int32_t> start = startBuf_.Get<int32_t>();
        const uint32_t n = LoadIds(p);
        for (uint32_t i = 0; i < n; ++i) {
            const uint32_t expert = static_cast<uint32_t>(ids.GetValue(i));
            int32_t row = -1;
            if (expert < t_.experts) {
                const int32_t rank = next.GetValue(expert);
                next.SetValue(expert, rank + 1);
                if (t_.capacity == 0 || rank < static_cast<int32_t>(t_.capacity)) {
                    row = start.GetValue(expert) + rank;
                    CopyRow((first_ + p + i) / t_.topk, static_cast<uint32_t>(row));
                }
            }
            slot.SetValue(i, row);
        }
        Fence<HardEvent::S_MTE3>();
        CopyOut(slotGm_[first_ + p], slot, n);
        Fence<HardEvent::MTE3_S>();  // the next chunk overwrites slot
        Fence<HardEvent::S_MTE2>();  // and ids
    }

    __aicore__ inline void CopyRow(uint32_t token, uint32_t row)
    {
        LocalTensor<T> line = rowQueue_.template AllocTensor<T>();
        CopyIn(line, xGm_[static_cast<uint64_t>(token) * t_.hidden], t_.hidden);
        rowQueue_.EnQue(line);
        line = rowQueue_.template DeQue<T>();
        CopyOut(yGm_[static_cast<uint64_t>(row) * t_.hidden], line, t_.hidden);
        rowQueue_.FreeTensor(line);
    }

    MoePermuteTilingData t_;
    uint32_t me_ = 0, first_ = 0, mine_ = 0;
    TBuf<TPosition::VECCALC> idBuf_, slotBuf_, shareBuf_, totalBuf_, nextBuf_, startBuf_, zeroBuf_;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> rowQueue_;
    GlobalTensor<T> xGm_, yGm_;
    GlobalTensor<int32_t> idsGm_, slotGm_, countsGm_, sharesGm_;
};
}  // namespace mindmoe
#endif
