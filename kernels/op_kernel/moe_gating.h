// Mixture-of-experts gate: logits [rows, experts] -> weights [rows, topk] fp32 and expert ids [rows, topk] int32,
// best first, ties to the lower id. The choice is by score + bias; the weights are the scores without the bias.
//
// A row lies in UB as runs of 32 floats. Without groups the runs are consecutive experts; with groups each group has
// a run of its own. Runs are sorted, their 8 best merged, and the positions of the winners lead back to the scores.
#ifndef MINDMOE_MOE_GATING_H
#define MINDMOE_MOE_GATING_H
#include "moe_gating_tiling.h"
#include "moe_logits.h"

namespace mindmoe {
template <typename T> class MoeGating {
public:
    __aicore__ inline void Init(GM_ADDR logits, GM_ADDR bias, GM_ADDR weights, GM_ADDR ids,
                                const MoeGatingTilingData &t, TPipe *pipe)
    {
        t_ = t;
        const uint32_t first = static_cast<uint32_t>(GetBlockIdx()) * t_.rowsPerCore;
        rows_ = first < t_.rows ? Smaller(t_.rowsPerCore, t_.rows - first) : 0;
        runs_ = t_.pitch / RUN;
        step_ = static_cast<uint8_t>(t_.pitch / BLOCK_F);
        lanes_ = Smaller(t_.pitch, LANES);
        const uint64_t begin = first;
        logitsGm_.SetGlobalBuffer((__gm__ T *)logits + begin * t_.experts, static_cast<uint64_t>(rows_) * t_.experts);
        biasGm_.SetGlobalBuffer((__gm__ float *)bias, t_.hasBias != 0 ? t_.experts : 0);
        weightsGm_.SetGlobalBuffer((__gm__ float *)weights + begin * t_.topk, static_cast<uint64_t>(rows_) * t_.topk);
        idsGm_.SetGlobalBuffer((__gm__ int32_t *)ids + begin * t_.topk, static_cast<uint64_t>(rows_) * t_.topk);
        const uint32_t n = t_.tileRows, cells = n * t_.pitch;
        pipe->InitBuffer(logitsIn_, 2, cells * sizeof(T));
        pipe->InitBuffer(weightsOut_, 2, n * BLOCK);
        pipe->InitBuffer(idsOut_, 2, n * BLOCK);
        pipe->InitBuffer(positionBuf_, cells * sizeof(int32_t));
        pipe->InitBuffer(scoreBuf_, cells * sizeof(float));
        pipe->InitBuffer(keyBuf_, cells * sizeof(float));
        pipe->InitBuffer(sortedBuf_, cells * PAIR * sizeof(float));
        pipe->InitBuffer(halfBuf_, n * 2 * MERGED * sizeof(float));
        pipe->InitBuffer(mergedBuf_, n * MERGED * sizeof(float));
        pipe->InitBuffer(topBuf_, n * BLOCK);
        pipe->InitBuffer(winnerBuf_, n * BLOCK);
        pipe->InitBuffer(rowStartBuf_, n * BLOCK);
        pipe->InitBuffer(spreadBuf_, n * BLOCK);
        pipe->InitBuffer(offsetBuf_, n * BLOCK);
        pipe->InitBuffer(rowBuf_, n * sizeof(float));
        pipe->InitBuffer(biasBuf_, t_.pitch * sizeof(float));
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
            Compute(n);
            Store(row, n);
        }
    }

private:
    static constexpr uint32_t RUN = 32;      // elements that Sort32 sorts at once
    static constexpr uint32_t PAIR = 2;      // floats of one (score, position) pair
    static constexpr uint32_t BEST = 8;      // pairs kept of each run, the largest top-k
    static constexpr uint32_t MERGED = 4 * BEST * PAIR;  // floats of four merged runs

    __aicore__ inline uint32_t BlocksPerRow() const { return t_.groups > 1 ? t_.groups : 1; }

    // GM rows to UB rows of `pitch` elements; lanes between the experts keep what they hold.
    template <typename U>
    __aicore__ inline void LoadRows(const LocalTensor<U> &dst, const GlobalTensor<U> &src, uint32_t n, float fill)
    {
        const uint32_t size = t_.experts / t_.groups;
        const uint32_t bytes = size * static_cast<uint32_t>(sizeof(U));
        const uint32_t pitchBytes = t_.pitch / BlocksPerRow() * static_cast<uint32_t>(sizeof(U));
        const uint32_t padding = (RoundUp(bytes, BLOCK) - bytes) / static_cast<uint32_t>(sizeof(U));
        const DataCopyExtParams shape(static_cast<uint16_t>(n * BlocksPerRow()), bytes, 0,
                                      (pitchBytes - RoundUp(bytes, BLOCK)) / BLOCK, 0);
        DataCopyPad(dst, src, shape,
                    DataCopyPadExtParams<U>(true, 0, static_cast<uint8_t>(padding), static_cast<U>(fill)));
    }

