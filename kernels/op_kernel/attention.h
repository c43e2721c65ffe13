// Flash attention forward: out [batch, heads, seq, headDim] and lse [batch, heads, seq], the logarithm of the softmax
// denominator (sink included), which the backward kernels need.
//
// A task is one block of queries of one head. The cube multiplies, through the workspace; the vector core keeps the
// running maximum, sum and output. A sink is a key without a value: the maximum starts at it and the sum at 1.
#ifndef MINDMOE_ATTENTION_H
#define MINDMOE_ATTENTION_H
#define MINDMOE_USES_MATMUL
#include "attention_visibility.h"
#include "rows.h"

namespace mindmoe {
template <typename T> class Attention {
public:
    using Rows = MatmulType<TPosition::GM, CubeFormat::ND, T>;
    using Transposed = MatmulType<TPosition::GM, CubeFormat::ND, T, true>;
    using Result = MatmulType<TPosition::GM, CubeFormat::ND, float>;
    Matmul<Rows, Transposed, Result> scores;
    Matmul<Rows, Rows, Result> product;

    __aicore__ inline void Init(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR sinks, GM_ADDR documents, GM_ADDR out,
                                GM_ADDR lse, GM_ADDR workspace, const AttentionTilingData &t, TPipe *pipe)
    {
        t_ = t;
        visible_.Init(documents, t);
        const uint64_t rows = static_cast<uint64_t>(t_.batch) * t_.heads * t_.seq;
        const uint64_t kvRows = static_cast<uint64_t>(t_.batch) * t_.kvHeads * t_.seq;
        qGm_.SetGlobalBuffer((__gm__ T *)q, rows * t_.headDim);
        kGm_.SetGlobalBuffer((__gm__ T *)k, kvRows * t_.headDim);
        vGm_.SetGlobalBuffer((__gm__ T *)v, kvRows * t_.headDim);
        sinkGm_.SetGlobalBuffer((__gm__ float *)sinks, t_.hasSinks != 0 ? t_.heads : 0);
        outGm_.SetGlobalBuffer((__gm__ T *)out, rows * t_.headDim);
        lseGm_.SetGlobalBuffer((__gm__ float *)lse, rows);
        const uint32_t tile = t_.blockQ * t_.blockK, block = t_.blockQ * t_.headDim;
        const uint32_t slice = (tile + block) * sizeof(float) + tile * sizeof(T);
        GM_ADDR mine = workspace + static_cast<uint64_t>(GetBlockIdx()) * slice;
        scoreWs_.SetGlobalBuffer((__gm__ float *)mine, tile);
        productWs_.SetGlobalBuffer((__gm__ float *)mine + tile, block);
        weightWs_.SetGlobalBuffer((__gm__ T *)(mine + (tile + block) * sizeof(float)), tile);
        pipe->InitBuffer(scoreIn_, 1, tile * sizeof(float));
        pipe->InitBuffer(productIn_, 1, block * sizeof(float));
        pipe->InitBuffer(weightOut_, 1, tile * sizeof(T));
        pipe->InitBuffer(out_, 1, block * sizeof(T));
        pipe->InitBuffer(lseOut_, 1, t_.blockQ * sizeof(float));
        pipe->InitBuffer(sumBuf_, block * sizeof(float));
        pipe->InitBuffer(foldBuf_, t_.blockQ * LANES * sizeof(float));
        pipe->InitBuffer(rowBuf_, t_.blockQ * sizeof(float));
        pipe->InitBuffer(stateBuf_, 4 * t_.blockQ * BLOCK);
    }

    __aicore__ inline void Process()
    {
        LocalTensor<float> state = stateBuf_.Get<float>();
        const uint32_t part = t_.blockQ * BLOCK_F;
        max_ = state;
        sum_ = state[part];
        decay_ = state[2 * part];
        rowBlocks_ = state[3 * part];
        Duplicate(rowBuf_.Get<float>(), 0.0f, static_cast<int32_t>(t_.blockQ));
        const uint32_t blocks = CeilDiv(t_.seq, t_.blockQ);
        for (uint32_t i = static_cast<uint32_t>(GetBlockIdx()); i < t_.batch * t_.heads * blocks; i += t_.cores) {
            QueryBlock(i / blocks, i % blocks * t_.blockQ);
        }
        scores.End();
        product.End();
    }

private:
    __aicore__ inline void QueryBlock(uint32_t batchHead, uint32_t q0)
    {
        const uint32_t batch = batchHead / t_.heads, head = batchHead % t_.heads;
        const uint32_t kvHead = batch * t_.kvHeads + head / (t_.heads / t_.kvHeads);
        const uint32_t rows = Smaller(t_.blockQ, t_.seq - q0);
        const uint64_t row0 = static_cast<uint64_t>(batchHead) * t_.seq + q0;
        LocalTensor<float> sum = sumBuf_.Get<float>();
        const float sink = t_.hasSinks != 0 ? sinkGm_.GetValue(head) : LOWEST;
        Duplicate(sum, 0.0f, static_cast<int32_t>(rows * t_.headDim));
        Duplicate(max_, sink, static_cast<int32_t>(rows * BLOCK_F));
        Duplicate(sum_, t_.hasSinks != 0 ? 1.0f : 0.0f, static_cast<int32_t>(rows * BLOCK_F));
        const uint32_t first = visible_.FirstKey(batch, q0) / t_.blockK * t_.blockK;
        for (uint32_t k0 = first; k0 < q0 + rows; k0 += t_.blockK) {
            const uint32_t cols = Smaller(t_.blockK, t_.seq - k0);
            const uint64_t key = (static_cast<uint64_t>(kvHead) * t_.seq + k0) * t_.headDim;
            Score(row0 * t_.headDim, key, rows, cols);
            Weigh(batch, q0, rows, k0, cols);
            AddProduct(key, rows, cols);
        }
        Finish(row0, rows);
    }

    __aicore__ inline void Score(uint64_t query, uint64_t key, uint32_t rows, uint32_t cols)
    {
        Fence<HardEvent::MTE2_MTE3>();  // the cube is asked by an MTE3 message to overwrite what MTE2 read last
        scores.SetOrgShape(static_cast<int>(rows), static_cast<int>(t_.blockK), static_cast<int>(t_.headDim),
                           static_cast<int>(t_.headDim), static_cast<int>(t_.blockK));
        scores.SetTensorA(qGm_[query]);
        scores.SetTensorB(kGm_[key], true);
        scores.SetTail(static_cast<int>(rows), static_cast<int>(cols), static_cast<int>(t_.headDim));
        scores.IterateAll(scoreWs_);
        LocalTensor<float> s = scoreIn_.template AllocTensor<float>();
        DataCopy(s, scoreWs_, rows * t_.blockK);
        scoreIn_.EnQue(s);
    }

    // One step of the online softmax; the weights of this block go to the workspace and the old output decays. Its
    // first barrier also orders the initial state.
    __aicore__ inline void Weigh(uint32_t batch, uint32_t q0, uint32_t rows, uint32_t k0, uint32_t cols)
    {
        const int32_t cells = static_cast<int32_t>(rows * t_.blockK), lanes = static_cast<int32_t>(rows * BLOCK_F);
        LocalTensor<float> s = scoreIn_.template DeQue<float>();
        LocalTensor<float> fold = foldBuf_.Get<float>(), row = rowBuf_.Get<float>();
        Muls(s, s, t_.scale, cells);
        PipeBarrier<PIPE_V>();
        visible_.Hide(s, batch, q0, rows, k0, cols, t_.blockK);
        FoldRows<true>(fold, s, rows, t_.blockK);
        WholeReduceMax(row, fold, static_cast<int32_t>(LANES), static_cast<int32_t>(rows), 1, 1, 8,
                       ReduceOrder::ORDER_ONLY_VALUE);
        PipeBarrier<PIPE_V>();
        SpreadRows(rowBlocks_, row, rows);
        PipeBarrier<PIPE_V>();
        Max(rowBlocks_, rowBlocks_, max_, lanes);
        PipeBarrier<PIPE_V>();
        Sub(decay_, max_, rowBlocks_, lanes);
        PipeBarrier<PIPE_V>();
        Exp(decay_, decay_, lanes);
        Adds(max_, rowBlocks_, 0.0f, lanes);
        ByRow<RowOp::SUB>(s, rowBlocks_, rows, t_.blockK);
        Exp(s, s, cells);
        Mul(sum_, sum_, decay_, lanes);
        FoldRows<false>(fold, s, rows, t_.blockK);
        WholeReduceSum(row, fold, static_cast<int32_t>(LANES), static_cast<int32_t>(rows), 1, 1, 8);
        LocalTensor<T> weights = weightOut_.template AllocTensor<T>();
        FromFloat(weights, s, static_cast<uint32_t>(cells));
        PipeBarrier<PIPE_V>();
        SpreadRows(rowBlocks_, row, rows);
        PipeBarrier<PIPE_V>();
        Add(sum_, sum_, rowBlocks_, lanes);
        scoreIn_.FreeTensor(s);
        weightOut_.EnQue(weights);
        weights = weightOut_.template DeQue<T>();
        DataCopy(weightWs_, weights, static_cast<uint32_t>(cells));
        weightOut_.FreeTensor(weights);
        ByRow<RowOp::MUL>(sumBuf_.Get<float>(), decay_, rows, t_.headDim);
    }

    __aicore__ inline void AddProduct(uint64_t value, uint32_t rows, uint32_t cols)
    {
        Fence<HardEvent::MTE2_MTE3>();
        product.SetOrgShape(static_cast<int>(rows), static_cast<int>(t_.headDim), static_cast<int>(t_.blockK),
                            static_cast<int>(cols), static_cast<int>(t_.headDim));
        product.SetTensorA(weightWs_);
        product.SetTensorB(vGm_[value]);
        product.SetTail(static_cast<int>(rows), static_cast<int>(t_.headDim), static_cast<int>(cols));
        product.IterateAll(productWs_);
        LocalTensor<float> sum = sumBuf_.Get<float>();
        LocalTensor<float> part = productIn_.template AllocTensor<float>();
        DataCopy(part, productWs_, rows * t_.headDim);
        productIn_.EnQue(part);
        part = productIn_.template DeQue<float>();
        Add(sum, sum, part, static_cast<int32_t>(rows * t_.headDim));
        PipeBarrier<PIPE_V>();
        productIn_.FreeTensor(part);
    }

    __aicore__ inline void Finish(uint64_t row0, uint32_t rows)
    {
        const int32_t lanes = static_cast<int32_t>(rows * BLOCK_F);
        LocalTensor<float> sum = sumBuf_.Get<float>();
        ByRow<RowOp::DIV>(sum, sum_, rows, t_.headDim);
        LocalTensor<T> out = out_.template AllocTensor<T>();
        FromFloat(out, sum, rows * t_.headDim);
        Ln(sum_, sum_, lanes);
        PipeBarrier<PIPE_V>();
        Add(max_, max_, sum_, lanes);
        PipeBarrier<PIPE_V>();
        LocalTensor<float> lse = lseOut_.template AllocTensor<float>();
        FirstLanes(lse, max_, rows);
        out_.EnQue(out);
        lseOut_.EnQue(lse);
        out = out_.template DeQue<T>();
        lse = lseOut_.template DeQue<float>();
        CopyOut(outGm_[row0 * t_.headDim], out, rows * t_.headDim);
        CopyOut(lseGm_[row0], lse, rows);
        out_.FreeTensor(out);
        lseOut_.FreeTensor(lse);
    }

    AttentionTilingData t_;
    Visibility visible_;
    LocalTensor<float> max_, sum_, decay_, rowBlocks_;  // one block of equal lanes per query
    TQue<QuePosition::VECIN, 1> scoreIn_, productIn_;
    TQue<QuePosition::VECOUT, 1> weightOut_, out_, lseOut_;
    TBuf<TPosition::VECCALC> sumBuf_, foldBuf_, rowBuf_, stateBuf_;
    GlobalTensor<T> qGm_, kGm_, vGm_, outGm_, weightWs_;
    GlobalTensor<float> sinkGm_, lseGm_, scoreWs_, productWs_;
};
}  // namespace mindmoe
#endif
