// Sort32, MrgSort and GatherMask: sorting of (score, index) pairs and compaction.
#pragma once
#include "vector.h"

namespace host_model {

constexpr uint32_t kPairBytes = 8;  // float score in the low word, index in the high word

struct Pair {
    float score;
    uint32_t index;
};

}  // namespace host_model

namespace AscendC {

/// Sorts each 32 scores descending, ties in index order, into 32 (score, index) pairs.
template <typename T>
inline void Sort32(const LocalTensor<T> &dst, const LocalTensor<T> &scores, const LocalTensor<uint32_t> &indices,
                   const int32_t repeatTime)
{
    using namespace host_model;
    static_assert(isFloat<T>, "model: Sort32 of float");
    beginInstruction("Sort32", PIPE_V);
    requireAligned(dst, "dst");
    requireAligned(scores, "scores");
    requireAligned(indices, "indices");
    HOST_MODEL_REQUIRE(repeatTime >= 1 && repeatTime <= 255, "repeat count %d is outside [1, 255]", repeatTime);
    const size_t n = static_cast<size_t>(repeatTime) * 32;
    HOST_MODEL_REQUIRE(n * kPairBytes <= dst.bytes && n * sizeof(T) <= scores.bytes && n * 4 <= indices.bytes,
                       "operand shorter than %zu elements", n);
    for (int32_t r = 0; r < repeatTime; ++r) {
        core->step = r + 1;
        Pair pairs[32];
        for (int i = 0; i < 32; ++i) {
            pairs[i].score = load<float>(scores.addr + (r * 32 + i) * sizeof(float));
            pairs[i].index = load<uint32_t>(indices.addr + (r * 32 + i) * sizeof(uint32_t));
        }
        std::stable_sort(pairs, pairs + 32, [](const Pair &a, const Pair &b) { return a.score > b.score; });
        for (int i = 0; i < 32; ++i) {
            store<Pair>(dst.addr + (r * 32 + i) * kPairBytes, pairs[i]);
        }
    }
}

template <typename T> struct MrgSortSrcList {
    MrgSortSrcList(const LocalTensor<T> &a, const LocalTensor<T> &b, const LocalTensor<T> &c, const LocalTensor<T> &d)
        : src1(a), src2(b), src3(c), src4(d) {}
    LocalTensor<T> src1, src2, src3, src4;
};

/// Merges 2 to 4 descending lists of pairs; among equal scores the earlier list comes first.
template <typename T>
inline void MrgSort(const LocalTensor<T> &dst, const MrgSortSrcList<T> &src, const MrgSort4Info &p)
{
    using namespace host_model;
    static_assert(isFloat<T>, "model: MrgSort of float");
    beginInstruction("MrgSort", PIPE_V);
    requireAligned(dst, "dst");
    HOST_MODEL_REQUIRE(p.validBit == 3 || p.validBit == 7 || p.validBit == 15, "validBit %u", p.validBit);
    HOST_MODEL_REQUIRE(p.repeatTimes == 1 && !p.ifExhaustedSuspension, "model: one repeat, no suspension");
    const LocalTensor<T> *lists[4] = {&src.src1, &src.src2, &src.src3, &src.src4};
    uint32_t total = 0;
    for (int q = 0; q < 4; ++q) {
        total += p.validBit >> q & 1 ? p.elementLengths[q] : 0;
    }
    HOST_MODEL_REQUIRE(total * kPairBytes <= dst.bytes, "dst is shorter than %u pairs", total);
    std::vector<Pair> merged[4];
    for (int q = 0; q < 4; ++q) {
        if (p.validBit >> q & 1) {
            const uint8_t *a = lists[q]->addr;
            const uint32_t n = p.elementLengths[q];
            requireAligned(*lists[q], "list", kPairBytes);
            HOST_MODEL_REQUIRE(n <= 4095 && n * kPairBytes <= lists[q]->bytes, "list %d is shorter than %u", q, n);
            HOST_MODEL_REQUIRE(a + n * kPairBytes <= dst.addr || a >= dst.addr + total * kPairBytes,
                               "list %d overlaps dst", q);
            for (uint32_t i = 0; i < n; ++i) {
                merged[q].push_back(load<Pair>(a + i * kPairBytes));
            }
        }
    }
    size_t next[4] = {0, 0, 0, 0};
    for (uint32_t out = 0; out < total; ++out) {
        int best = -1;
        for (int q = 0; q < 4; ++q) {
            if (next[q] < merged[q].size() && (best < 0 || merged[q][next[q]].score > merged[best][next[best]].score)) {
                best = q;
            }
        }
        store<Pair>(dst.addr + out * kPairBytes, merged[best][next[best]++]);
    }
}

/// Compacts the lanes that a fixed pattern selects: 1 even, 2 odd, 3..6 every fourth, 7 all. In counter mode
/// (reduceMode) each repeat covers `mask` elements.
template <typename T>
inline void GatherMask(const LocalTensor<T> &dst, const LocalTensor<T> &src, const uint8_t pattern,
                       const bool reduceMode, const uint32_t mask, const GatherMaskParams &p, uint64_t &selected)
{
    using namespace host_model;
    static_assert(sizeof(T) == 4, "model: GatherMask of 4-byte elements");
    static const uint8_t lanesOfFour[8] = {0x0, 0x5, 0xA, 0x1, 0x2, 0x4, 0x8, 0xF};
    beginInstruction("GatherMask", PIPE_V);
    requireAligned(dst, "dst");
    HOST_MODEL_REQUIRE(pattern >= 1 && pattern <= 7, "pattern %u", pattern);
    HOST_MODEL_REQUIRE(reduceMode && mask >= 1, "model: counter mode with a mask");
    const Operand<T> in = strided(src, p.src0BlockStride, p.src0RepeatStride);
    uint32_t out = 0;
    for (uint32_t r = 0; r < p.repeatTimes; ++r) {
        core->step = r + 1;
        for (uint32_t i = 0; i < mask; ++i) {
            if (lanesOfFour[pattern] >> (i % 4) & 1) {
                HOST_MODEL_REQUIRE((out + 1) * sizeof(T) <= dst.bytes, "dst is shorter than the selection");
                const T value = in.get(r, i);
                store<T>(dst.addr + out++ * sizeof(T), value);
            }
        }
    }
    selected = out;
}

}  // namespace AscendC
