// Tiny kernels that break the rules of order and of queues, one each.
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

}  // namespace