    __aicore__ inline void Prepare()
    {
        const int32_t cells = static_cast<int32_t>(t_.tileRows * t_.pitch);
        LocalTensor<T> a = logitsIn_.template AllocTensor<T>();
        LocalTensor<T> b = logitsIn_.template AllocTensor<T>();
        Duplicate(a, static_cast<T>(LOWEST), cells);
        Duplicate(b, static_cast<T>(LOWEST), cells);
        logitsIn_.FreeTensor(a);
        logitsIn_.FreeTensor(b);
        CreateVecIndex(positionBuf_.Get<int32_t>(), static_cast<int32_t>(0), t_.tileRows * t_.pitch);
        LocalTensor<int32_t> rowStart = rowStartBuf_.Get<int32_t>();
        for (uint32_t r = 0; r < t_.tileRows; ++r) {
            Duplicate(rowStart[r * BLOCK_F], static_cast<int32_t>(r * t_.pitch), static_cast<int32_t>(BLOCK_F));
        }
        // The tail of the last group of 8 rows takes part in reductions and must be finite.
        Duplicate(topBuf_.Get<float>(), 0.0f, static_cast<int32_t>(t_.tileRows * BLOCK_F));
        Duplicate(rowBuf_.Get<float>(), 0.0f, static_cast<int32_t>(t_.tileRows));
        LoadBias();
    }

    // Bias of the choice: that of the experts, LOWEST between them so that padding never wins.
    __aicore__ inline void LoadBias()
    {
        LocalTensor<float> bias = biasBuf_.Get<float>();
        Duplicate(bias, LOWEST, static_cast<int32_t>(t_.pitch));
        if (t_.hasBias != 0) {
            Fence<HardEvent::V_MTE2>();
            LoadRows(bias, biasGm_, 1, LOWEST);  // ordered before its first use by the queue of the logits
        } else {
            PipeBarrier<PIPE_V>();
            for (uint32_t g = 0; g < t_.groups; ++g) {
                Duplicate(bias[g * RUN], 0.0f, static_cast<int32_t>(t_.experts / t_.groups));
            }
        }
    }

    __aicore__ inline void Load(uint32_t row, uint32_t n)
    {
        LocalTensor<T> x = logitsIn_.template AllocTensor<T>();
        LoadRows(x, logitsGm_[static_cast<uint64_t>(row) * t_.experts], n, LOWEST);
        logitsIn_.EnQue(x);
    }

    __aicore__ inline void Compute(uint32_t n)
    {
        LocalTensor<float> score = scoreBuf_.Get<float>();
        LocalTensor<T> x = logitsIn_.template DeQue<T>();
        ToFloat(score, x, n * t_.pitch);
        PipeBarrier<PIPE_V>();
        logitsIn_.FreeTensor(x);
        MakeFinite(score, n * t_.pitch);
        if (t_.score == MOE_SCORE_SOFTMAX) {
            SoftmaxRows(score, rowBuf_.Get<float>(), spreadBuf_.Get<float>(), sortedBuf_.Get<float>(), n, t_.pitch);
        } else if (t_.score == MOE_SCORE_SIGMOID) {
            Sigmoid(score, n);
        }
        LocalTensor<float> key = keyBuf_.Get<float>();
        LocalTensor<float> bias = biasBuf_.Get<float>();
        for (uint32_t c = 0; c < t_.pitch; c += LANES) {
            Add(key[c], score[c], bias[c], lanes_, static_cast<uint8_t>(n),
                BinaryRepeatParams(1, 1, 1, step_, step_, 0));
        }
        PipeBarrier<PIPE_V>();
        Choose(key, n);
        Weigh(score, n);
    }

    __aicore__ inline void Sigmoid(const LocalTensor<float> &x, uint32_t n)
    {
        const int32_t cells = static_cast<int32_t>(n * t_.pitch);
        LocalTensor<float> one = keyBuf_.Get<float>();
        Muls(x, x, -1.0f, cells);
        Duplicate(one, 1.0f, cells);
        PipeBarrier<PIPE_V>();
        Exp(x, x, cells);
        PipeBarrier<PIPE_V>();
        Adds(x, x, 1.0f, cells);
        PipeBarrier<PIPE_V>();
        Div(x, one, x, cells);
        PipeBarrier<PIPE_V>();
    }

