// Tiny kernels that break the rules of order, queues and operands, one each.
#pragma once
#define MINDMOE_USES_MATMUL
#include "driver.h"
#include "op_kernel/common.h"

using namespace AscendC;

namespace {

using Body = void (*)();
using Table = std::map<std::string, Body>;
using In = TQue<QuePosition::VECIN, 1>;
using Out = TQue<QuePosition::VECOUT, 1>;
using Buf = TBuf<TPosition::VECCALC>;

const Call *call = nullptr;  // of the running test: the model runs one core at a time

GlobalTensor<float> input()
{
    GlobalTensor<float> t;
    t.SetGlobalBuffer(reinterpret_cast<float *>(call->in(0)), call->inputs[0].bytes / 4);
    return t;
}
GlobalTensor<float> output()
{
    GlobalTensor<float> t;
    t.SetGlobalBuffer(reinterpret_cast<float *>(call->out(0)), call->outputs[0].bytes / 4);
    return t;
}

/// A buffer of n floats, filled with 1 by an ordered vector instruction.
LocalTensor<float> ones(TPipe &pipe, uint32_t n)
{
    Buf buffer;
    pipe.InitBuffer(buffer, n * 4);
    LocalTensor<float> t = buffer.Get<float>();
    Duplicate(t, 1.0f, static_cast<int32_t>(n));
    PipeBarrier<PIPE_V>();
    return t;
}

const BinaryRepeatParams kPlain(1, 1, 1, 8, 8, 8);

const Table kOrdering = {
    {"V reads what V wrote",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Adds(a, a, 1.0f, 64);
         Adds(a, a, 1.0f, 64);
     }},
    {"V overwrites what V wrote",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Duplicate(a, 1.0f, 64);
         Duplicate(a, 2.0f, 64);
     }},
    {"V overwrites what V reads",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         Adds(b, a, 1.0f, 64);
         Duplicate(a, 2.0f, 64);
     }},
    {"V updates in place what V reads",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         Adds(b, a, 1.0f, 64);
         Adds(a, a, 1.0f, 64);
     }},
    {"V reads what MTE2 loads",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         mindmoe::Fence<HardEvent::V_MTE2>();
         DataCopy(a, input(), 64);
         Adds(a, a, 1.0f, 64);
     }},
    {"MTE2 overwrites what V reads",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         DataCopy(a, input(), 64);
     }},
    {"MTE3 stores what V writes",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         DataCopy(output(), a, 64);
     }},
    {"S reads what V writes",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         a.GetValue(0);
     }},
    {"V reads what S writes",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         mindmoe::Fence<HardEvent::V_S>();
         a.SetValue(0, 2.0f);
         Adds(a, a, 1.0f, 64);
     }},
    {"MTE2 reads GM that MTE3 writes",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         mindmoe::Fence<HardEvent::V_MTE3>();
         DataCopy(output(), a, 64);
         auto b = ones(p, 64);
         mindmoe::Fence<HardEvent::V_MTE2>();
         DataCopy(b, output(), 64);
     }},
    {"a flag orders only what precedes it",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         SetFlag<HardEvent::V_MTE3>(0);
         Adds(a, a, 1.0f, 64);
         WaitFlag<HardEvent::V_MTE3>(0);
         DataCopy(output(), a, 64);
     }},
    {"a repeat reads an earlier one",
     [] {
         TPipe p;
         auto a = ones(p, 256);
         Add(a[64], a, a, 64, 2, kPlain);
     }},
    {"uninitialised",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 256);
         auto a = b.Get<float>();
         Adds(a, a, 1.0f, 64);
     }},
    {"flag set twice",
     [] {
         SetFlag<HardEvent::V_S>(0);
         SetFlag<HardEvent::V_S>(0);
     }},
    {"wait before set", [] { WaitFlag<HardEvent::V_S>(0); }},
    {"flag left set", [] { SetFlag<HardEvent::V_S>(0); }},
    {"event id 8", [] { SetFlag<HardEvent::V_S>(8); }},
    {"nine event ids",
     [] {
         for (int i = 0; i < 9; ++i) {
             TPipe::AllocEventID<HardEvent::V_S>();
         }
     }},
};

const Table kQueues = {
    {"double free",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 1, 256);
         auto t = q.AllocTensor<float>();
         q.FreeTensor(t);
         q.FreeTensor(t);
     }},
    {"enqueue what is free",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 1, 256);
         auto t = q.AllocTensor<float>();
         q.FreeTensor(t);
         q.EnQue(t);
     }},
    {"dequeue from an empty queue",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 1, 256);
         q.DeQue<float>();
     }},
    {"allocate beyond the buffers",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 1, 256);
         q.AllocTensor<float>();
         q.AllocTensor<float>();
     }},
    {"exceed the depth",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 2, 256);
         q.EnQue(q.AllocTensor<float>());
         q.EnQue(q.AllocTensor<float>());
     }},
    {"never freed",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 1, 256);
         q.AllocTensor<float>();
     }},
    {"tensor of another queue",
     [] {
         TPipe p;
         In q;
         Out r;
         p.InitBuffer(q, 1, 256);
         p.InitBuffer(r, 1, 256);
         auto t = q.AllocTensor<float>();
         r.EnQue(t);
     }},
    {"queue without buffers",
     [] {
         TPipe p;
         In q;
         q.AllocTensor<float>();
     }},
    {"InitBuffer twice",
     [] {
         TPipe p;
         In q;
         p.InitBuffer(q, 1, 256);
         p.InitBuffer(q, 1, 256);
     }},
    {"UB overflow",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 184 * 1024 + 32);
     }},
    {"65 buffers",
     [] {
         TPipe p;
         for (int i = 0; i < 65; ++i) {
             Buf b;
             p.InitBuffer(b, 32);
         }
     }},
    {"buffer view too long",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         b.Get<float>(9);
     }},
    {"tensor offset too long",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         b.Get<float>()[9];
     }},
    {"scalar index too long",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         a.GetValue(8);
     }},
};

