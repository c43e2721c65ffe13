// Backward of moe_gating, the choice being constant: gradLogits [rows, experts] from logits, ids and gradWeights.
// With g = scale * gradWeights at the chosen experts and w, p the weights and scores recomputed from the logits:
//   softmax over the chosen, or normalised softmax:  w * (g - sum(w g)) at the chosen, 0 elsewhere
//   softmax over all:                                p * (g - sum(p g)) everywhere, g = 0 off the chosen
//   sigmoid:  d p * (1 - p) at the chosen, d = g, or (g - sum(w g)) / sum(p) if normalised
// The chosen values are placed by the scalar unit: a row has at most 8 of them.
#ifndef MINDMOE_MOE_GATING_GRAD_H
#define MINDMOE_MOE_GATING_GRAD_H
#include "moe_gating_tiling.h"
#include "moe_logits.h"

namespace mindmoe {
template <typename T> class MoeGatingGrad {
public:
    __aicore__ inline void Init(GM_ADDR logits, GM_ADDR ids, GM_ADDR gradWeights, GM_ADDR gradLogits,
                                const MoeGatingTilingData &t, TPipe *pipe)
    {
        t_ = t;
        const uint32_t first = static_cast<uint32_t>(GetBlockIdx()) * t_.rowsPerCore;
        rows_ = first < t_.rows ? Smaller(t_.rowsPerCore, t_.rows - first) : 0;
        const uint64_t begin = first, chosen = static_cast<uint64_t>(rows_) * t_.topk;
        logitsGm_.SetGlobalBuffer((__gm__ T *)logits + begin * t_.experts, static_cast<uint64_t>(rows_) * t_.experts);
        idsGm_.SetGlobalBuffer((__gm__ int32_t *)ids + begin * t_.topk, chosen);
        gradGm_.SetGlobalBuffer((__gm__ float *)gradWeights + begin * t_.topk, chosen);
        outGm_.SetGlobalBuffer((__gm__ T *)gradLogits + begin * t_.experts,
                               static_cast<uint64_t>(rows_) * t_.experts);
        const uint32_t n = t_.tileRows, cells = n * t_.pitch;
        pipe->InitBuffer(logitsIn_, 1, cells * sizeof(T));
        pipe->InitBuffer(idsIn_, 1, n * BLOCK);
        pipe->InitBuffer(gradIn_, 1, n * BLOCK);
        pipe->InitBuffer(out_, 1, cells * sizeof(T));
        pipe->InitBuffer(scoreBuf_, cells * sizeof(float));
        pipe->InitBuffer(denseBuf_, cells * sizeof(float));
        pipe->InitBuffer(foldBuf_, n * LANES * sizeof(float));
        pipe->InitBuffer(rowStartBuf_, n * BLOCK);
        pipe->InitBuffer(positionBuf_, n * BLOCK);
        pipe->InitBuffer(offsetBuf_, n * BLOCK);
        pipe->InitBuffer(gradBuf_, n * BLOCK);
        pipe->InitBuffer(chosenBuf_, n * BLOCK);
        pipe->InitBuffer(weightBuf_, n * BLOCK);
        pipe->InitBuffer(tempBuf_, n * BLOCK);
        pipe->InitBuffer(spreadBuf_, n * BLOCK);
        pipe->InitBuffer(rowBuf_, n * sizeof(float));
    }

    __aicore__ inline void Process()
    {
        if (rows_ == 0) {
            return;
        }
        Prepare();
        for (uint32_t row = 0; row < rows_; row += t_.tileRows) {
            const uint32_t n = Smaller(t_.tileRows, rows_ - row);
            Load(row, n);
            Gradient(n);
            Place(row, n);
        }
    }

private:
    __aicore__ inline void Prepare()
    {
        LocalTensor<T> x = logitsIn_.template AllocTensor<T>();
        Duplicate(x, static_cast<T>(LOWEST), static_cast<int32_t>(t_.tileRows * t_.pitch));
        logitsIn_.FreeTensor(x);
        LocalTensor<int32_t> rowStart = rowStartBuf_.Get<int32_t>();
        for (uint32_t r = 0; r < t_.tileRows; ++r) {
            Duplicate(rowStart[r * BLOCK_F], static_cast<int32_t>(r * t_.pitch), static_cast<int32_t>(BLOCK_F));
        }
        // The tail of the last group of 8 rows takes part in reductions and must be finite.
        const int32_t blocks = static_cast<int32_t>(t_.tileRows * BLOCK_F);
        Duplicate(chosenBuf_.Get<float>(), 0.0f, blocks);
        Duplicate(tempBuf_.Get<float>(), 0.0f, blocks);
        Duplicate(rowBuf_.Get<float>(), 0.0f, static_cast<int32_t>(t_.tileRows));
        PipeBarrier<PIPE_V>();
    }

    // Rows of `columns` elements to UB rows of `pitch` elements; the rest of the last block is filled.
    template <typename U>
    __aicore__ inline void LoadRows(const LocalTensor<U> &dst, const GlobalTensor<U> &src, uint32_t n,
                                    uint32_t columns, uint32_t pitch, float fill)
    {
        const uint32_t bytes = columns * static_cast<uint32_t>(sizeof(U)), whole = RoundUp(bytes, BLOCK);
        const uint32_t gap = (pitch * static_cast<uint32_t>(sizeof(U)) - whole) / BLOCK;
        const uint8_t padding = static_cast<uint8_t>((whole - bytes) / sizeof(U));
        DataCopyPad(dst, src, DataCopyExtParams(static_cast<uint16_t>(n), bytes, 0, gap, 0),
                    DataCopyPadExtParams<U>(true, 0, padding, static_cast<U>(fill)));
    }

    // score = float logits, position and offset of the chosen, chosen = their logits, grad = scale * gradWeights.
    __aicore__ inline void Load(uint32_t row, uint32_t n)
    {
        const int32_t blocks = static_cast<int32_t>(n * BLOCK_F);
        LocalTensor<T> x = logitsIn_.template AllocTensor<T>();
        LocalTensor<int32_t> ids = idsIn_.template AllocTensor<int32_t>();
        LocalTensor<float> g = gradIn_.template AllocTensor<float>();
        LoadRows(x, logitsGm_[static_cast<uint64_t>(row) * t_.experts], n, t_.experts, t_.pitch, LOWEST);
        LoadRows(ids, idsGm_[static_cast<uint64_t>(row) * t_.topk], n, t_.topk, BLOCK_F, 0.0f);
        LoadRows(g, gradGm_[static_cast<uint64_t>(row) * t_.topk], n, t_.topk, BLOCK_F, 0.0f);
        logitsIn_.EnQue(x);
        idsIn_.EnQue(ids);
        gradIn_.EnQue(g);
        x = logitsIn_.template DeQue<T>();
        ids = idsIn_.template DeQue<int32_t>();
        g = gradIn_.template DeQue<float>();
        LocalTensor<float> score = scoreBuf_.Get<float>();
        LocalTensor<int32_t> position = positionBuf_.Get<int32_t>(), offset = offsetBuf_.Get<int32_t>();
        ToFloat(score, x, n * t_.pitch);
        Add(position, ids, rowStartBuf_.Get<int32_t>(), blocks);
        Muls(gradBuf_.Get<float>(), g, t_.scale, blocks);
        PipeBarrier<PIPE_V>();
        logitsIn_.FreeTensor(x);
        idsIn_.FreeTensor(ids);
        gradIn_.FreeTensor(g);
        Muls(offset, position, static_cast<int32_t>(sizeof(float)), blocks);
        MakeFinite(score, n * t_.pitch);  // orders the offsets as well
        GatherChosen(blocks);
    }

    __aicore__ inline void GatherChosen(int32_t blocks)
    {
        Gather(chosenBuf_.Get<float>(), scoreBuf_.Get<float>(),
               offsetBuf_.Get<int32_t>().template ReinterpretCast<uint32_t>(), 0, static_cast<uint32_t>(blocks));
        PipeBarrier<PIPE_V>();
    }

    // dense = gradient off the chosen, temp = gradient at the chosen; the fence of Place orders both.
    __aicore__ inline void Gradient(uint32_t n)
    {
        const int32_t cells = static_cast<int32_t>(n * t_.pitch);
        LocalTensor<float> dense = denseBuf_.Get<float>(), score = scoreBuf_.Get<float>();
        LocalTensor<float> w = weightBuf_.Get<float>(), spread = spreadBuf_.Get<float>();
        if (t_.score == MOE_SCORE_SOFTMAX && t_.normalize == 0) {
            const int32_t blocks = static_cast<int32_t>(n * BLOCK_F);
            SoftmaxRows(score, rowBuf_.Get<float>(), spread, foldBuf_.Get<float>(), n, t_.pitch);
            GatherChosen(blocks);
            Adds(w, chosenBuf_.Get<float>(), 0.0f, blocks);
            PipeBarrier<PIPE_V>();
            Centre(n, w);
            Muls(dense, score, -1.0f, cells);
            PipeBarrier<PIPE_V>();
            ByRow<RowOp::MUL>(dense, spread, n, t_.pitch);
            return;
        }
        Duplicate(dense, 0.0f, cells);
        if (t_.score == MOE_SCORE_SIGMOID) {
            SigmoidChosen(n);
        } else {
            SoftmaxChosen(n);
            Centre(n, w);
        }
    }

    // temp = w * (grad - sum(w * grad)), to be ordered by whoever reads it; the sum stays in spread.
    __aicore__ inline void Centre(uint32_t n, const LocalTensor<float> &w)
    {
        const int32_t blocks = static_cast<int32_t>(n * BLOCK_F);
        LocalTensor<float> temp = tempBuf_.Get<float>(), grad = gradBuf_.Get<float>();
        Mul(temp, w, grad, blocks);
        PipeBarrier<PIPE_V>();
        SpreadSum(temp, n);
        Sub(temp, grad, spreadBuf_.Get<float>(), blocks);
        PipeBarrier<PIPE_V>();
        Mul(temp, temp, w, blocks);
    }

    // spread = sum of the topk first lanes of each block.
    __aicore__ inline void SpreadSum(const LocalTensor<float> &blocks, uint32_t n)
    {
        LocalTensor<float> row = rowBuf_.Get<float>();
        const uint64_t mask[2] = {FirstOfBlocks(t_.topk), 0};
        BlockReduceSum(row, blocks, static_cast<int32_t>(CeilDiv(n, BLOCK_F)), mask, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        SpreadRows(spreadBuf_.Get<float>(), row, n);
        PipeBarrier<PIPE_V>();
    }

    // weight = softmax over the chosen logits.
    __aicore__ inline void SoftmaxChosen(uint32_t n)
    {
        const int32_t blocks = static_cast<int32_t>(n * BLOCK_F);
        LocalTensor<float> row = rowBuf_.Get<float>(), spread = spreadBuf_.Get<float>();
        LocalTensor<float> chosen = chosenBuf_.Get<float>(), w = weightBuf_.Get<float>();
        const uint64_t mask[2] = {FirstOfBlocks(t_.topk), 0};
        BlockReduceMax(row, chosen, static_cast<int32_t>(CeilDiv(n, BLOCK_F)), mask, 1, 1, 8);
        PipeBarrier<PIPE_V>();
        SpreadRows(spread, row, n);
        PipeBarrier<PIPE_V>();
        Sub(chosen, chosen, spread, blocks);
        PipeBarrier<PIPE_V>();
        Exp(chosen, chosen, blocks);
        PipeBarrier<PIPE_V>();
        SpreadSum(chosen, n);
        Div(w, chosen, spread, blocks);
        PipeBarrier<PIPE_V>();
    }

    // temp = d * p * (1 - p) with p = sigmoid of the chosen logits.
    __aicore__ inline void SigmoidChosen(uint32_t n)
    {
        const int32_t blocks = static_cast<int32_t>(n * BLOCK_F);
        LocalTensor<float> p = chosenBuf_.Get<float>(), w = weightBuf_.Get<float>(), temp = tempBuf_.Get<float>();
        LocalTensor<float> grad = gradBuf_.Get<float>(), spread = spreadBuf_.Get<float>();
        Muls(p, p, -1.0f, blocks);
        Duplicate(w, 1.0f, blocks);
        PipeBarrier<PIPE_V>();
        Exp(p, p, blocks);
        PipeBarrier<PIPE_V>();
        Adds(p, p, 1.0f, blocks);
        PipeBarrier<PIPE_V>();
        Div(p, w, p, blocks);
        PipeBarrier<PIPE_V>();
        if (t_.normalize != 0) {
            SpreadSum(p, n);
            Adds(spread, spread, 1.0e-20f, blocks);  // as moe_gating does
            Mul(temp, p, grad, blocks);
            PipeBarrier<PIPE_V>();
            Div(grad, grad, spread, blocks);
            Div(temp, temp, spread, blocks);
            PipeBarrier<PIPE_V>();
            Div(temp, temp, spread, blocks);
            PipeBarrier<PIPE_V>();
            SpreadSum(temp, n);  // sum(w g) / sum(p)
            Sub(grad, grad, spread, blocks);
        }
        Muls(w, p, -1.0f, blocks);
        PipeBarrier<PIPE_V>();
        Adds(w, w, 1.0f, blocks);
        Mul(temp, grad, p, blocks);
        PipeBarrier<PIPE_V>();
        Mul(temp, temp, w, blocks);
    }

    __aicore__ inline void Place(uint32_t row, uint32_t n)
    {
        LocalTensor<float> dense = denseBuf_.Get<float>(), value = tempBuf_.Get<float>();
        LocalTensor<int32_t> position = positionBuf_.Get<int32_t>();
        Fence<HardEvent::V_S>();
        for (uint32_t r = 0; r < n; ++r) {
            for (uint32_t j = r * BLOCK_F; j < r * BLOCK_F + t_.topk; ++j) {
                dense.SetValue(static_cast<uint32_t>(position.GetValue(j)), value.GetValue(j));
            }
        }
        Fence<HardEvent::S_V>();
        LocalTensor<T> out = out_.template AllocTensor<T>();
        FromFloat(out, dense, n * t_.pitch);
        out_.EnQue(out);
        out = out_.template DeQue<T>();
        const uint32_t bytes = t_.experts * static_cast<uint32_t>(sizeof(T));
        const uint32_t gap = (t_.pitch * static_cast<uint32_t>(sizeof(T)) - RoundUp(bytes, BLOCK)) / BLOCK;
        DataCopyPad(outGm_[static_cast<uint64_t>(row) * t_.experts], out,
                    DataCopyExtParams(static_cast<uint16_t>(n), bytes, gap, 0, 0));
        out_.FreeTensor(out);
    }

    MoeGatingTilingData t_;
    uint32_t rows_ = 0;
    TQue<QuePosition::VECIN, 1> logitsIn_, idsIn_, gradIn_;
    TQue<QuePosition::VECOUT, 1> out_;
    TBuf<TPosition::VECCALC> scoreBuf_, denseBuf_, foldBuf_, rowStartBuf_, positionBuf_, offsetBuf_, gradBuf_,
        chosenBuf_, weightBuf_, tempBuf_, spreadBuf_, rowBuf_;
    GlobalTensor<T> logitsGm_, outGm_;
    GlobalTensor<int32_t> idsGm_;
    GlobalTensor<float> gradGm_;
};
}  // namespace mindmoe
#endif
