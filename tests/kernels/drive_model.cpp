// Tiny kernels, each of which breaks one rule of the machine, and a few that show what an instruction does.
#define MINDMOE_USES_MATMUL
#include "driver.h"
#include "op_kernel/common.h"

using namespace AscendC;

namespace {

using Body = void (*)();
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

std::map<std::string, Body> ordering()
{
    return {
        {"V reads what V wrote", [] { TPipe p; auto a = ones(p, 64); Adds(a, a, 1.0f, 64); Adds(a, a, 1.0f, 64); }},
        {"V overwrites what V wrote", [] { TPipe p; auto a = ones(p, 64); Duplicate(a, 1.0f, 64); Duplicate(a, 2.0f, 64); }},
        {"V overwrites what V reads", [] { TPipe p; auto a = ones(p, 64), b = ones(p, 64); Adds(b, a, 1.0f, 64); Duplicate(a, 2.0f, 64); }},
        {"V reads what MTE2 loads", [] { TPipe p; auto a = ones(p, 64); mindmoe::Fence<HardEvent::V_MTE2>(); DataCopy(a, input(), 64); Adds(a, a, 1.0f, 64); }},
        {"MTE2 overwrites what V reads", [] { TPipe p; auto a = ones(p, 64); DataCopy(a, input(), 64); }},
        {"MTE3 stores what V writes", [] { TPipe p; auto a = ones(p, 64); DataCopy(output(), a, 64); }},
        {"S reads what V writes", [] { TPipe p; auto a = ones(p, 64); a.GetValue(0); }},
        {"V reads what S writes", [] { TPipe p; auto a = ones(p, 64); mindmoe::Fence<HardEvent::V_S>(); a.SetValue(0, 2.0f); Adds(a, a, 1.0f, 64); }},
        {"MTE2 reads GM that MTE3 writes", [] { TPipe p; auto a = ones(p, 64); mindmoe::Fence<HardEvent::V_MTE3>(); DataCopy(output(), a, 64);
             auto b = ones(p, 64); mindmoe::Fence<HardEvent::V_MTE2>(); DataCopy(b, output(), 64); }},
        {"a flag orders only what precedes it", [] { TPipe p; auto a = ones(p, 64); SetFlag<HardEvent::V_MTE3>(0); Adds(a, a, 1.0f, 64);
             WaitFlag<HardEvent::V_MTE3>(0); DataCopy(output(), a, 64); }},
        {"a repeat reads an earlier one", [] { TPipe p; auto a = ones(p, 256); Add(a[64], a, a, 64, 2, kPlain); }},
        {"uninitialised", [] { TPipe p; Buf b; p.InitBuffer(b, 256); auto a = b.Get<float>(); Adds(a, a, 1.0f, 64); }},
        {"flag set twice", [] { SetFlag<HardEvent::V_S>(0); SetFlag<HardEvent::V_S>(0); }},
        {"wait before set", [] { WaitFlag<HardEvent::V_S>(0); }},
        {"flag left set", [] { SetFlag<HardEvent::V_S>(0); }},
        {"event id 8", [] { SetFlag<HardEvent::V_S>(8); }},
        {"nine event ids", [] { for (int i = 0; i < 9; ++i) { TPipe::AllocEventID<HardEvent::V_S>(); } }},
    };
}

std::map<std::string, Body> queues()
{
    return {
        {"double free", [] { TPipe p; In q; p.InitBuffer(q, 1, 256); auto t = q.AllocTensor<float>(); q.FreeTensor(t); q.FreeTensor(t); }},
        {"enqueue what is free", [] { TPipe p; In q; p.InitBuffer(q, 1, 256); auto t = q.AllocTensor<float>(); q.FreeTensor(t); q.EnQue(t); }},
        {"dequeue from an empty queue", [] { TPipe p; In q; p.InitBuffer(q, 1, 256); q.DeQue<float>(); }},
        {"allocate beyond the buffers", [] { TPipe p; In q; p.InitBuffer(q, 1, 256); q.AllocTensor<float>(); q.AllocTensor<float>(); }},
        {"exceed the depth", [] { TPipe p; In q; p.InitBuffer(q, 2, 256); q.EnQue(q.AllocTensor<float>()); q.EnQue(q.AllocTensor<float>()); }},
        {"never freed", [] { TPipe p; In q; p.InitBuffer(q, 1, 256); q.AllocTensor<float>(); }},
        {"tensor of another queue", [] { TPipe p; In q; Out r; p.InitBuffer(q, 1, 256); p.InitBuffer(r, 1, 256); auto t = q.AllocTensor<float>(); r.EnQue(t); }},
        {"queue without buffers", [] { TPipe p; In q; q.AllocTensor<float>(); }},
        {"InitBuffer twice", [] { TPipe p; In q; p.InitBuffer(q, 1, 256); p.InitBuffer(q, 1, 256); }},
        {"UB overflow", [] { TPipe p; Buf b; p.InitBuffer(b, 184 * 1024 + 32); }},
        {"65 buffers", [] { TPipe p; for (int i = 0; i < 65; ++i) { Buf b; p.InitBuffer(b, 32); } }},
        {"buffer view too long", [] { TPipe p; Buf b; p.InitBuffer(b, 32); b.Get<float>(9); }},
        {"tensor offset too long", [] { TPipe p; Buf b; p.InitBuffer(b, 32); b.Get<float>()[9]; }},
        {"scalar index too long", [] { TPipe p; auto a = ones(p, 8); a.GetValue(8); }},
    };
}

std::map<std::string, Body> operands()
{
    return {
        {"misaligned dst", [] { TPipe p; auto a = ones(p, 128); Duplicate(a[1], 1.0f, 8); }},
        {"misaligned src", [] { TPipe p; auto a = ones(p, 128), b = ones(p, 64); Adds(b, a[1], 1.0f, 8); }},
        {"operand overrun", [] { TPipe p; auto a = ones(p, 64); Add(a, a, a, 64, 2, kPlain); }},
        {"count overrun", [] { TPipe p; auto a = ones(p, 64); Duplicate(a, 1.0f, 65); }},
        {"count 0", [] { TPipe p; auto a = ones(p, 64); Duplicate(a, 1.0f, 0); }},
        {"repeat 256 wraps to 0", [] { TPipe p; auto a = ones(p, 64); Add(a, a, a, 64, static_cast<uint8_t>(256), BinaryRepeatParams(1, 1, 1, 0, 0, 0)); }},
        {"reduce repeat 256", [] { TPipe p; auto a = ones(p, 256), b = ones(p, 256); WholeReduceSum(b, a, 64, 256, 1, 1, 0); }},
        {"mask of 65 lanes", [] { TPipe p; auto a = ones(p, 128); Add(a, a, a, 65, 1, kPlain); }},
        {"mask of 0 lanes", [] { TPipe p; auto a = ones(p, 128); Add(a, a, a, 0, 1, kPlain); }},
        {"dst block stride 0", [] { TPipe p; auto a = ones(p, 128); Add(a, a, a, 64, 1, BinaryRepeatParams(0, 1, 1, 8, 8, 8)); }},
        {"reduction onto its source", [] { TPipe p; auto a = ones(p, 128); WholeReduceSum(a, a, 64, 2, 1, 1, 8); }},
        {"block reduction onto its source", [] { TPipe p; auto a = ones(p, 128); const uint64_t m[2] = {~0ULL, 0}; BlockReduceSum(a, a, 1, m, 1, 1, 8); }},
        {"value and index reduction", [] { TPipe p; auto a = ones(p, 64), b = ones(p, 64); WholeReduceMax(b, a, 64, 1, 1, 1, 8, ReduceOrder::ORDER_VALUE_INDEX); }},
        {"comparison of part of a repeat", [] { TPipe p; auto a = ones(p, 64); Buf b; p.InitBuffer(b, 32); CompareScalar(b.Get<uint8_t>(), a, 1.0f, CMPMODE::LE, 63); }},
        {"rounding of a widening cast", [] { TPipe p; Buf b; p.InitBuffer(b, 32); auto a = ones(p, 8); Cast(a, b.Get<bfloat16_t>(), RoundMode::CAST_RINT, 8); }},
        {"no rounding of a narrowing cast", [] { TPipe p; Buf b; p.InitBuffer(b, 32); auto a = ones(p, 8); Cast(b.Get<bfloat16_t>(), a, RoundMode::CAST_NONE, 8); }},
        {"gather beyond the source", [] { TPipe p; auto a = ones(p, 8), b = ones(p, 8); Buf o; p.InitBuffer(o, 32); auto i = o.Get<uint32_t>(); Duplicate(i, 32u, 8);
             PipeBarrier<PIPE_V>(); Gather(a, b, i, 0, 8); }},
        {"Sort32 of a short table", [] { TPipe p; auto a = ones(p, 64), d = ones(p, 128); Buf o; p.InitBuffer(o, 128); Sort32(d, a, o.Get<uint32_t>(), 2); }},
        {"MrgSort of lists 1 and 3", [] { TPipe p; auto a = ones(p, 64), d = ones(p, 128); const uint16_t n[4] = {8, 8, 8, 8}; MrgSort(d, MrgSortSrcList<float>(a, a, a, a), MrgSort4Info(n, false, 5, 1)); }},
        {"MrgSort onto its source", [] { TPipe p; auto a = ones(p, 64); const uint16_t n[4] = {8, 8, 0, 0}; MrgSort(a, MrgSortSrcList<float>(a, a[16], a, a), MrgSort4Info(n, false, 3, 1)); }},
        {"MrgSort of a short list", [] { TPipe p; auto a = ones(p, 8), d = ones(p, 64); const uint16_t n[4] = {8, 8, 0, 0}; MrgSort(d, MrgSortSrcList<float>(a, a, a, a), MrgSort4Info(n, false, 3, 1)); }},
        {"GatherMask into a short tensor", [] { TPipe p; auto a = ones(p, 64), d = ones(p, 8); uint64_t n = 0; GatherMask(d, a, static_cast<uint8_t>(7), true, 16, GatherMaskParams(1, 1, 8, 0), n); }},
        {"pattern 8", [] { TPipe p; auto a = ones(p, 64), d = ones(p, 64); uint64_t n = 0; GatherMask(d, a, static_cast<uint8_t>(8), true, 16, GatherMaskParams(1, 1, 8, 0), n); }},
    };
}

std::map<std::string, Body> memory()
{
    return {
        {"DataCopy of part of a block", [] { TPipe p; Buf b; p.InitBuffer(b, 64); DataCopy(b.Get<float>(), input(), 9); }},
        {"DataCopy overrun", [] { TPipe p; Buf b; p.InitBuffer(b, 32); DataCopy(b.Get<float>(), input(), 16); }},
        {"4096 blocks", [] { TPipe p; Buf b; p.InitBuffer(b, 32); DataCopyPad(b.Get<float>(), input(), DataCopyExtParams(4096, 4, 0, 0, 0), DataCopyPadExtParams<float>(false, 0, 0, 0)); }},
        {"empty block", [] { TPipe p; Buf b; p.InitBuffer(b, 32); DataCopyPad(b.Get<float>(), input(), DataCopyExtParams(1, 0, 0, 0, 0), DataCopyPadExtParams<float>(false, 0, 0, 0)); }},
        {"padding of 36 bytes", [] { TPipe p; Buf b; p.InitBuffer(b, 96); DataCopyPad(b.Get<float>(), input(), DataCopyExtParams(1, 4, 0, 0, 0), DataCopyPadExtParams<float>(true, 0, 9, 0)); }},
        {"read past the GlobalTensor", [] { TPipe p; Buf b; p.InitBuffer(b, 2048); DataCopy(b.Get<float>(), input()[64], 200); }},
        {"GlobalTensor offset", [] { input()[100000]; }},
        {"outside every buffer", [] { TPipe p; Buf b; p.InitBuffer(b, 32); GlobalTensor<float> g; float own[8] = {}; g.SetGlobalBuffer(own, 8); DataCopy(b.Get<float>(), g, 8); }},
        {"write to an input", [] { TPipe p; auto a = ones(p, 8); mindmoe::Fence<HardEvent::V_MTE3>(); DataCopy(input(), a, 8); }},
        {"scalar read of an output", [] { output().GetValue(0); }},
        {"two cores write", [] { TPipe p; auto a = ones(p, 8); mindmoe::Fence<HardEvent::V_MTE3>(); DataCopy(output(), a, 8); }},
        {"one core writes, one reads", [] { TPipe p; auto a = ones(p, 8); mindmoe::Fence<HardEvent::V_MTE3>(); mindmoe::Fence<HardEvent::V_MTE2>();
             if (GetBlockIdx() == 0) { DataCopy(output(), a, 8); } else { DataCopy(a, output(), 8); } }},
        {"two cores add without atomics on one", [] { TPipe p; auto a = ones(p, 8); mindmoe::Fence<HardEvent::V_MTE3>();
             if (GetBlockIdx() == 0) { SetAtomicAdd<float>(); } DataCopy(output(), a, 8); SetAtomicNone(); }},
        {"a core misses the barrier", [] { if (GetBlockIdx() == 0) { SyncAll<true>(); } }},
        {"atomic left on", [] { SetAtomicAdd<float>(); }},
    };
}

using Mm = Matmul<MatmulType<TPosition::GM, CubeFormat::ND, float>, MatmulType<TPosition::GM, CubeFormat::ND, float, true>,
                  MatmulType<TPosition::GM, CubeFormat::ND, float>>;

void matmul(Mm &mm)  // output[0..63] = input[0..63] as 8x8 times itself transposed
{
    static const tiling::TCubeTiling shape{8, 8, 8, 8, 8, 8, 8};
    TPipe pipe;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &shape);
    mm.SetTensorA(input());
    mm.SetTensorB(input(), true);
}

