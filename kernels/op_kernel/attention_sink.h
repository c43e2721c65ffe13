// Turns the outputs of MindSpore's stock FlashAttentionScore (BNSD, no sinks) into those of attention with sinks:
//   max' = max(max, sink), sum' = sum * exp(max - max') + exp(sink - max'), out' = out * sum * exp(max - max') / sum'
// and lse = max' + log(sum'). Fed with out', max' and sum', the stock gradient op is exact for q, k and v, and
// attention_delta gives the gradient of the sinks. max and sum are [batch, heads, seq, 8], a block of equal lanes.
#ifndef MINDMOE_ATTENTION_SINK_H
#define MINDMOE_ATTENTION_SINK_H
#include "attention_rows_tiling.h"
#include "rows.h"

namespace mindmoe {
template <typename T> class AttentionSink {
public:
    __aicore__ inline void Init(GM_ADDR out, GM_ADDR max, GM_ADDR sum, GM_ADDR sinks, GM_ADDR newOut, GM_ADDR newMax,
                                GM_ADDR newSum, GM_ADDR lse, const AttentionRowsTilingData &t, TPipe *pipe)
    {
        t_ = t;
        const uint64_t rows = static_cast<uint64_t>(t_.batch) * t_.heads * t_.seq;
        outGm_.SetGlobalBuffer((__gm__ T *)out, rows * t_.headDim);
        maxGm_.SetGlobalBuffer((__gm__ float *)max, rows * BLOCK_F);
        sumGm_.SetGlobalBuffer((__gm__ float *)sum, rows * BLOCK_F);
        sinkGm_.SetGlobalBuffer((__gm__ float *)sinks, t_.heads);
        newOutGm_.SetGlobalBuffer((__gm__ T *)newOut, rows * t_.headDim);
        newMaxGm_.SetGlobalBuffer((__gm__ float *)newMax, rows * BLOCK_F);
        newSumGm_.SetGlobalBuffer((__gm__ float *)newSum, rows * BLOCK_F);
        lseGm_.SetGlobalBuffer((__gm__ float *)lse, rows);
        const uint32_t cells = t_.blockRows * t_.headDim;
        pipe->InitBuffer(outIn_, 1, cells * sizeof(T));
        pipe->InitBuffer(stateIn_, 2, t_.blockRows * BLOCK);
        pipe->InitBuffer(newOut_, 1, cells * sizeof(T));
        pipe->InitBuffer(stateOut_, 2, t_.blockRows * BLOCK);
        pipe->InitBuffer(lseOut_, 1, t_.blockRows * sizeof(float));
        pipe->InitBuffer(outBuf_, cells * sizeof(float));
        pipe->InitBuffer(tempBuf_, t_.blockRows * BLOCK);
    }

    __aicore__ inline void Process()
    {
        const uint32_t tasks = t_.batch * t_.heads * t_.blocks;
        for (uint32_t i = static_cast<uint32_t>(GetBlockIdx()); i < tasks; i += t_.cores) {
            const uint32_t batchHead = i / t_.blocks, begin = i % t_.blocks * t_.blockRows;
            const uint32_t rows = Smaller(t_.blockRows, t_.seq - begin);
            const uint64_t row0 = static_cast<uint64_t>(batchHead) * t_.seq + begin;
            Load(row0, rows);
            Compute(rows, sinkGm_.GetValue(batchHead % t_.heads));
            Store(row0, rows);
        }
    }

private:
    __aicore__ inline void Load(uint64_t row0, uint32_t rows)
    {
        LocalTensor<T> out = outIn_.template AllocTensor<T>();
        CopyIn(out, outGm_[row0 * t_.headDim], rows * t_.headDim);
        outIn_.EnQue(out);
        LocalTensor<float> max = stateIn_.template AllocTensor<float>();
        LocalTensor<float> sum = stateIn_.template AllocTensor<float>();
        DataCopy(max, maxGm_[row0 * BLOCK_F], rows * BLOCK_F);
        DataCopy(sum, sumGm_[row0 * BLOCK_F], rows * BLOCK_F);
        stateIn_.EnQue(max);
        stateIn_.EnQue(sum);
    }

    __aicore__ inline void Compute(uint32_t rows, float sink)
    {
        const int32_t n = static_cast<int32_t>(rows * BLOCK_F);
        LocalTensor<float> temp = tempBuf_.Get<float>(), wide = outBuf_.Get<float>();
        LocalTensor<float> max = stateIn_.template DeQue<float>();
        LocalTensor<float> sum = stateIn_.template DeQue<float>();
        LocalTensor<T> out = outIn_.template DeQue<T>();
        LocalTensor<float> newMax = stateOut_.template AllocTensor<float>();
        LocalTensor<float> newSum = stateOut_.template AllocTensor<float>();
        ToFloat(wide, out, rows * t_.headDim);
        Maxs(newMax, max, sink, n);
        PipeBarrier<PIPE_V>();
        outIn_.FreeTensor(out);
        Sub(max, max, newMax, n);
        Muls(temp, newMax, -1.0f, n);
        PipeBarrier<PIPE_V>();
        Exp(max, max, n);
        Adds(temp, temp, sink, n);
        PipeBarrier<PIPE_V>();
        Mul(sum, sum, max, n);
        Exp(temp, temp, n);
        PipeBarrier<PIPE_V>();
        Add(newSum, sum, temp, n);
        PipeBarrier<PIPE_V>();
        Div(sum, sum, newSum, n);
        Ln(temp, newSum, n);
        PipeBarrier<PIPE_V>();
        ByRow<RowOp::MUL>(wide, sum, rows, t_.headDim);
        Add(temp, temp, newMax, n);
        PipeBarrier<PIPE_V>();
        stateIn_.FreeTensor(max);
        stateIn_.FreeTensor(sum);
        LocalTensor<float> lse = lseOut_.template AllocTensor<float>();
        FirstLanes(lse, temp, rows);
        LocalTensor<T> result = newOut_.template AllocTensor<T>();
        FromFloat(result, wide, rows * t_.headDim);
        newOut_.EnQue(result);
        stateOut_.EnQue(newMax);
        stateOut_.EnQue(newSum);
        lseOut_.EnQue(lse);
    }

    __aicore__ inline void Store(uint64_t row0, uint32_t rows)
    {
        LocalTensor<T> out = newOut_.template DeQue<T>();
        LocalTensor<float> max = stateOut_.template DeQue<float>();
        LocalTensor<float> sum = stateOut_.template DeQue<float>();
        LocalTensor<float> lse = lseOut_.template DeQue<float>();
        CopyOut(newOutGm_[row0 * t_.headDim], out, rows * t_.headDim);
        DataCopy(newMaxGm_[row0 * BLOCK_F], max, rows * BLOCK_F);
        DataCopy(newSumGm_[row0 * BLOCK_F], sum, rows * BLOCK_F);
        CopyOut(lseGm_[row0], lse, rows);
        newOut_.FreeTensor(out);
        stateOut_.FreeTensor(max);
        stateOut_.FreeTensor(sum);
        lseOut_.FreeTensor(lse);
    }

    AttentionRowsTilingData t_;
    TQue<QuePosition::VECIN, 1> outIn_;
    TQue<QuePosition::VECIN, 2> stateIn_;
    TQue<QuePosition::VECOUT, 1> newOut_, lseOut_;
    TQue<QuePosition::VECOUT, 2> stateOut_;
    TBuf<TPosition::VECCALC> outBuf_, tempBuf_;
    GlobalTensor<T> outGm_, newOutGm_;
    GlobalTensor<float> maxGm_, sumGm_, sinkGm_, newMaxGm_, newSumGm_, lseGm_;
};
}  // namespace mindmoe
#endif
