// out[t] = sum over the choices j of token t of weights[t, j] * y[slot[t, j]], accumulated in fp32 in the order of j.
// A negative slot adds nothing. Without weights this is the backward of moe_permute.
#ifndef MINDMOE_MOE_COMBINE_H
#define MINDMOE_MOE_COMBINE_H
#include "common.h"
#include "moe_combine_tiling.h"

namespace mindmoe {
template <typename T> class MoeCombine {
public:
    __aicore__ inline void Init(GM_ADDR y, GM_ADDR slot, GM_ADDR weights, GM_ADDR out, const MoeCombineTilingData &t,
                                TPipe *pipe)
    {
        t_ = t;
        first_ = static_cast<uint32_t>(GetBlockIdx()) * t_.tokensPerCore;
        mine_ = first_ < t_.tokens ? Smaller(t_.tokensPerCore, t_.tokens - first_) : 0;
        const uint64_t pairs = static_cast<uint64_t>(t_.tokens) * t_.topk;
        yGm_.SetGlobalBuffer((__gm__ T *)y, static_cast<uint64_t>(t_.rows) * t_.hidden);
        slotGm_.SetGlobalBuffer((__gm__ int32_t *)slot, pairs);
        weightsGm_.SetGlobalBuffer((__gm__ float *)weights, t_.hasWeights != 0 ? pairs : 0);
        outGm_.SetGlobalBuffer((__gm__ T *)out, static_cast<uint64_t>(t_.tokens) * t_.hidden);
        pipe->InitBuffer(slotBuf_, t_.chunk * t_.topk * sizeof(int32_t));
        pipe->InitBuffer(weightBuf_, t_.chunk * t_.topk * sizeof(float));
        pipe->InitBuffer(rowIn_, 2, RoundUp(t_.hidden * sizeof(T), BLOCK));
        pipe->InitBuffer(rowOut_, 2, RoundUp(t_.hidden * sizeof(T), BLOCK));
        pipe->InitBuffer(rowBuf_, t_.hidden * sizeof(float));
        pipe->InitBuffer(sumBuf_, t_.hidden * sizeof(float));
    }

    __aicore__ inline void Process()
    {
        for (uint32_t c = 0; c < mine_; c += t_.chunk) {
            const uint32_t n = Smaller(t_.chunk, mine_ - c);
            const uint64_t pair = static_cast<uint64_t>(first_ + c) * t_.topk;
            CopyIn(slotBuf_.Get<int32_t>(), slotGm_[pair], n * t_.topk);
            if (t_.hasWeights != 0) {
                CopyIn(weightBuf_.Get<float>(), weightsGm_[pair], n * t_.topk);
            }
            Fence<HardEvent::MTE2_S>();
            for (uint32_t i = 0; i < n; ++i) {
                Token(first_ + c + i, i * t_.topk);
            }
            Fence<HardEvent::S_MTE2>();  // the next chunk overwrites slots and weights
        }
    }

private:
    __aicore__ inline void Token(uint32_t token, uint32_t pair)
    {
        const int32_t n = static_cast<int32_t>(t_.hidden);
        LocalTensor<float> row = rowBuf_.Get<float>();
        LocalTensor<float> sum = sumBuf_.Get<float>();
        Duplicate(sum, 0.0f, n);
        for (uint32_t j = 0; j < t_.topk; ++j) {
            const int32_t slot = slotBuf_.Get<int32_t>().GetValue(pair + j);
            if (slot >= 0) {
                const float weight = t_.hasWeights != 0 ? weightBuf_.Get<float>().GetValue(pair + j) : 1.0f;
                LocalTensor<T> line = rowIn_.template AllocTensor<T>();
                CopyIn(line, yGm_[static_cast<uint64_t>(slot) * t_.hidden], t_.hidden);
                rowIn_.EnQue(line);
                line = rowIn_.template DeQue<T>();
                PipeBarrier<PIPE_V>();
                ToFloat(row, line, t_.hidden);
                PipeBarrier<PIPE_V>();
                rowIn_.FreeTensor(line);
                Axpy(sum, row, weight, n);
            }
        }
        PipeBarrier<PIPE_V>();
        LocalTensor<T> out = rowOut_.template AllocTensor<T>();
        FromFloat(out, sum, t_.hidden);
        PipeBarrier<PIPE_V>();
        rowOut_.EnQue(out);
        out = rowOut_.template DeQue<T>();
        CopyOut(outGm_[static_cast<uint64_t>(token) * t_.hidden], out, t_.hidden);
        rowOut_.FreeTensor(out);
    }

    MoeCombineTilingData t_;
    uint32_t first_ = 0, mine_ = 0;
    TQue<QuePosition::VECIN, 1> rowIn_;
    TQue<QuePosition::VECOUT, 1> rowOut_;
    TBuf<TPosition::VECCALC> slotBuf_, weightBuf_, rowBuf_, sumBuf_;
    GlobalTensor<T> yGm_, outGm_;
    GlobalTensor<int32_t> slotGm_;
    GlobalTensor<float> weightsGm_;
};
}  // namespace mindmoe
#endif