std::map<std::string, Body> cube()
{
    return {
        {"transposed A not declared", [] { Mm m; matmul(m); m.SetTensorA(input(), true); }},
        {"larger than the tiling", [] { Mm m; matmul(m); m.SetTail(9, 8, 8); }},
        {"object not initialised", [] { Mm m; m.IterateAll(output()); }},
        {"operand past the tensor", [] { Mm m; matmul(m); m.SetTensorA(input()[250]); m.IterateAll(output()); }},
        {"columns exceed the pitch", [] { Mm m; matmul(m); m.SetOrgShape(8, 4, 8, 8, 4); m.IterateAll(output()); }},
        {"cube overwrites what MTE2 reads", [] { Mm m; matmul(m); m.IterateAll(output()); TPipe p; Buf b; p.InitBuffer(b, 256); DataCopy(b.Get<float>(), output(), 64); m.IterateAll(output()); }},
    };
}

// What an instruction does, on input[0..] and into output[0..]: one core, values checked by the test.
void show(void (*body)(const LocalTensor<float> &dst, const LocalTensor<float> &src))
{
    TPipe pipe;
    Buf source, target;
    pipe.InitBuffer(source, 1024);
    pipe.InitBuffer(target, 1024);
    LocalTensor<float> src = source.Get<float>(), dst = target.Get<float>();
    DataCopy(src, input(), 256);
    Duplicate(dst, -1.0f, 256);
    mindmoe::Fence<HardEvent::MTE2_V>();
    PipeBarrier<PIPE_V>();
    body(dst, src);
    mindmoe::Fence<HardEvent::V_MTE3>();
    DataCopy(output(), dst, 256);
}

