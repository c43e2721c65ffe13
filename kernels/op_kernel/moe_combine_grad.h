// Backward of moe_combine: with d = grad[t] and s = slot[t, j] >= 0,
//   gradY[s] = weights[t, j] * d,   gradWeights[t, j] = sum(d * y[s]);
// gradWeights is 0 at a dropped pair and gradY is 0 in rows that no pair owns. counts comes from moe_permute.
// Each row of gradY has one owner, so there are no atomics and the result is deterministic.
#ifndef MINDMOE_MOE_COMBINE_GRAD_H
#define MINDMOE_MOE_COMBINE_GRAD_H
#include "moe_combine_tiling.h"
#include "unowned_rows.h"

namespace mindmoe {
template <typename T> class MoeCombineGrad {
public:
    __aicore__ inline void Init(GM_ADDR grad, GM_ADDR y, GM_ADDR slot, GM_ADDR weights, GM_ADDR counts, GM_ADDR gradY,
                                GM_ADDR gradWeights, const MoeCombineTilingData &t, TPipe *pipe)
    {
        t_ = t;
        first_ = static_cast<uint32_t>(GetBlockIdx()) * t_.tokensPerCore;
        mine_ = first_ < t_.tokens ? Smaller(t_.tokensPerCore, t_.tokens - first_) : 0;
        const uint64_t pairs = static_cast<uint64_t>(t_.tokens) * t_.topk;
        gradGm_.SetGlobalBuffer((__gm__ T *)grad, static_cast<uint64_t>(t_.tokens) * t_.hidden);
        yGm_.SetGlobalBuffer((__gm__ T *)y, static_cast<uint64_t>(t_.rows) * t_.hidden);
        slotGm_.SetGlobalBuffer((__gm__ int32_t *)slot, pairs);
        weightsGm_.SetGlobalBuffer((__gm__ float *)weights, pairs);
        countsGm_.SetGlobalBuffer((__gm__ int32_t *)counts, t_.experts);
        gradYGm_.SetGlobalBuffer((__gm__ T *)gradY, static_cast<uint64_t>(t_.rows) * t_.hidden);
        gradWeightsGm_.SetGlobalBuffer((__gm__ float *)gradWeights, pairs);
        const uint32_t line = RoundUp(t_.hidden * sizeof(T), BLOCK);
        pipe->InitBuffer(slotBuf_, t_.chunk * t_.topk * sizeof(int32_t));
        pipe->InitBuffer(weightBuf_, t_.chunk * t_.topk * sizeof(float));
        pipe->InitBuffer(dotBuf_, t_.chunk * t_.topk * sizeof(float));
        pipe->InitBuffer(countBuf_, t_.expertPitch * sizeof(int32_t));
        pipe->InitBuffer(zeroBuf_, line);
        pipe->InitBuffer(gradIn_, 1, line);
        pipe->InitBuffer(rowIn_, 2, line);
        pipe->InitBuffer(rowOut_, 2, line);
        pipe->InitBuffer(gradBuf_, t_.hidden * sizeof(float));
        pipe->InitBuffer(rowBuf_, t_.hidden * sizeof(float));
        pipe->InitBuffer(partBuf_, CeilDiv(t_.hidden, LANES) * sizeof(float));
    }

    __aicore__ inline void Process()
    {
        CopyIn(countBuf_.Get<int32_t>(), countsGm_, t_.experts);
        Fence<HardEvent::MTE2_S>();
        UnownedRows<T> unowned(gradYGm_, zeroBuf_.Get<T>(), t_.hidden);
        ClearUnowned(unowned, countBuf_.Get<int32_t>(), t_.experts, t_.capacity, t_.rows, t_.cores);
        for (uint32_t c = 0; c < mine_; c += t_.chunk) {
            const uint32_t n = Smaller(t_.chunk, mine_ - c);
            const uint64_t pair = static_cast<uint64_t>(first_ + c) * t_.topk;
            CopyIn(slotBuf_.Get<int32_t>(), slotGm_[pair], n * t_.topk);
            CopyIn(weightBuf_.Get<float>(), weightsGm_[pair], n * t_.topk);
            Fence<HardEvent::MTE2_S>();
            for (uint32_t i = 0; i < n; ++i) {
                Token(first_ + c + i, i * t_.topk);
            }
            Fence<HardEvent::S_MTE3>();
            CopyOut(gradWeightsGm_[pair], dotBuf_.Get<float>(), n * t_.topk);
            Fence<HardEvent::MTE3_S>();  // the next chunk overwrites the dot products
            Fence<HardEvent::S_MTE2>();  // and slots and weights
        }
    }

private:
    __aicore__ inline void Token(uint32_t token, uint32_t pair)
    {
        LocalTensor<float> grad = gradBuf_.Get<float>();
        LocalTensor<float> dot = dotBuf_.Get<float>();
        LocalTensor<T> line = gradIn_.template AllocTensor<T>();
        CopyIn(line, gradGm_[static_cast<uint64_t>(token) * t_.hidden], t_.hidden);
        gradIn_.EnQue(line);
        line = gradIn_.template DeQue<T>();
        ToFloat(grad, line, t_.hidden);  // ordered before its use by the first barrier of Dot
        gradIn_.FreeTensor(line);
        for (uint32_t j = 0; j < t_.topk; ++j) {
            const int32_t slot = slotBuf_.Get<int32_t>().GetValue(pair + j);
            float sum = 0.0f;
            if (slot >= 0) {
                sum = Dot(grad, static_cast<uint32_t>(slot));
                Scale(grad, weightBuf_.Get<float>().GetValue(pair + j), static_cast<uint32_t>(slot));
            }
            dot.SetValue(pair + j, sum);
        }
    }

    __aicore__ inline float Dot(const LocalTensor<float> &grad, uint32_t slot)
    {
        LocalTensor<float> row = rowBuf_.Get<float>();
        LocalTensor<T> line = rowIn_.template AllocTensor<T>();
        CopyIn(line, yGm_[static_cast<uint64_t>(slot) * t_.hidden], t_.hidden);
        rowIn_.EnQue(line);
        line = rowIn_.template DeQue<T>();
        ToFloat(row, line, t_.hidden);
        PipeBarrier<PIPE_V>();
        rowIn_.FreeTensor(line);
        Mul(row, row, grad, static_cast<int32_t>(t_.hidden));
        PipeBarrier<PIPE_V>();
        const LocalTensor<float> total = SumOf(row, partBuf_.Get<float>(), t_.hidden);
        Fence<HardEvent::V_S>();
        const float sum = total.GetValue(0);
        Fence<HardEvent::S_V>();  // the next use overwrites it
        return sum;
    }

    __aicore__ inline void Scale(const LocalTensor<float> &grad, float weight, uint32_t slot)
    {
        LocalTensor<float> row = rowBuf_.Get<float>();
        Muls(row, grad, weight, static_cast<int32_t>(t_.hidden));
        PipeBarrier<PIPE_V>();
        LocalTensor<T> out = rowOut_.template AllocTensor<T>();
        FromFloat(out, row, t_.hidden);
        PipeBarrier<PIPE_V>();
        rowOut_.EnQue(out);
        out = rowOut_.template DeQue<T>();
        CopyOut(gradYGm_[static_cast<uint64_t>(slot) * t_.hidden], out, t_.hidden);
        rowOut_.FreeTensor(out);
    }

    MoeCombineTilingData t_;
    uint32_t first_ = 0, mine_ = 0;
    TQue<QuePosition::VECIN, 1> gradIn_, rowIn_;
    TQue<QuePosition::VECOUT, 1> rowOut_;
    TBuf<TPosition::VECCALC> slotBuf_, weightBuf_, dotBuf_, countBuf_, zeroBuf_, gradBuf_, rowBuf_, partBuf_;
    GlobalTensor<T> gradGm_, yGm_, gradYGm_;
    GlobalTensor<int32_t> slotGm_, countsGm_;
    GlobalTensor<float> weightsGm_, gradWeightsGm_;
};
}  // namespace mindmoe
#endif
