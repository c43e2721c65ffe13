// Tiny kernels that break the rules of operands, one each.
#pragma once
#include "model_rules.h"

namespace {

/// Sorts `repeats` runs of 32 ones, each operand that many floats off its place.
void sort32(uint32_t dst, uint32_t scores, uint32_t indices, int32_t repeats)
{
    TPipe p;
    const uint32_t n = 32 * static_cast<uint32_t>(repeats) + 8;
    auto d = ones(p, 2 * n), s = ones(p, n), i = ones(p, n);
    Sort32(d[dst], s[scores], i.ReinterpretCast<uint32_t>()[indices], repeats);
}

/// Merges two lists of 8 pairs into a tensor of `floats`, dst and the first list that many floats off their places.
void mergeEights(uint32_t dst, uint32_t list, bool suspension, uint32_t floats)
{
    TPipe p;
    auto a = ones(p, 64), d = ones(p, floats + 8);
    const uint16_t n[4] = {8, 8, 0, 0};
    const LocalTensor<float> out(d.addr, (floats + dst) * 4, -1);
    MrgSort(out[dst], MrgSortSrcList<float>(a[list], a[16], a, a), MrgSort4Info(n, suspension, 3, 1));
}

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
    {"misaligned dst of a masked instruction",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         Add(a[1], a, a, 8, 1, kPlain);
     }},
    {"misaligned src of a masked instruction",
     [] {
         TPipe p;
         auto a = ones(p, 128);
         Add(a, a[1], a, 8, 1, kPlain);
     }},
    {"misaligned dst of a block reduction",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         BlockReduceSum(b[1], a, 1, 64, 1, 1, 8);
     }},
    {"block reduction of 256 repeats",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         BlockReduceSum(b, a, 256, 64, 0, 1, 0);
     }},
    {"whole reduction past dst",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 8);
         WholeReduceSum(b, a, 64, 9, 1, 1, 0);
     }},
    {"block reduction past dst",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 8);
         BlockReduceSum(b, a, 2, 64, 1, 1, 0);
     }},
    {"misaligned dst of a whole reduction",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 8);
         WholeReduceSum(b.ReinterpretCast<uint8_t>()[2].ReinterpretCast<float>(), a, 64, 1, 1, 1, 8);
     }},
    {"misaligned offsets of a gather",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         Gather(b, a, a.ReinterpretCast<uint32_t>()[1], 0, 8);
     }},
    {"misaligned src of a gather",
     [] {
         TPipe p;
         auto a = ones(p, 64), b = ones(p, 64);
         Gather(b, a[1], a.ReinterpretCast<uint32_t>(), 0, 8);
     }},
    {"other select mode",
     [] {
         TPipe p;
         auto a = ones(p, 64);
         Select(a, a.ReinterpretCast<uint8_t>(), a, 0.0f, SELMODE::VSEL_CMPMASK_SPR, 8);
     }},
    {"short select mask",
     [] {
         TPipe p;
         auto a = ones(p, 320), m = ones(p, 8);
         Select(a, m.ReinterpretCast<uint8_t>(), a, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 264);
     }},
    {"misaligned select mask",
     [] {
         TPipe p;
         auto a = ones(p, 64), m = ones(p, 16);
         Select(a, m[1].ReinterpretCast<uint8_t>(), a, 0.0f, SELMODE::VSEL_TENSOR_SCALAR_MODE, 8);
     }},
    {"misaligned dst of Sort32", [] { sort32(1, 0, 0, 1); }},
    {"misaligned scores of Sort32", [] { sort32(0, 1, 0, 1); }},
    {"misaligned indices of Sort32", [] { sort32(0, 0, 1, 1); }},
    {"Sort32 of 256 repeats", [] { sort32(0, 0, 0, 256); }},
    {"misaligned dst of MrgSort", [] { mergeEights(1, 0, false, 64); }},
    {"MrgSort with suspension", [] { mergeEights(0, 0, true, 64); }},
    {"MrgSort into a short tensor", [] { mergeEights(0, 0, false, 24); }},
    {"misaligned list of MrgSort", [] { mergeEights(0, 1, false, 64); }},
    {"misaligned dst of GatherMask",
     [] {
         TPipe p;
         auto a = ones(p, 64), d = ones(p, 64);
         uint64_t n = 0;
         GatherMask(d[1], a, static_cast<uint8_t>(1), true, 16, GatherMaskParams(1, 1, 8, 0), n);
     }},
    {"GatherMask in normal mode",
     [] {
         TPipe p;
         auto a = ones(p, 64), d = ones(p, 64);
         uint64_t n = 0;
         GatherMask(d, a, static_cast<uint8_t>(1), false, 16, GatherMaskParams(1, 1, 8, 0), n);
     }},
};

}  // namespace
