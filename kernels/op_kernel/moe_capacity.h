// Drops what exceeds the capacity of each expert, lowest weight first and, among equal weights, the later pair first:
//   ids, weights [tokens, topk] (weights >= 0) -> kept [tokens, topk], the id, or `experts` where the pair is dropped
// A core finds, for each of its experts, the capacity-th largest weight by bisection on the bits of the float, whose
// order is that of the non-negative value; then the last pair of that weight to keep by bisection on the position.
// After the barrier each core decides its share of the pairs.
#ifndef MINDMOE_MOE_CAPACITY_H
#define MINDMOE_MOE_CAPACITY_H
#include "common.h"
#include "moe_capacity_tiling.h"

namespace mindmoe {
class MoeCapacity {
public:
    __aicore__ inline void Init(GM_ADDR ids, GM_ADDR weights, GM_ADDR kept, GM_ADDR workspace,
                                const MoeCapacityTilingData &t, TPipe *pipe)
    {
        t_ = t;
        idsGm_.SetGlobalBuffer((__gm__ int32_t *)ids, t_.pairs);
        bitsGm_.SetGlobalBuffer((__gm__ int32_t *)weights, t_.pairs);
        keptGm_.SetGlobalBuffer((__gm__ int32_t *)kept, t_.pairs);
        limitsGm_.SetGlobalBuffer((__gm__ int32_t *)workspace, static_cast<uint64_t>(t_.experts) * ENTRY);
        const uint32_t bytes = t_.chunk * sizeof(int32_t);
        pipe->InitBuffer(idBuf_, bytes);
        pipe->InitBuffer(bitsBuf_, bytes);
        pipe->InitBuffer(chosenBuf_, bytes);
        pipe->InitBuffer(tempBuf_, bytes);
        pipe->InitBuffer(sumBuf_, bytes);
        pipe->InitBuffer(partBuf_, CeilDiv(t_.chunk, LANES) * sizeof(float));
        pipe->InitBuffer(keptBuf_, bytes);
        pipe->InitBuffer(limitBuf_, t_.experts * BLOCK);
    }

    __aicore__ inline void Process()
    {
        const uint32_t me = static_cast<uint32_t>(GetBlockIdx());
        for (uint32_t expert = me; expert < t_.experts; expert += t_.cores) {
            FindLimit(static_cast<int32_t>(expert));
        }
        SyncAll<true>();
        LocalTensor<int32_t> limits = limitBuf_.Get<int32_t>();
        DataCopy(limits, limitsGm_, t_.experts * ENTRY);  // ordered before its use by the fence of Decide
        const uint32_t begin = me * t_.pairsPerCore, end = Smaller(begin + t_.pairsPerCore, t_.pairs);
        for (uint32_t p = begin; p < end; p += t_.chunk) {
            Decide(p, Smaller(t_.chunk, end - p), limits);
        }
    }

private:
    static constexpr uint32_t ENTRY = 8;               // int32 of one expert's block: weight bits, last position
    static constexpr int32_t INFINITY_BITS = 0x7f800000;

    __aicore__ inline void Load(uint32_t p, uint32_t n)
    {
        CopyIn(idBuf_.Get<int32_t>(), idsGm_[p], n);
        CopyIn(bitsBuf_.Get<int32_t>(), bitsGm_[p], n);
    }

    // Keep the pairs of the expert that weigh more than `bits`, or as much and stand at `last` or before.
    __aicore__ inline void FindLimit(int32_t expert)
    {
        int32_t bits = -1, last = 0;
        if (Count(expert, 0, INFINITY_BITS, t_.pairs) > t_.capacity) {
            int32_t above = INFINITY_BITS;  // fewer than capacity pairs weigh this much or more
            bits = 0;
            while (above - bits > 1) {
                const int32_t middle = bits + (above - bits) / 2;
                const bool enough = Count(expert, middle, INFINITY_BITS, t_.pairs) >= t_.capacity;
                bits = enough ? middle : bits;
                above = enough ? above : middle;
            }
            const uint32_t ties = t_.capacity - Count(expert, bits + 1, INFINITY_BITS, t_.pairs);
            int32_t before = -1;  // positions 0..before hold fewer than `ties` pairs of this weight
            last = static_cast<int32_t>(t_.pairs) - 1;
            while (last - before > 1) {
                const int32_t middle = before + (last - before) / 2;
                const bool enough = Count(expert, bits, bits, static_cast<uint32_t>(middle) + 1) >= ties;
                last = enough ? middle : last;
                before = enough ? before : middle;
            }
        }
        LocalTensor<int32_t> entry = keptBuf_.Get<int32_t>();
        for (uint32_t i = 0; i < ENTRY; ++i) {
            entry.SetValue(i, i == 0 ? bits : last);
        }
        Fence<HardEvent::S_MTE3>();
        DataCopy(limitsGm_[static_cast<uint64_t>(expert) * ENTRY], entry, ENTRY);
        Fence<HardEvent::MTE3_S>();
    }

