// Gradient of the queries: gradQ = sum over key blocks of gradScore k. A task is one block of queries of one head, so
// every row has one owner and one order of summation.
#ifndef MINDMOE_ATTENTION_GRAD_QUERY_H
#define MINDMOE_ATTENTION_GRAD_QUERY_H
#include "attention_grad_tile.h"

namespace mindmoe {
template <typename T> class AttentionGradQuery {
public:
    using Tile = AttentionGradTile<T>;
    Tile tile;
    Matmul<typename Tile::Rows, typename Tile::Rows, typename Tile::Result> product;

    __aicore__ inline void Init(GM_ADDR gradQ, const AttentionTilingData &t, TPipe *pipe)
    {
        t_ = t;
        gradQGm_.SetGlobalBuffer((__gm__ T *)gradQ, static_cast<uint64_t>(t_.batch) * t_.heads * t_.seq * t_.headDim);
        const uint32_t block = t_.blockQ * t_.headDim;
        pipe->InitBuffer(productIn_, 1, block * sizeof(float));
        pipe->InitBuffer(out_, 1, block * sizeof(T));
        pipe->InitBuffer(sumBuf_, block * sizeof(float));
    }

    __aicore__ inline void Process()
    {
        const uint32_t blocks = CeilDiv(t_.seq, t_.blockQ);
        for (uint32_t i = static_cast<uint32_t>(GetBlockIdx()); i < t_.batch * t_.heads * blocks; i += t_.cores) {
            QueryBlock(i / blocks, i % blocks * t_.blockQ);
        }
        tile.scores.End();
        product.End();
    }

private:
    __aicore__ inline void QueryBlock(uint32_t batchHead, uint32_t q0)
    {
        const uint32_t batch = batchHead / t_.heads, head = batchHead % t_.heads;
        const uint64_t kvHead = static_cast<uint64_t>(batch) * t_.kvHeads + head / (t_.heads / t_.kvHeads);
        const uint32_t rows = Smaller(t_.blockQ, t_.seq - q0), n = rows * t_.headDim;
        const uint64_t queryRow = static_cast<uint64_t>(batchHead) * t_.seq + q0;
        LocalTensor<float> sum = sumBuf_.Get<float>();
        Duplicate(sum, 0.0f, static_cast<int32_t>(n));  // ordered by the barriers of the first tile
        const uint32_t first = tile.visible.FirstKey(batch, q0) / t_.blockK * t_.blockK;
        for (uint32_t k0 = first; k0 < q0 + rows; k0 += t_.blockK) {
            const uint32_t cols = Smaller(t_.blockK, t_.seq - k0);
            const uint64_t keyRow = kvHead * t_.seq + k0;
            tile.Compute({batch, q0, rows, k0, cols, queryRow, keyRow});
            tile.Send(tile.gradScore, rows);
            tile.Release();
            Multiply(keyRow, rows, cols);
            AddFrom(productIn_, sum, tile.productWs, n);
        }
        Deliver(out_, gradQGm_[queryRow * t_.headDim], sum, n);
    }

    __aicore__ inline void Multiply(uint64_t keyRow, uint32_t rows, uint32_t cols)
    {
        const int dim = static_cast<int>(t_.headDim);
        Fence<HardEvent::MTE2_MTE3>();
        product.SetOrgShape(static_cast<int>(rows), dim, static_cast<int>(t_.blockK), static_cast<int>(cols), dim);
        product.SetTensorA(tile.tileWs);
        product.SetTensorB(tile.kGm[keyRow * t_.headDim]);
        product.SetTail(static_cast<int>(rows), dim, static_cast<int>(cols));
        product.IterateAll(tile.productWs);
    }

    AttentionTilingData t_;
    TQue<QuePosition::VECIN, 1> productIn_;
    TQue<QuePosition::VECOUT, 1> out_;
    TBuf<TPosition::VECCALC> sumBuf_;
    GlobalTensor<T> gradQGm_;
};
}  // namespace mindmoe
#endif
