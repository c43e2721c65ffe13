// Backward of swiglu. With s = sigmoid(alpha * g) and glu = g * s:
//   d gate = grad * (u + 1) * (s + alpha * glu * (1 - s))   where gate <= limit, else 0
//   d up   = grad * glu                                     where |up| <= limit, else 0
#ifndef MINDMOE_SWIGLU_GRAD_H
#define MINDMOE_SWIGLU_GRAD_H
#include "swiglu.h"

namespace mindmoe {
template <typename T> class SwigluGrad {
public:
    __aicore__ inline void Init(GM_ADDR grad, GM_ADDR x, GM_ADDR gradX, const SwigluTilingData &t, TPipe *pipe)
    {
        t_ = t;
        const uint64_t first = static_cast<uint64_t>(GetBlockIdx()) * t_.elementsPerCore;
        const uint64_t left = first < t_.elements ? t_.elements - first : 0;
        mine_ = left < t_.elementsPerCore ? left : t_.elementsPerCore;
        gradGm_.SetGlobalBuffer((__gm__ T *)grad + first, mine_);
        xGm_.SetGlobalBuffer((__gm__ T *)x + 2 * first, 2 * mine_);
        gradXGm_.SetGlobalBuffer((__gm__ T *)gradX + 2 * first, 2 * mine_);
        const uint32_t tile = t_.tile * sizeof(float);
        pipe->InitBuffer(gradIn_, 1, t_.tile * sizeof(T));
        pipe->InitBuffer(xIn_, 1, 2 * t_.tile * sizeof(T));
        pipe->InitBuffer(out_, 1, 2 * t_.tile * sizeof(T));
        pipe->InitBuffer(pairBuf_, 2 * tile);
        pipe->InitBuffer(gateBuf_, tile);
        pipe->InitBuffer(upBuf_, tile);
        pipe->InitBuffer(sigmoidBuf_, tile);
        pipe->InitBuffer(gradBuf_, tile);
        pipe->InitBuffer(tempBuf_, tile);
        pipe->InitBuffer(resultBuf_, 2 * tile);
        pipe->InitBuffer(orderBuf_, 2 * tile);
        pipe->InitBuffer(maskBuf_, 3 * MaskBytes());
    }

    __aicore__ inline void Process()
    {
        if (mine_ == 0) {
            return;
        }
        Prepare();
        for (uint64_t begin = 0; begin < mine_; begin += t_.tile) {
            const uint64_t left = mine_ - begin;
            const uint32_t n = left < t_.tile ? static_cast<uint32_t>(left) : t_.tile;
            LocalTensor<T> x = xIn_.template AllocTensor<T>();
            LocalTensor<T> grad = gradIn_.template AllocTensor<T>();
            CopyIn(x, xGm_[2 * begin], 2 * n);
            CopyIn(grad, gradGm_[begin], n);
            xIn_.EnQue(x);
            gradIn_.EnQue(grad);
            Load(n);
            Compute(n);
            LocalTensor<T> out = out_.template DeQue<T>();
            CopyOut(gradXGm_[2 * begin], out, 2 * n);
            out_.FreeTensor(out);
        }
    }

private:
    // One bit an element, each mask on a block of its own.
    __aicore__ inline uint32_t MaskBytes() const { return RoundUp(t_.tile / 8, BLOCK); }

    // order[i] = byte offset in [d gate | d up] of interleaved element i; the comparisons read whole repeats, so the
    // tails of gate and up must be defined.
    __aicore__ inline void Prepare()
    {
        const int32_t n = static_cast<int32_t>(2 * t_.tile);
        LocalTensor<int32_t> order = orderBuf_.Get<int32_t>();
        LocalTensor<int32_t> index = pairBuf_.Get<int32_t>(), half = resultBuf_.Get<int32_t>();
        Duplicate(gateBuf_.Get<float>(), 0.0f, n / 2);
        Duplicate(upBuf_.Get<float>(), 0.0f, n / 2);
        CreateVecIndex(index, static_cast<int32_t>(0), 2 * t_.tile);
        PipeBarrier<PIPE_V>();
        ShiftRight(half, index, static_cast<int32_t>(1), n);
        PipeBarrier<PIPE_V>();
        Muls(order, half, static_cast<int32_t>(-2), n);
        PipeBarrier<PIPE_V>();
        Add(order, order, index, n);  // 0 at a gate, 1 at an up
        PipeBarrier<PIPE_V>();
        Muls(order, order, static_cast<int32_t>(t_.tile), n);
        PipeBarrier<PIPE_V>();
        Add(order, order, half, n);
        PipeBarrier<PIPE_V>();
        Muls(order, order, static_cast<int32_t>(sizeof(float)), n);
    }

    __aicore__ inline void Load(uint32_t n)
    {
        LocalTensor<float> pairs = pairBuf_.Get<float>();
        LocalTensor<T> x = xIn_.template DeQue<T>();
        LocalTensor<T> grad = gradIn_.template DeQue<T>();
        ToFloat(pairs, x, 2 * n);
        ToFloat(gradBuf_.Get<float>(), grad, n);
        PipeBarrier<PIPE_V>();
        xIn_.FreeTensor(x);
        gradIn_.FreeTensor(grad);
        Deinterleave(gateBuf_.Get<float>(), upBuf_.Get<float>(), pairs, n);
        PipeBarrier<PIPE_V>();
    }

    __aicore__ inline void Compute(uint32_t n)
    {
        const int32_t count = static_cast<int32_t>(n);
        const uint32_t whole = RoundUp(n, LANES);
        LocalTensor<float> gate = gateBuf_.Get<float>(), up = upBuf_.Get<float>(), s = sigmoidBuf_.Get<float>(),
                           grad = gradBuf_.Get<float>(), glu = tempBuf_.Get<float>();
        LocalTensor<float> gradGate = resultBuf_.Get<float>(), gradUp = gradGate[t_.tile];
        LocalTensor<uint8_t> gateFree = maskBuf_.Get<uint8_t>(), upBelow = gateFree[MaskBytes()],
                             upAbove = upBelow[MaskBytes()];
        CompareScalar(gateFree, gate, t_.limit, CMPMODE::LE, whole);
        CompareScalar(upBelow, up, t_.limit, CMPMODE::LE, whole);
        CompareScalar(upAbove, up, -t_.limit, CMPMODE::GE, whole);
        PipeBarrier<PIPE_V>();
        Mins(gate, gate, t_.limit, count);
        Mins(up, up, t_.limit, count);
        PipeBarrier<PIPE_V>();
        Maxs(up, up, -t_.limit, count);
        Muls(s, gate, -t_.alpha, count);
        Duplicate(glu, 1.0f, count);
        PipeBarrier<PIPE_V>();
        Exp(s, s, count);
        Adds(up, up, 1.0f, count);
        PipeBarrier<PIPE_V>();
        Adds(s, s, 1.0f, count);
        Mul(up, up, grad, count);
        PipeBarrier<PIPE_V>();
        Div(s, glu, s, count);
        PipeBarrier<PIPE_V>();
        Mul(glu, gate, s, count);
        PipeBarrier<PIPE_V>();
        Mul(gradUp, grad, glu, count);
        Muls(gate, s, -1.0f, count);
        PipeBarrier<PIPE_V>();
        Adds(gate, gate, 1.0f, count);
        PipeBarrier<PIPE_V>();
        Mul(gate, gate, glu, count);
        PipeBarrier<PIPE_V>();
        Muls(gate, gate, t_.alpha, count);
        PipeBarrier<PIPE_V>();
        Add(gate, gate, s, count);
        PipeBarrier<PIPE_V>();
        Mul(gradGate, up, gate, count);
        Select(gradUp, upBelow, gradUp, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
        PipeBarrier<PIPE_V>();
        Select(gradGate, gateFree, gradGate, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
        Select(gradUp, upAbove, gradUp, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);
        PipeBarrier<PIPE_V>();
        Interleave(gradGate, n);
    }

    __aicore__ inline void Interleave(const LocalTensor<float> &gradGateAndUp, uint32_t n)
    {
        LocalTensor<float> pairs = pairBuf_.Get<float>();
        Gather(pairs, gradGateAndUp, orderBuf_.Get<int32_t>().template ReinterpretCast<uint32_t>(), 0, 2 * n);
        LocalTensor<T> out = out_.template AllocTensor<T>();
        PipeBarrier<PIPE_V>();
        FromFloat(out, pairs, 2 * n);
        PipeBarrier<PIPE_V>();
        out_.EnQue(out);
    }

    SwigluTilingData t_;
    uint64_t mine_ = 0;
    TQue<QuePosition::VECIN, 1> gradIn_, xIn_;
    TQue<QuePosition::VECOUT, 1> out_;
    TBuf<TPosition::VECCALC> pairBuf_, gateBuf_, upBuf_, sigmoidBuf_, gradBuf_, tempBuf_, resultBuf_, orderBuf_,
        maskBuf_;
    GlobalTensor<T> gradGm_, xGm_, gradXGm_;
};
}  // namespace mindmoe
#endif
