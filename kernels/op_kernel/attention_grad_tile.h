// What both attention backward kernels do for one tile of queries and keys: from q k^T and grad v^T, recomputed by
// the cube, and the saved lse and delta,
//   weight = exp(scale * q k^T - lse),   gradScore = scale * weight * (grad v^T - delta).
#ifndef MINDMOE_ATTENTION_GRAD_TILE_H
#define MINDMOE_ATTENTION_GRAD_TILE_H
#define MINDMOE_USES_MATMUL
#include "attention_visibility.h"
#include "rows.h"

namespace mindmoe {
template <typename T> class AttentionGradTile {
public:
    using Rows = MatmulType<TPosition::GM, CubeFormat::ND, T>;
    using Transposed = MatmulType<TPosition::GM, CubeFormat::ND, T, true>;
    using Result = MatmulType<TPosition::GM, CubeFormat::ND, float>;
    Matmul<Rows, Transposed, Result> scores;

    // One tile: rows queries from q0 on of a head, cols keys from k0 on.
    struct Place {
        uint32_t batch, q0, rows, k0, cols;
        uint64_t queryRow, keyRow;  // rows of the tensors [.., headDim]
    };

    __aicore__ inline void Init(GM_ADDR q, GM_ADDR k, GM_ADDR v, GM_ADDR grad, GM_ADDR lse, GM_ADDR delta,
                                GM_ADDR documents, GM_ADDR workspace, const AttentionTilingData &t, TPipe *pipe)
    {
        t_ = t;
        visible.Init(documents, t);
        const uint64_t rows = static_cast<uint64_t>(t_.batch) * t_.heads * t_.seq;
        const uint64_t kvRows = static_cast<uint64_t>(t_.batch) * t_.kvHeads * t_.seq;
        qGm.SetGlobalBuffer((__gm__ T *)q, rows * t_.headDim);
        kGm.SetGlobalBuffer((__gm__ T *)k, kvRows * t_.headDim);
        vGm.SetGlobalBuffer((__gm__ T *)v, kvRows * t_.headDim);
        gradGm.SetGlobalBuffer((__gm__ T *)grad, rows * t_.headDim);
        lseGm_.SetGlobalBuffer((__gm__ float *)lse, rows);
        deltaGm_.SetGlobalBuffer((__gm__ float *)delta, rows);
        const uint32_t tile = t_.blockQ * t_.blockK;
        const uint32_t block = (t_.blockQ > t_.blockK ? t_.blockQ : t_.blockK) * t_.headDim;
        const uint32_t slice = (2 * tile + block) * sizeof(float) + tile * sizeof(T);
        GM_ADDR mine = workspace + static_cast<uint64_t>(GetBlockIdx()) * slice;
        scoreWs_.SetGlobalBuffer((__gm__ float *)mine, tile);
        gradWs_.SetGlobalBuffer((__gm__ float *)mine + tile, tile);
        productWs.SetGlobalBuffer((__gm__ float *)mine + 2 * tile, block);
        tileWs.SetGlobalBuffer((__gm__ T *)(mine + (2 * tile + block) * sizeof(float)), tile);
        pipe->InitBuffer(scoreIn_, 1, tile * sizeof(float));
        pipe->InitBuffer(gradIn_, 1, tile * sizeof(float));
        pipe->InitBuffer(rowIn_, 2, t_.blockQ * sizeof(float));
        pipe->InitBuffer(tileOut_, 1, tile * sizeof(T));
        pipe->InitBuffer(blockBuf_, 2 * t_.blockQ * BLOCK);
    }

    // Fills weight and gradScore, [rows, blockK] in UB; Release gives them back.
    __aicore__ inline void Compute(const Place &p)
    {
        const int32_t cells = static_cast<int32_t>(p.rows * t_.blockK);
        LocalTensor<float> lse = blockBuf_.Get<float>(), delta = lse[t_.blockQ * BLOCK_F];
        SpreadFrom(lse, lseGm_, p);
        SpreadFrom(delta, deltaGm_, p);
        Multiply(scoreWs_, qGm, kGm, p);
        weight = Fetch(scoreIn_, scoreWs_, p.rows);
        Multiply(gradWs_, gradGm, vGm, p);
        gradScore = Fetch(gradIn_, gradWs_, p.rows);
        Muls(weight, weight, t_.scale, cells);
        PipeBarrier<PIPE_V>();
        visible.Hide(weight, p.batch, p.q0, p.rows, p.k0, p.cols, t_.blockK);
        ByRow<RowOp::SUB>(weight, lse, p.rows, t_.blockK);
        Exp(weight, weight, cells);
        ByRow<RowOp::SUB>(gradScore, delta, p.rows, t_.blockK);
        Mul(gradScore, gradScore, weight, cells);
        PipeBarrier<PIPE_V>();
        Muls(gradScore, gradScore, t_.scale, cells);
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Release()
    {
        scoreIn_.FreeTensor(weight);
        gradIn_.FreeTensor(gradScore);
    }

    // tileWs = a tile, in the type of the inputs, for the cube.
    __aicore__ inline void Send(const LocalTensor<float> &tile, uint32_t rows)
    {
        LocalTensor<T> out = tileOut_.template AllocTensor<T>();
        FromFloat(out, tile, rows * t_.blockK);
        tileOut_.EnQue(out);
        out = tileOut_.template DeQue<T>();
        DataCopy(tileWs, out, rows * t_.blockK);
        tileOut_.FreeTensor(out);
    }

    LocalTensor<float> weight, gradScore;
    Visibility visible;
    GlobalTensor<T> qGm, kGm, vGm, gradGm, tileWs;
    GlobalTensor<float> productWs;

private:
    using InQueue = TQue<QuePosition::VECIN, 1>;

    // blocks = one value of each row, spread; ordered by the barrier behind the scaling of the scores.
    __aicore__ inline void SpreadFrom(const LocalTensor<float> &blocks, const GlobalTensor<float> &source,
                                      const Place &p)
    {
        LocalTensor<float> row = rowIn_.template AllocTensor<float>();
        CopyIn(row, source[p.queryRow], p.rows);
        rowIn_.EnQue(row);
        row = rowIn_.template DeQue<float>();
        SpreadRows(blocks, row, p.rows);
        rowIn_.FreeTensor(row);
    }

    // result [rows, blockK] = left rows times right rows transposed.
    __aicore__ inline void Multiply(const GlobalTensor<float> &result, const GlobalTensor<T> &left,
                                    const GlobalTensor<T> &right, const Place &p)
    {
        const int dim = static_cast<int>(t_.headDim);
        Fence<HardEvent::MTE2_MTE3>();  // the cube is asked by an MTE3 message to overwrite what MTE2 read last
        scores.SetOrgShape(static_cast<int>(p.rows), static_cast<int>(t_.blockK), dim, dim,
                           static_cast<int>(t_.blockK));
        scores.SetTensorA(left[p.queryRow * t_.headDim]);
        scores.SetTensorB(right[p.keyRow * t_.headDim], true);
        scores.SetTail(static_cast<int>(p.rows), static_cast<int>(p.cols), dim);
        scores.IterateAll(result);
    }

    __aicore__ inline LocalTensor<float> Fetch(InQueue &queue, const GlobalTensor<float> &source, uint32_t rows)
    {
        LocalTensor<float> tile = queue.template AllocTensor<float>();
        DataCopy(tile, source, rows * t_.blockK);
        queue.EnQue(tile);
        return queue.template DeQue<float>();
    }

    AttentionTilingData t_;
    InQueue scoreIn_, gradIn_, rowIn_;
    TQue<QuePosition::VECOUT, 1> tileOut_;
    TBuf<TPosition::VECCALC> blockBuf_;
    GlobalTensor<float> lseGm_, deltaGm_, scoreWs_, gradWs_;
};

// Adds the product of the cube, [rows, headDim] in the workspace, to a sum in UB.
__aicore__ inline void AddFrom(TQue<QuePosition::VECIN, 1> &queue, const LocalTensor<float> &sum,
                               const GlobalTensor<float> &product, uint32_t n)
{
    LocalTensor<float> part = queue.AllocTensor<float>();
    DataCopy(part, product, n);
    queue.EnQue(part);
    part = queue.DeQue<float>();
    Add(sum, sum, part, static_cast<int32_t>(n));
    PipeBarrier<PIPE_V>();
    queue.FreeTensor(part);
}

// Writes n floats of a sum to GM in the output's type.
template <typename T>
__aicore__ inline void Deliver(TQue<QuePosition::VECOUT, 1> &queue, const GlobalTensor<T> &dst,
                               const LocalTensor<float> &sum, uint32_t n)
{
    LocalTensor<T> out = queue.AllocTensor<T>();
    FromFloat(out, sum, n);
    PipeBarrier<PIPE_V>();
    queue.EnQue(out);
    out = queue.DeQue<T>();
    CopyOut(dst, out, n);
    queue.FreeTensor(out);
}
}  // namespace mindmoe
#endif
