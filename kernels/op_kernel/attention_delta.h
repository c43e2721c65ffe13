// First part of the attention backward, on rows:
//   delta [batch, heads, seq] = sum over headDim of grad * out
//   gradSinks [heads] = - sum over batch and seq of exp(sink - lse) * delta
// It serves attention and, with the outputs of attention_sink, MindSpore's stock FlashAttentionScore as well.
// Partial sums of a block go to the workspace and are added in a fixed order, so the result is deterministic.
#ifndef MINDMOE_ATTENTION_DELTA_H
#define MINDMOE_ATTENTION_DELTA_H
#include "attention_rows_tiling.h"
#include "rows.h"

namespace mindmoe {
template <typename T> class AttentionDelta {
public:
    __aicore__ inline void Init(GM_ADDR grad, GM_ADDR out, GM_ADDR lse, GM_ADDR sinks, GM_ADDR delta,
                                GM_ADDR gradSinks, GM_ADDR workspace, const AttentionRowsTilingData &t, TPipe *pipe)
    {
        t_ = t;
        tasks_ = t_.batch * t_.heads * t_.blocks;
        const uint64_t rows = static_cast<uint64_t>(t_.batch) * t_.heads * t_.seq;
        const uint64_t sinkRows = t_.hasSinks != 0 ? rows : 0, numSinks = t_.hasSinks != 0 ? t_.heads : 0;
        gradGm_.SetGlobalBuffer((__gm__ T *)grad, rows * t_.headDim);
        outGm_.SetGlobalBuffer((__gm__ T *)out, rows * t_.headDim);
        lseGm_.SetGlobalBuffer((__gm__ float *)lse, sinkRows);
        sinkGm_.SetGlobalBuffer((__gm__ float *)sinks, numSinks);
        deltaGm_.SetGlobalBuffer((__gm__ float *)delta, rows);
        gradSinkGm_.SetGlobalBuffer((__gm__ float *)gradSinks, numSinks);
        partialGm_.SetGlobalBuffer((__gm__ float *)workspace, static_cast<uint64_t>(tasks_) * BLOCK_F);
        const uint32_t cells = t_.blockRows * t_.headDim;
        pipe->InitBuffer(gradIn_, 1, cells * sizeof(T));
        pipe->InitBuffer(outIn_, 1, cells * sizeof(T));
        pipe->InitBuffer(lseIn_, 1, t_.blockRows * sizeof(float));
        pipe->InitBuffer(deltaOut_, 1, t_.blockRows * sizeof(float));
        pipe->InitBuffer(partialOut_, 1, BLOCK);
        pipe->InitBuffer(partialIn_, 1, PARTIALS * BLOCK);
        pipe->InitBuffer(gradBuf_, cells * sizeof(float));
        pipe->InitBuffer(outBuf_, cells * sizeof(float));
        pipe->InitBuffer(foldBuf_, t_.blockRows * LANES * sizeof(float));
        pipe->InitBuffer(totalBuf_, BLOCK);
    }

    __aicore__ inline void Process()
    {
        const uint32_t me = static_cast<uint32_t>(GetBlockIdx());
        for (uint32_t i = me; i < tasks_; i += t_.cores) {
            Block(i);
        }
        if (t_.hasSinks == 0) {
            return;
        }
        SyncAll<true>();
        for (uint32_t head = me; head < t_.heads; head += t_.cores) {
            Sink(head);
        }
    }

private:
    static constexpr uint32_t PARTIALS = 256;  // blocks of partial sums added at once

    __aicore__ inline void Block(uint32_t task)
    {
        const uint32_t batchHead = task / t_.blocks, begin = task % t_.blocks * t_.blockRows;
        const uint32_t rows = Smaller(t_.blockRows, t_.seq - begin), cells = rows * t_.headDim;
        const uint64_t row0 = static_cast<uint64_t>(batchHead) * t_.seq + begin;
        LocalTensor<float> grad = gradBuf_.Get<float>(), out = outBuf_.Get<float>(), fold = foldBuf_.Get<float>();
        LocalTensor<T> gradT = gradIn_.template AllocTensor<T>();
        LocalTensor<T> outT = outIn_.template AllocTensor<T>();
        CopyIn(gradT, gradGm_[row0 * t_.headDim], cells);
        CopyIn(outT, outGm_[row0 * t_.headDim], cells);
        gradIn_.EnQue(gradT);
        outIn_.EnQue(outT);
        gradT = gradIn_.template DeQue<T>();
        outT = outIn_.template DeQue<T>();
        ToFloat(grad, gradT, cells);
        ToFloat(out, outT, cells);
        PipeBarrier<PIPE_V>();
        gradIn_.FreeTensor(gradT);
        outIn_.FreeTensor(outT);
        Mul(grad, grad, out, static_cast<int32_t>(cells));
        FoldRows<false>(fold, grad, rows, t_.headDim);
        LocalTensor<float> delta = deltaOut_.template AllocTensor<float>();
        WholeReduceSum(delta, fold, static_cast<int32_t>(LANES), static_cast<int32_t>(rows), 1, 1, 8);
        if (t_.hasSinks != 0) {
            Partial(task, row0, rows, delta, sinkGm_.GetValue(batchHead % t_.heads));
        }
        deltaOut_.EnQue(delta);
        delta = deltaOut_.template DeQue<float>();
        CopyOut(deltaGm_[row0], delta, rows);
        deltaOut_.FreeTensor(delta);
    }

    // Workspace block of the task = sum over its rows of exp(sink - lse) * delta in lane 0, zeros elsewhere.
    __aicore__ inline void Partial(uint32_t task, uint64_t row0, uint32_t rows, const LocalTensor<float> &delta,
                                   float sink)
    {
        const int32_t n = static_cast<int32_t>(rows);
        LocalTensor<float> lse = lseIn_.template AllocTensor<float>();
        CopyIn(lse, lseGm_[row0], rows);
        lseIn_.EnQue(lse);
        lse = lseIn_.template DeQue<float>();
        LocalTensor<float> partial = partialOut_.template AllocTensor<float>();
        Duplicate(partial, 0.0f, static_cast<int32_t>(BLOCK_F));
        Muls(lse, lse, -1.0f, n);
        PipeBarrier<PIPE_V>();
        Adds(lse, lse, sink, n);
        PipeBarrier<PIPE_V>();
        Exp(lse, lse, n);
        PipeBarrier<PIPE_V>();
        Mul(lse, lse, delta, n);
        PipeBarrier<PIPE_V>();
        WholeReduceSum(partial, lse, n, 1, 1, 1, 8);
        lseIn_.FreeTensor(lse);
        partialOut_.EnQue(partial);
        partial = partialOut_.template DeQue<float>();
        DataCopy(partialGm_[static_cast<uint64_t>(task) * BLOCK_F], partial, BLOCK_F);
        partialOut_.FreeTensor(partial);
    }

    __aicore__ inline void Sink(uint32_t head)
    {
        float total = 0.0f;
        for (uint32_t batch = 0; batch < t_.batch; ++batch) {
            const uint64_t first = static_cast<uint64_t>(batch * t_.heads + head) * t_.blocks;
            for (uint32_t b = 0; b < t_.blocks; b += PARTIALS) {
                const uint32_t n = Smaller(PARTIALS, t_.blocks - b) * BLOCK_F;
                LocalTensor<float> partial = partialIn_.template AllocTensor<float>();
                DataCopy(partial, partialGm_[(first + b) * BLOCK_F], n);
                partialIn_.EnQue(partial);
                partial = partialIn_.template DeQue<float>();
                const LocalTensor<float> sum = SumOf(partial, foldBuf_.Get<float>(), n);
                Fence<HardEvent::V_S>();
                total -= sum.GetValue(0);
                Fence<HardEvent::S_V>();
                partialIn_.FreeTensor(partial);
            }
        }
        LocalTensor<float> result = totalBuf_.Get<float>();
        result.SetValue(0, total);
        Fence<HardEvent::S_MTE3>();
        CopyOut(gradSinkGm_[head], result, 1);
        Fence<HardEvent::MTE3_S>();
    }

    AttentionRowsTilingData t_;
    uint32_t tasks_ = 0;
    TQue<QuePosition::VECIN, 1> gradIn_, outIn_, lseIn_, partialIn_;
    TQue<QuePosition::VECOUT, 1> deltaOut_, partialOut_;
    TBuf<TPosition::VECCALC> gradBuf_, outBuf_, foldBuf_, totalBuf_;
    GlobalTensor<T> gradGm_, outGm_;
    GlobalTensor<float> lseGm_, sinkGm_, deltaGm_, gradSinkGm_, partialGm_;
};
}  // namespace mindmoe
#endif