    // winnerBuf[r, 0..7] = positions in the tile of the 8 best keys of row r.
    __aicore__ inline void Choose(const LocalTensor<float> &key, uint32_t n)
    {
        LocalTensor<float> sorted = sortedBuf_.Get<float>();
        LocalTensor<uint32_t> position = positionBuf_.Get<int32_t>().template ReinterpretCast<uint32_t>();
        Sort32(sorted, key, position, static_cast<int32_t>(n * runs_));
        PipeBarrier<PIPE_V>();
        if (t_.topkGroups < t_.groups) {
            DropGroups(sorted, n);
        }
        LocalTensor<float> best = sorted;
        uint32_t pitch = t_.pitch * PAIR;
        if (runs_ > 4) {
            LocalTensor<float> half = halfBuf_.Get<float>();
            LocalTensor<float> merged = mergedBuf_.Get<float>();
            Merge(half, 2 * MERGED, sorted, pitch, RUN * PAIR, 4, n);
            Merge(half[MERGED], 2 * MERGED, sorted[4 * RUN * PAIR], pitch, RUN * PAIR, 4, n);
            PipeBarrier<PIPE_V>();
            Merge(merged, MERGED, half, 2 * MERGED, MERGED, 2, n);
            PipeBarrier<PIPE_V>();
            best = merged;
            pitch = MERGED;
        } else if (runs_ > 1) {
            LocalTensor<float> merged = mergedBuf_.Get<float>();
            Merge(merged, MERGED, sorted, pitch, RUN * PAIR, runs_, n);
            PipeBarrier<PIPE_V>();
            best = merged;
            pitch = MERGED;
        }
        uint64_t kept = 0;
        GatherMask(winnerBuf_.Get<int32_t>(), best.template ReinterpretCast<int32_t>(), static_cast<uint8_t>(2), true,
                   BEST * PAIR,
                   GatherMaskParams(1, static_cast<uint16_t>(n), static_cast<uint16_t>(pitch / BLOCK_F), 0), kept);
        PipeBarrier<PIPE_V>();
    }

    // Merges the BEST first pairs of `lists` (2 or 4) lists of each row.
    __aicore__ inline void Merge(const LocalTensor<float> &dst, uint32_t dstPitch, const LocalTensor<float> &src,
                                 uint32_t srcPitch, uint32_t listPitch, uint32_t lists, uint32_t n)
    {
        const uint16_t lengths[4] = {BEST, BEST, BEST, BEST};
        const MrgSort4Info info(lengths, false, static_cast<uint16_t>(lists == 4 ? 0b1111 : 0b0011), 1);
        for (uint32_t r = 0; r < n; ++r) {
            const LocalTensor<float> a = src[r * srcPitch];
            const LocalTensor<float> b = a[listPitch];
            MrgSort(dst[r * dstPitch],
                    MrgSortSrcList<float>(a, b, lists == 4 ? a[2 * listPitch] : a, lists == 4 ? a[3 * listPitch] : b),
                    info);
        }
    }

    // A group scores the sum of its two best keys; the keys of the groups not chosen fall below all others,
    // those of masked experts (LOWEST) and of padding (twice that) included.
    __aicore__ inline void DropGroups(const LocalTensor<float> &sorted, uint32_t n)
    {
        Fence<HardEvent::V_S>();
        for (uint32_t r = 0; r < n; ++r) {
            const LocalTensor<float> row = sorted[r * t_.pitch * PAIR];
            float score[8];
            for (uint32_t g = 0; g < t_.groups; ++g) {
                score[g] = row.GetValue(g * RUN * PAIR) + row.GetValue(g * RUN * PAIR + PAIR);
            }
            uint32_t chosen = 0;
            for (uint32_t k = 0; k < t_.topkGroups; ++k) {
                uint32_t best = t_.groups;
                for (uint32_t g = 0; g < t_.groups; ++g) {
                    const bool free = (chosen >> g & 1) == 0;
                    best = free && (best == t_.groups || score[g] > score[best]) ? g : best;
                }
                chosen |= 1u << best;
            }
            Fence<HardEvent::S_V>();
            for (uint32_t g = 0; g < t_.groups; ++g) {
                if ((chosen >> g & 1) == 0) {
                    uint64_t scores[2] = {0x5555, 0};  // even lanes of the BEST first pairs
                    Duplicate(row[g * RUN * PAIR], 4.0f * LOWEST, scores, 1, 1, 8);
                }
            }
        }
        PipeBarrier<PIPE_V>();
    }

