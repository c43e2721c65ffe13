// What each instruction does, in tiny kernels whose results the test knows.
#pragma once
#include "model_rules.h"

namespace {

using Plain = MatmulType<TPosition::GM, CubeFormat::ND, float>;
using Mm = Matmul<Plain, MatmulType<TPosition::GM, CubeFormat::ND, float, true>, Plain>;

void matmul(Mm &mm)  // output[0..63] = input[0..63] as 8x8 times itself transposed
{
    static const ::TCubeTiling shape{8, 8, 8, 8, 8, 8, 8};
    TPipe pipe;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), mm, &shape);
    mm.SetTensorA(input());
    mm.SetTensorB(input(), true);
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

template <uint8_t pattern> void gatherMask()
{
    show([](const LocalTensor<float> &d, const LocalTensor<float> &s) {
        uint64_t n = 0;
        GatherMask(d, s, pattern, true, 64, GatherMaskParams(1, 2, 8, 0), n);
    });
}

using T = LocalTensor<float>;
const Table kExamples = {
    {"Sort32",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 128);
             CreateVecIndex(o.Get<int32_t>(), 0, 32u);
             PipeBarrier<PIPE_V>();
             Sort32(d, s, o.Get<uint32_t>(), 1);
         });
     }},
    {"MrgSort",
     [] {
         show([](const T &d, const T &s) {
             const uint16_t n[4] = {4, 4, 4, 4};
             MrgSort(d, MrgSortSrcList<float>(s, s[8], s[16], s[24]), MrgSort4Info(n, false, 15, 1));
         });
     }},
    {"GatherMask 2",
     [] {
         show([](const T &d, const T &s) {
             uint64_t n = 0;
             GatherMask(d, s, static_cast<uint8_t>(2), true, 6, GatherMaskParams(1, 2, 2, 0), n);
         });
     }},
    {"GatherMask 4",
     [] {
         show([](const T &d, const T &s) {
             uint64_t n = 0;
             GatherMask(d, s, static_cast<uint8_t>(4), true, 16, GatherMaskParams(1, 1, 8, 0), n);
         });
     }},
    {"Brcb", [] { show([](const T &d, const T &s) { Brcb(d, s, 2, BrcbRepeatParams(1, 8)); }); }},
    {"BlockReduceSum",
     [] {
         show([](const T &d, const T &s) {
             const uint64_t m[2] = {0x0f000000000000ffULL, 0};
             BlockReduceSum(d, s, 1, m, 1, 1, 8);
         });
     }},
    {"WholeReduceMax",
     [] {
         show([](const T &d, const T &s) { WholeReduceMax(d, s, 10, 3, 2, 1, 8, ReduceOrder::ORDER_ONLY_VALUE); });
     }},
    {"broadcast block",
     [] { show([](const T &d, const T &s) { Add(d, s, s, 64, 2, BinaryRepeatParams(1, 1, 0, 8, 8, 1)); }); }},
    {"Gather",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 32);
             auto i = o.Get<int32_t>();
             CreateVecIndex(i, 0, 8u);
             PipeBarrier<PIPE_V>();
             Muls(i, i, -8, 8);
             PipeBarrier<PIPE_V>();
             Adds(i, i, 56, 8);
             PipeBarrier<PIPE_V>();
             Gather(d, s, i.ReinterpretCast<uint32_t>(), 4, 8);
         });
     }},
    {"CompareScalar and Select",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 32);
             auto m = o.Get<uint8_t>();
             CompareScalar(m, s, 3.0f, CMPMODE::GE, 64);
             PipeBarrier<PIPE_V>();
             Select(d, m, s, 0.5f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 64);
         });
     }},
    {"Cast to bf16 and back",
     [] {
         show([](const T &d, const T &s) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 128);
             auto b = o.Get<bfloat16_t>();
             Cast(b, s, RoundMode::CAST_RINT, 64);
             PipeBarrier<PIPE_V>();
             Cast(d, b, RoundMode::CAST_NONE, 64);
         });
     }},
    {"DataCopyPad",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 1024);
         auto t = b.Get<float>();
         Duplicate(t, -1.0f, 256);
         mindmoe::Fence<HardEvent::V_MTE2>();
         DataCopyPad(t, input(), DataCopyExtParams(2, 12, 8, 1, 0), DataCopyPadExtParams<float>(true, 1, 4, 9.0f));
         mindmoe::Fence<HardEvent::MTE2_MTE3>();
         mindmoe::Fence<HardEvent::V_MTE3>();
         DataCopy(output(), t, 256);
     }},
    {"atomic add of two cores",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         SetAtomicAdd<float>();
         DataCopy(output(), a, 8);
         SetAtomicNone();
     }},
    {"barrier between two cores",
     [] {
         TPipe p;
         auto a = ones(p, 8);
         mindmoe::Fence<HardEvent::V_MTE3>();
         if (GetBlockIdx() == 0) {
             DataCopy(output(), a, 8);
         }
         SyncAll<true>();
         if (GetBlockIdx() == 1) {
             DataCopy(a, output(), 8);
             mindmoe::Fence<HardEvent::MTE2_V>();
             Adds(a, a, 1.0f, 8);
             mindmoe::Fence<HardEvent::V_MTE3>();
             DataCopy(output()[8], a, 8);
         }
     }},
    {"Matmul",
     [] {
         Mm m;
         matmul(m);
         m.IterateAll(output());
     }},
    {"Add", [] { show([](const T &d, const T &s) { Add(d, s, s[128], 70); }); }},
    {"Sub", [] { show([](const T &d, const T &s) { Sub(d, s, s[128], 70); }); }},
    {"Mul", [] { show([](const T &d, const T &s) { Mul(d, s, s[128], 70); }); }},
    {"Div", [] { show([](const T &d, const T &s) { Div(d, s, s[128], 70); }); }},
    {"Max", [] { show([](const T &d, const T &s) { Max(d, s, s[128], 70); }); }},
    {"Min", [] { show([](const T &d, const T &s) { Min(d, s, s[128], 70); }); }},
    {"Adds", [] { show([](const T &d, const T &s) { Adds(d, s, 2.5f, 65); }); }},
    {"Muls", [] { show([](const T &d, const T &s) { Muls(d, s, -3.0f, 65); }); }},
    {"Maxs", [] { show([](const T &d, const T &s) { Maxs(d, s, 9.0f, 65); }); }},
    {"Mins", [] { show([](const T &d, const T &s) { Mins(d, s, 9.0f, 65); }); }},
    {"Exp", [] { show([](const T &d, const T &s) { Exp(d, s, 65); }); }},
    {"Ln", [] { show([](const T &d, const T &s) { Ln(d, s, 65); }); }},
    {"Axpy", [] { show([](const T &d, const T &s) { Axpy(d, s, 2.0f, 65); }); }},
    {"every second block", [] { show([](const T &d, const T &s) { Add(d, s, s, 16, 2, BinaryRepeatParams(2, 1, 1, 16, 8, 8)); }); }},
    {"WholeReduceSum", [] { show([](const T &d, const T &s) { WholeReduceSum(d, s, 64, 2, 3, 1, 8); }); }},
    {"BlockReduceMax", [] { show([](const T &d, const T &s) { BlockReduceMax(d, s, 2, 64, 1, 1, 8); }); }},
    {"Duplicate by bits",
     [] {
         show([](const T &d, const T &) {
             uint64_t even[2] = {0x5555555555555555ULL, 0};
             Duplicate(d, 7.0f, even, 2, 1, 16);
         });
     }},
    {"CreateVecIndex, ShiftRight and Cast",
     [] {
         show([](const T &d, const T &) {
             TPipe p;
             Buf o;
             p.InitBuffer(o, 256);
             auto i = o.Get<int32_t>();
             CreateVecIndex(i, 5, 64u);
             PipeBarrier<PIPE_V>();
             ShiftRight(i, i, 2, 64);
             PipeBarrier<PIPE_V>();
             Cast(d, i, RoundMode::CAST_NONE, 64);
         });
     }},
    {"GatherMask 1", [] { gatherMask<1>(); }},
    {"GatherMask 3", [] { gatherMask<3>(); }},
    {"GatherMask 5", [] { gatherMask<5>(); }},
    {"GatherMask 6", [] { gatherMask<6>(); }},
    {"GatherMask 7", [] { gatherMask<7>(); }},
    {"MrgSort of two",
     [] {
         show([](const T &d, const T &s) {
             const uint16_t n[4] = {3, 4, 0, 0};
             MrgSort(d, MrgSortSrcList<float>(s, s[8], s, s), MrgSort4Info(n, false, 3, 1));
         });
     }},
    {"MrgSort of three",
     [] {
         show([](const T &d, const T &s) {
             const uint16_t n[4] = {4, 4, 4, 0};
             MrgSort(d, MrgSortSrcList<float>(s, s[8], s[16], s), MrgSort4Info(n, false, 7, 1));
         });
     }},
    {"DataCopyPad of a store",
     [] {
         TPipe p;
         Buf b;
         p.InitBuffer(b, 1024);
         auto t = b.Get<float>();
         DataCopy(t, input(), 256);
         mindmoe::Fence<HardEvent::MTE2_MTE3>();
         DataCopyPad(output(), t, DataCopyExtParams(3, 12, 1, 8, 0));
     }},
    {"Matmul of a transposed left operand",
     [] {
         static const ::TCubeTiling shape{4, 8, 8, 8, 4, 8, 8};
         Matmul<MatmulType<TPosition::GM, CubeFormat::ND, float, true>, Plain, Plain> m;
         TPipe pipe;
         REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), m, &shape);
         m.SetTensorA(input(), true);
         m.SetTensorB(input()[32]);
         m.IterateAll(output());
     }},
};

}  // namespace