using T = LocalTensor<float>;
std::map<std::string, Body> examples()
{
    return {
        {"Sort32", [] { show([](const T &d, const T &s) { TPipe p; Buf o; p.InitBuffer(o, 128); CreateVecIndex(o.Get<int32_t>(), 0, 32u); PipeBarrier<PIPE_V>(); Sort32(d, s, o.Get<uint32_t>(), 1); }); }},
        {"MrgSort", [] { show([](const T &d, const T &s) { const uint16_t n[4] = {4, 4, 4, 4}; MrgSort(d, MrgSortSrcList<float>(s, s[8], s[16], s[24]), MrgSort4Info(n, false, 15, 1)); }); }},
        {"GatherMask 2", [] { show([](const T &d, const T &s) { uint64_t n = 0; GatherMask(d, s, static_cast<uint8_t>(2), true, 6, GatherMaskParams(1, 2, 2, 0), n); }); }},
        {"GatherMask 4", [] { show([](const T &d, const T &s) { uint64_t n = 0; GatherMask(d, s, static_cast<uint8_t>(4), true, 16, GatherMaskParams(1, 1, 8, 0), n); }); }},
        {"Brcb", [] { show([](const T &d, const T &s) { Brcb(d, s, 2, BrcbRepeatParams(1, 8)); }); }},
        {"BlockReduceSum", [] { show([](const T &d, const T &s) { const uint64_t m[2] = {0x0f000000000000ffULL, 0}; BlockReduceSum(d, s, 1, m, 1, 1, 8); }); }},
        {"WholeReduceMax", [] { show([](const T &d, const T &s) { WholeReduceMax(d, s, 10, 3, 2, 1, 8, ReduceOrder::ORDER_ONLY_VALUE); }); }},
        {"broadcast block", [] { show([](const T &d, const T &s) { Add(d, s, s, 64, 2, BinaryRepeatParams(1, 1, 0, 8, 8, 1)); }); }},
        {"Gather", [] { show([](const T &d, const T &s) { TPipe p; Buf o; p.InitBuffer(o, 32); auto i = o.Get<int32_t>(); CreateVecIndex(i, 0, 8u); PipeBarrier<PIPE_V>();
             Muls(i, i, -8, 8); PipeBarrier<PIPE_V>(); Adds(i, i, 56, 8); PipeBarrier<PIPE_V>(); Gather(d, s, i.ReinterpretCast<uint32_t>(), 4, 8); }); }},
        {"CompareScalar and Select", [] { show([](const T &d, const T &s) { TPipe p; Buf o; p.InitBuffer(o, 32); auto m = o.Get<uint8_t>(); CompareScalar(m, s, 3.0f, CMPMODE::GE, 64); PipeBarrier<PIPE_V>();
             Select(d, m, s, 0.5f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 64); }); }},
        {"Cast to bf16 and back", [] { show([](const T &d, const T &s) { TPipe p; Buf o; p.InitBuffer(o, 128); auto b = o.Get<bfloat16_t>(); Cast(b, s, RoundMode::CAST_RINT, 64); PipeBarrier<PIPE_V>(); Cast(d, b, RoundMode::CAST_NONE, 64); }); }},
        {"DataCopyPad", [] { TPipe p; Buf b; p.InitBuffer(b, 1024); auto t = b.Get<float>(); Duplicate(t, -1.0f, 256); mindmoe::Fence<HardEvent::V_MTE2>();
             DataCopyPad(t, input(), DataCopyExtParams(2, 12, 8, 1, 0), DataCopyPadExtParams<float>(true, 1, 4, 9.0f)); mindmoe::Fence<HardEvent::MTE2_MTE3>(); mindmoe::Fence<HardEvent::V_MTE3>(); DataCopy(output(), t, 256); }},
        {"atomic add of two cores", [] { TPipe p; auto a = ones(p, 8); mindmoe::Fence<HardEvent::V_MTE3>(); SetAtomicAdd<float>(); DataCopy(output(), a, 8); SetAtomicNone(); }},
        {"barrier between two cores", [] { TPipe p; auto a = ones(p, 8); mindmoe::Fence<HardEvent::V_MTE3>(); if (GetBlockIdx() == 0) { DataCopy(output(), a, 8); } SyncAll<true>();
             if (GetBlockIdx() == 1) { DataCopy(a, output(), 8); mindmoe::Fence<HardEvent::MTE2_V>(); Adds(a, a, 1.0f, 8); mindmoe::Fence<HardEvent::V_MTE3>(); DataCopy(output()[8], a, 8); } }},
        {"Matmul", [] { Mm m; matmul(m); m.IterateAll(output()); }},
    };
}

struct NoTiling {
    uint32_t unused = 0;
};

std::map<std::string, Body> everything()
{
    std::map<std::string, Body> all;
    for (const auto &part : {ordering(), queues(), operands(), memory(), cube(), examples()}) {
        all.insert(part.begin(), part.end());
    }
    return all;
}

// ints: number of cores. The name of the body arrives as the second input.
std::string runBody(const Call &c)
{
    struct {
        NoTiling data;
        uint32_t cores;
        uint64_t workspaceBytes = 0;
        uint32_t ubBytes = host_model::kUbUsable;
        const char *error = nullptr;
    } plan{{}, c.u(0)};
    static const auto bodies = everything();
    const std::string name(reinterpret_cast<const char *>(c.in(1)), c.inputs[1].bytes);
    call = &c;
    return launch(c, plan, [&](GM_ADDR, GM_ADDR) { bodies.at(name)(); });
}

std::string listBodies(const Call &)
{
    std::string names;
    for (const auto &part : {ordering(), queues(), operands(), memory(), cube()}) {
        for (const auto &entry : part) {
            names += entry.first + "\n";
        }
    }
    return names;
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"run", runBody}, {"list", listBodies}};
    return table;
}