const Table kOperands = {
    {"misaligned dst",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         Duplicate(a[1], 1.0f, 8);
     }},
    {"misaligned src",
     [] {
         TPipe p;
         auto a = ones(p, 128), b = ones(p, 64);
         Adds(b, a[1], 1.0f, 8);
     }},
    {"operand overrun",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Add(a, a, a, 64, 2, kPlain);
     }},
    {"count overrun",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Duplicate(a, 1.0f, 65);
     }},
    {"count 0",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Duplicate(a, 1.0f, 0);
     }},
    {"repeat 256 wraps to 0",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Add(a, a, a, 64, static_cast<uint8_t>(256), BinaryRepeatParams(1, 1, 1, 0, 0, 0));
     }},
    {"reduce repeat 256",
     [] {
         TPipe p;
         auto a = ones(p, 256), b = ones(p, 256);
         WholeReduceSum(b, a, 64, 256, 1, 1, 0);
     }},
    {"mask of 65 lanes",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         Add(a, a, a, 65, 1, kPlain);
     }},
    {"mask of 0 lanes",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         Add(a, a, a, 0, 1, kPlain);
     }},
    {"dst block stride 0",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         Add(a, a, a, 64, 1, BinaryRepeatParams(0, 1, 1, 8, 8, 8));
     }},
    {"reduction onto its source",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         WholeReduceSum(a, a, 64, 2, 1, 1, 8);
     }},
    {"block reduction onto its source",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         const uint64_t m[2] = {~0ULL, 0};
         BlockReduceSum(a, a, 1, m, 1, 1, 8);
     }},
    {"value and index reduction",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         WholeReduceMax(b, a, 64, 1, 1, 1, 8, ReduceOrder::ORDER_VALUE_INDEX);
     }},
    {"comparison of part of a repeat",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Buf b;
         p.InitBuffer(b, 32);
         CompareScalar(b.Get<uint8_t>(), a, 1.0f, CMPMODE::LE, 63);
     }},
    {"rounding of a widening cast",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         auto a = ones(p, 8);
         Cast(a, b.Get<bfloat16_t>(), RoundMode::CAST_RINT, 8);
     }},
    {"no rounding of a narrowing cast",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 32);
         auto a = ones(p, 8);
         Cast(b.Get<bfloat16_t>(), a, RoundMode::CAST_NONE, 8);
     }},
    {"gather beyond the source",
     [] {
         TPipe p;
         auto a = ones(p, 8), b = ones(p, 8);
         Buf o;
         p.InitBuffer(o, 32);
         auto i = o.Get<uint32_t>();
         Duplicate(i, 32u, 8);
         PipeBarrier<PIPE_V>();
         Gather(a, b, i, 0, 8);
     }},
    {"Sort32 of a short table",
     [] {
         TPipe p;
         auto a = ones(p, 64), d = ones(p, 128);
         Buf o;
         p.InitBuffer(o, 128);
         Sort32(d, a, o.Get<uint32_t>(), 2);
     }},
    {"MrgSort of lists 1 and 3",
     [] {
         TPipe p;
         auto a = ones(p, 64), d = ones(p, 128);
         const uint16_t n[4] = {8, 8, 8, 8};
         MrgSort(d, MrgSortSrcList<float>(a, a, a, a), MrgSort4Info(n, false, 5, 1));
     }},
    {"MrgSort onto its source",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         const uint16_t n[4] = {8, 8, 0, 0};
         MrgSort(a, MrgSortSrcList<float>(a, a[16], a, a), MrgSort4Info(n, false, 3, 1));
     }},
    {"MrgSort of a short list",
     [] {
         TPipe p;
         auto a = ones(p, 8), d = ones(p, 64);
         const uint16_t n[4] = {8, 8, 0, 0};
         MrgSort(d, MrgSortSrcList<float>(a, a, a, a), MrgSort4Info(n, false, 3, 1));
     }},
    {"GatherMask into a short tensor",
     [] {
         TPipe p;
         auto a = ones(p, 64), d = ones(p, 8);
         uint64_t n = 0;
         GatherMask(d, a, static_cast<uint8_t>(7), true, 16, GatherMaskParams(1, 1, 8, 0), n);
     }},
    {"pattern 8",
     [] {
         TPipe p;
         auto a = ones(p, 64), d = ones(p, 64);
         uint64_t n = 0;
         GatherMask(d, a, static_cast<uint8_t>(8), true, 16, GatherMaskParams(1, 1, 8, 0), n);
     }},
};

}  // namespace
