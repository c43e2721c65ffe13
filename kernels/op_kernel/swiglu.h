// Clamped SwiGLU of gpt-oss on interleaved pairs: x = gate0, up0, gate1, up1, ...
//   g = min(gate, limit), u = clamp(up, -limit, limit), out = (u + 1) * g * sigmoid(alpha * g)
// The tensor is one flat run: rows need no tiling of their own.
#ifndef MINDMOE_SWIGLU_H
#define MINDMOE_SWIGLU_H
#include "common.h"
#include "swiglu_tiling.h"

namespace mindmoe {
// Splits 2n interleaved floats into n gates and n ups.
__aicore__ inline void Deinterleave(const LocalTensor<float> &gate, const LocalTensor<float> &up,
                                    const LocalTensor<float> &pairs, uint32_t n)
{
    uint64_t kept = 0;
    const GatherMaskParams once(1, 1, 8, 0);
    GatherMask(gate, pairs, static_cast<uint8_t>(1), true, 2 * n, once, kept);
    GatherMask(up, pairs, static_cast<uint8_t>(2), true, 2 * n, once, kept);
}

template <typename T> class Swiglu {
public:
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR out, const SwigluTilingData &t, TPipe *pipe)
    {
        t_ = t;
        const uint64_t first = static_cast<uint64_t>(GetBlockIdx()) * t_.elementsPerCore;
        const uint64_t left = first < t_.elements ? t_.elements - first : 0;
        mine_ = left < t_.elementsPerCore ? left : t_.elementsPerCore;
        xGm_.SetGlobalBuffer((__gm__ T *)x + 2 * first, 2 * mine_);
        outGm_.SetGlobalBuffer((__gm__ T *)out + first, mine_);
        pipe->InitBuffer(xIn_, 2, 2 * t_.tile * sizeof(T));
        pipe->InitBuffer(out_, 2, t_.tile * sizeof(T));
        pipe->InitBuffer(pairBuf_, 2 * t_.tile * sizeof(float));
        pipe->InitBuffer(gateBuf_, t_.tile * sizeof(float));
        pipe->InitBuffer(upBuf_, t_.tile * sizeof(float));
        pipe->InitBuffer(tempBuf_, t_.tile * sizeof(float));
    }

    __aicore__ inline void Process()
    {
        for (uint64_t begin = 0; begin < mine_; begin += t_.tile) {
            const uint64_t left = mine_ - begin;
            const uint32_t n = left < t_.tile ? static_cast<uint32_t>(left) : t_.tile;
            LocalTensor<T> x = xIn_.template AllocTensor<T>();
            CopyIn(x, xGm_[2 * begin], 2 * n);
            xIn_.EnQue(x);
            Compute(n);
            LocalTensor<T> out = out_.template DeQue<T>();
            CopyOut(outGm_[begin], out, n);
            out_.FreeTensor(out);
        }
    }

private:
    __aicore__ inline void Compute(uint32_t n)
    {
        const int32_t count = static_cast<int32_t>(n);
        LocalTensor<float> pairs = pairBuf_.Get<float>(), gate = gateBuf_.Get<float>(), up = upBuf_.Get<float>(),
                           temp = tempBuf_.Get<float>();
        LocalTensor<T> x = xIn_.template DeQue<T>();
        ToFloat(pairs, x, 2 * n);
        PipeBarrier<PIPE_V>();
        xIn_.FreeTensor(x);
        Deinterleave(gate, up, pairs, n);
        PipeBarrier<PIPE_V>();
        Mins(gate, gate, t_.limit, count);
        Mins(up, up, t_.limit, count);
        PipeBarrier<PIPE_V>();
        Maxs(up, up, -t_.limit, count);
        Muls(temp, gate, -t_.alpha, count);
        PipeBarrier<PIPE_V>();
        Exp(temp, temp, count);
        Adds(up, up, 1.0f, count);
        PipeBarrier<PIPE_V>();
        Adds(temp, temp, 1.0f, count);
        Mul(gate, gate, up, count);
        PipeBarrier<PIPE_V>();
        Div(gate, gate, temp, count);
        PipeBarrier<PIPE_V>();
        LocalTensor<T> out = out_.template AllocTensor<T>();
        FromFloat(out, gate, n);
        out_.EnQue(out);
    }

    SwigluTilingData t_;
    uint64_t mine_ = 0;
    TQue<QuePosition::VECIN, 1> xIn_;
    TQue<QuePosition::VECOUT, 1> out_;
    TBuf<TPosition::VECCALC> pairBuf_, gateBuf_, upBuf_, tempBuf_;
    GlobalTensor<T> xGm_, outGm_;
};
}  // namespace mindmoe
#endif
