// Gradients of keys and values: gradV = sum of weight^T grad, gradK = sum of gradScore^T q, over the query heads of a
// group and the query blocks that see the keys. A task is one block of keys of one key-value head, so every row has
// one owner and one order of summation.
#ifndef MINDMOE_ATTENTION_GRAD_KEY_VALUE_H
#define MINDMOE_ATTENTION_GRAD_KEY_VALUE_H
#include "attention_grad_tile.h"

namespace mindmoe {
template <typename T> class AttentionGradKeyValue {
public:
    using Tile = AttentionGradTile<T>;
    Tile tile;
    Matmul<typename Tile::Transposed, typename Tile::Rows, typename Tile::Result> product;

    __aicore__ inline void Init(GM_ADDR gradK, GM_ADDR gradV, const AttentionTilingData &t, TPipe *pipe)
    {
        t_ = t;
        const uint64_t size = static_cast<uint64_t>(t_.batch) * t_.kvHeads * t_.seq * t_.headDim;
        gradKGm_.SetGlobalBuffer((__gm__ T *)gradK, size);
        gradVGm_.SetGlobalBuffer((__gm__ T *)gradV, size);
        const uint32_t block = t_.blockK * t_.headDim;
        pipe->InitBuffer(productIn_, 1, block * sizeof(float));
        pipe->InitBuffer(out_, 1, block * sizeof(T));
        pipe->InitBuffer(keyBuf_, block * sizeof(float));
        pipe->InitBuffer(valueBuf_, block * sizeof(float));
    }

    __aicore__ inline void Process()
    {
        const uint32_t blocks = CeilDiv(t_.seq, t_.blockK);
        for (uint32_t i = static_cast<uint32_t>(GetBlockIdx()); i < t_.batch * t_.kvHeads * blocks; i += t_.cores) {
            KeyBlock(i / blocks, i % blocks * t_.blockK);
        }
        tile.scores.End();
        product.End();
    }

private:
    __aicore__ inline void KeyBlock(uint32_t batchHead, uint32_t k0)
    {
        const uint32_t batch = batchHead / t_.kvHeads, kvHead = batchHead % t_.kvHeads;
        const uint32_t group = t_.heads / t_.kvHeads;
        const uint32_t cols = Smaller(t_.blockK, t_.seq - k0), n = cols * t_.headDim;
        const uint64_t keyRow = static_cast<uint64_t>(batchHead) * t_.seq + k0;
        // Ordered by the barriers of the first tile: the block of the keys' own queries always is one.
        Duplicate(keyBuf_.Get<float>(), 0.0f, static_cast<int32_t>(n));
        Duplicate(valueBuf_.Get<float>(), 0.0f, static_cast<int32_t>(n));
        for (uint32_t head = kvHead * group; head < (kvHead + 1) * group; ++head) {
            const uint64_t head0 = (static_cast<uint64_t>(batch) * t_.heads + head) * t_.seq;
            // Later queries see no earlier keys, so the first block that sees none of these ends the search.
            for (uint32_t q0 = k0 / t_.blockQ * t_.blockQ;
                 q0 < t_.seq && tile.visible.FirstKey(batch, q0) < k0 + cols; q0 += t_.blockQ) {
                const uint32_t rows = Smaller(t_.blockQ, t_.seq - q0);
                AddTile({batch, q0, rows, k0, cols, head0 + q0, keyRow});
            }
        }
        Deliver(out_, gradKGm_[keyRow * t_.headDim], keyBuf_.Get<float>(), n);
        Deliver(out_, gradVGm_[keyRow * t_.headDim], valueBuf_.Get<float>(), n);
    }

    __aicore__ inline void AddTile(const typename Tile::Place &p)
    {
        const uint32_t n = p.cols * t_.headDim;
        tile.Compute(p);
        tile.Send(tile.weight, p.rows);
        Multiply(tile.gradGm, p);
        AddFrom(productIn_, valueBuf_.Get<float>(), tile.productWs, n);
        tile.Send(tile.gradScore, p.rows);
        tile.Release();
        Multiply(tile.qGm, p);
        AddFrom(productIn_, keyBuf_.Get<float>(), tile.productWs, n);
    }

    // productWs [cols, headDim] = the sent tile, transposed, times the query rows of `right`.
    __aicore__ inline void Multiply(const GlobalTensor<T> &right, const typename Tile::Place &p)
    {
        const int dim = static_cast<int>(t_.headDim), rows = static_cast<int>(p.rows);
        Fence<HardEvent::MTE2_MTE3>();
        product.SetOrgShape(static_cast<int>(t_.blockK), dim, rows, rows, dim);
        product.SetTensorA(tile.tileWs, true);
        product.SetTensorB(right[p.queryRow * t_.headDim]);
        product.SetTail(static_cast<int>(p.cols), dim, rows);
        product.IterateAll(tile.productWs);
    }

    AttentionTilingData t_;
    TQue<QuePosition::VECIN, 1> productIn_;
    TQue<QuePosition::VECOUT, 1> out_;
    TBuf<TPosition::VECCALC> keyBuf_, valueBuf_;
    GlobalTensor<T> gradKGm_, gradVGm_;
};
}  // namespace mindmoe
#endif