    // Gathers the winners' scores, normalises them and turns positions into expert ids.
    __aicore__ inline void Weigh(const LocalTensor<float> &score, uint32_t n)
    {
        const int32_t cells = static_cast<int32_t>(n * BLOCK_F);
        LocalTensor<float> top = topBuf_.Get<float>();
        LocalTensor<int32_t> winner = winnerBuf_.Get<int32_t>();
        LocalTensor<int32_t> offset = offsetBuf_.Get<int32_t>();
        Muls(offset, winner, static_cast<int32_t>(sizeof(float)), cells);
        PipeBarrier<PIPE_V>();
        Gather(top, score, offset.template ReinterpretCast<uint32_t>(), 0, static_cast<uint32_t>(cells));
        WriteIds(winner, offset, cells);  // orders the gather as well
        if (t_.score == MOE_SCORE_SOFTMAX_AFTER_TOPK) {
            SpreadReduced<true>(top, n);
            Sub(top, top, spreadBuf_.Get<float>(), cells);
            PipeBarrier<PIPE_V>();
            Exp(top, top, cells);
            PipeBarrier<PIPE_V>();
        }
        LocalTensor<float> w = weightsOut_.template AllocTensor<float>();
        if (t_.score == MOE_SCORE_SOFTMAX_AFTER_TOPK || t_.normalize != 0) {
            SpreadReduced<false>(top, n);
            Div(w, top, spreadBuf_.Get<float>(), cells);
        } else {
            Adds(w, top, 0.0f, cells);
        }
        PipeBarrier<PIPE_V>();
        Muls(w, w, t_.scale, cells);
        weightsOut_.EnQue(w);
    }

    // spread[r, 0..7] = maximum or sum of the topk first lanes of row r of top.
    template <bool takeMax> __aicore__ inline void SpreadReduced(const LocalTensor<float> &top, uint32_t n)
    {
        LocalTensor<float> row = rowBuf_.Get<float>();
        const uint64_t mask[2] = {FirstOfBlocks(t_.topk), 0};
        const int32_t repeat = static_cast<int32_t>(CeilDiv(n, BLOCK_F));
        if constexpr (takeMax) {
            BlockReduceMax(row, top, repeat, mask, 1, 1, 8);
        } else {
            BlockReduceSum(row, top, repeat, mask, 1, 1, 8);
            PipeBarrier<PIPE_V>();
            Adds(row, row, 1.0e-20f, static_cast<int32_t>(n));  // all sigmoids may underflow
        }
        PipeBarrier<PIPE_V>();
        SpreadRows(spreadBuf_.Get<float>(), row, n);
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void WriteIds(const LocalTensor<int32_t> &winner, const LocalTensor<int32_t> &temp, int32_t cells)
    {
        LocalTensor<int32_t> ids = idsOut_.template AllocTensor<int32_t>();
        Sub(ids, winner, rowStartBuf_.Get<int32_t>(), cells);
        PipeBarrier<PIPE_V>();
        if (t_.groups > 1) {  // position 32 g + j is expert size g + j
            ShiftRight(temp, ids, static_cast<int32_t>(5), cells);
            PipeBarrier<PIPE_V>();
            Muls(temp, temp, static_cast<int32_t>(RUN - t_.experts / t_.groups), cells);
            PipeBarrier<PIPE_V>();
            Sub(ids, ids, temp, cells);
        }
        idsOut_.EnQue(ids);
    }

    __aicore__ inline void Store(uint32_t row, uint32_t n)
    {
        const DataCopyExtParams shape(static_cast<uint16_t>(n), t_.topk * static_cast<uint32_t>(sizeof(float)), 0, 0,
                                      0);
        LocalTensor<int32_t> ids = idsOut_.template DeQue<int32_t>();
        LocalTensor<float> w = weightsOut_.template DeQue<float>();
        DataCopyPad(weightsGm_[static_cast<uint64_t>(row) * t_.topk], w, shape);
        DataCopyPad(idsGm_[static_cast<uint64_t>(row) * t_.topk], ids, shape);
        weightsOut_.FreeTensor(w);
        idsOut_.FreeTensor(ids);
    }

    MoeGatingTilingData t_;
    uint32_t rows_ = 0, runs_ = 0, lanes_ = 0;
    uint8_t step_ = 0;  // blocks of one row
    TQue<QuePosition::VECIN, 1> logitsIn_;
    TQue<QuePosition::VECOUT, 1> weightsOut_, idsOut_;
    TBuf<TPosition::VECCALC> positionBuf_, scoreBuf_, keyBuf_, sortedBuf_, halfBuf_, mergedBuf_, topBuf_, winnerBuf_,
        rowStartBuf_, spreadBuf_, offsetBuf_, rowBuf_, biasBuf_;
    GlobalTensor<T> logitsGm_;
    GlobalTensor<float> biasGm_, weightsGm_;
    GlobalTensor<int32_t> idsGm_;
};
}  // namespace mindmoe
#endif