    // Number of pairs before position `end` that chose the expert with weight bits in [low, high].
    __aicore__ inline uint32_t Count(int32_t expert, int32_t low, int32_t high, uint32_t end)
    {
        uint32_t total = 0;
        for (uint32_t p = 0; p < end; p += t_.chunk) {
            const uint32_t n = Smaller(t_.chunk, end - p);
            Load(p, n);
            Fence<HardEvent::MTE2_V>();
            total += CountLoaded(expert, low, high, n);
        }
        return total;
    }

    __aicore__ inline uint32_t CountLoaded(int32_t expert, int32_t low, int32_t high, uint32_t n)
    {
        const int32_t count = static_cast<int32_t>(n);
        LocalTensor<int32_t> ids = idBuf_.Get<int32_t>(), bits = bitsBuf_.Get<int32_t>();
        LocalTensor<int32_t> chosen = chosenBuf_.Get<int32_t>(), temp = tempBuf_.Get<int32_t>();
        AtLeast(chosen, ids, expert, count);
        AtMost(temp, ids, expert, count);
        Mul(chosen, chosen, temp, count);
        PipeBarrier<PIPE_V>();
        AtLeast(temp, bits, low, count);
        Mul(chosen, chosen, temp, count);
        PipeBarrier<PIPE_V>();
        AtMost(temp, bits, high, count);
        Mul(chosen, chosen, temp, count);
        PipeBarrier<PIPE_V>();
        LocalTensor<float> ones = sumBuf_.Get<float>();
        Cast(ones, chosen, RoundMode::CAST_NONE, n);
        PipeBarrier<PIPE_V>();
        Fence<HardEvent::V_MTE2>();  // the next chunk overwrites ids and bits
        const LocalTensor<float> sum = SumOf(ones, partBuf_.Get<float>(), n);
        Fence<HardEvent::V_S>();
        const uint32_t result = static_cast<uint32_t>(sum.GetValue(0));
        Fence<HardEvent::S_V>();
        return result;
    }

    // dst = 1 where src >= bound, else 0. Both lie in [-1, 2^31 - 2^23], so nothing overflows.
    __aicore__ inline void AtLeast(const LocalTensor<int32_t> &dst, const LocalTensor<int32_t> &src, int32_t bound,
                                   int32_t n)
    {
        Adds(dst, src, 1 - bound, n);
        PipeBarrier<PIPE_V>();
        Clamp(dst, n);
    }

    __aicore__ inline void AtMost(const LocalTensor<int32_t> &dst, const LocalTensor<int32_t> &src, int32_t bound,
                                  int32_t n)
    {
        Muls(dst, src, static_cast<int32_t>(-1), n);
        PipeBarrier<PIPE_V>();
        Adds(dst, dst, bound + 1, n);
        PipeBarrier<PIPE_V>();
        Clamp(dst, n);
    }

    __aicore__ inline void Clamp(const LocalTensor<int32_t> &x, int32_t n)
    {
        Maxs(x, x, static_cast<int32_t>(0), n);
        PipeBarrier<PIPE_V>();
        Mins(x, x, static_cast<int32_t>(1), n);
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Decide(uint32_t p, uint32_t n, const LocalTensor<int32_t> &limits)
    {
        LocalTensor<int32_t> ids = idBuf_.Get<int32_t>(), bits = bitsBuf_.Get<int32_t>();
        LocalTensor<int32_t> kept = keptBuf_.Get<int32_t>();
        Load(p, n);
        Fence<HardEvent::MTE2_S>();
        for (uint32_t i = 0; i < n; ++i) {
            const uint32_t expert = static_cast<uint32_t>(ids.GetValue(i));
            bool keep = false;
            if (expert < t_.experts) {
                const int32_t limit = limits.GetValue(expert * ENTRY);
                const int32_t last = limits.GetValue(expert * ENTRY + 1);
                const int32_t weight = bits.GetValue(i);
                keep = weight > limit || (weight == limit && static_cast<int32_t>(p + i) <= last);
            }
            kept.SetValue(i, static_cast<int32_t>(keep ? expert : t_.experts));
        }
        Fence<HardEvent::S_MTE3>();
        CopyOut(keptGm_[p], kept, n);
        Fence<HardEvent::MTE3_S>();  // the next chunk overwrites kept
        Fence<HardEvent::S_MTE2>();  // and ids and bits
    }

    MoeCapacityTilingData t_;
    TBuf<TPosition::VECCALC> idBuf_, bitsBuf_, chosenBuf_, tempBuf_, sumBuf_, partBuf_, keptBuf_, limitBuf_;
    GlobalTensor<int32_t> idsGm_, bitsGm_, keptGm_, limitsGm_;
};
}  // namespace mindmoe
#endif
