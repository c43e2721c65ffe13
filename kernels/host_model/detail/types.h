// Scalar types, enumerations and parameter structs of the modelled API: the toolkit's names and constructor orders.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.h"

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR uint8_t *

enum event_t { EVENT_ID0 = 0, EVENT_ID1, EVENT_ID2, EVENT_ID3, EVENT_ID4, EVENT_ID5, EVENT_ID6, EVENT_ID7 };

/// bfloat16 storage; rounds to nearest even as Cast with CAST_RINT does.
struct bfloat16_t {
    uint16_t bits = 0;
    bfloat16_t() = default;
    bfloat16_t(float value)
    {
        uint32_t u;
        memcpy(&u, &value, sizeof u);
        const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
    operator float() const
    {
        const uint32_t u = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &u, sizeof value);
        return value;
    }
};

namespace AscendC {

enum class TPosition : uint8_t { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;
enum class HardEvent : uint8_t {
    MTE2_V, V_MTE2, MTE3_V, V_MTE3, V_V, MTE3_MTE2, MTE2_MTE3, S_V, V_S, S_MTE2, MTE2_S, S_MTE3, MTE3_S
};
enum class RoundMode : uint8_t { CAST_NONE = 0, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX = 0, ORDER_INDEX_VALUE, ORDER_ONLY_VALUE, ORDER_ONLY_INDEX };
enum class CMPMODE : uint8_t { LT = 0, GT, EQ, LE, GE, NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR = 0, VSEL_TENSOR_SCALAR_MODE, VSEL_TENSOR_TENSOR_MODE };
using TEventID = int8_t;

struct DataCopyExtParams {
    DataCopyExtParams(uint16_t count, uint32_t len, uint32_t src, uint32_t dst, uint32_t reserved)
        : blockCount(count), blockLen(len), srcStride(src), dstStride(dst), rsv(reserved) {}
    uint16_t blockCount;
    uint32_t blockLen, srcStride, dstStride, rsv;
};
template <typename T> struct DataCopyPadExtParams {
    DataCopyPadExtParams(bool pad, uint8_t left, uint8_t right, T value)
        : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
    bool isPad;
    uint8_t leftPadding, rightPadding;
    T paddingValue;
};
struct BinaryRepeatParams {
    BinaryRepeatParams(uint8_t dBlk, uint8_t s0Blk, uint8_t s1Blk, uint8_t dRep, uint8_t s0Rep, uint8_t s1Rep)
        : dstBlkStride(dBlk), src0BlkStride(s0Blk), src1BlkStride(s1Blk), dstRepStride(dRep), src0RepStride(s0Rep),
          src1RepStride(s1Rep) {}
    uint8_t dstBlkStride, src0BlkStride, src1BlkStride, dstRepStride, src0RepStride, src1RepStride;
};
struct BrcbRepeatParams {
    BrcbRepeatParams(uint16_t dBlk, uint16_t dRep) : dstBlkStride(dBlk), dstRepStride(dRep) {}
    uint16_t dstBlkStride, dstRepStride;
};
struct GatherMaskParams {
    GatherMaskParams(uint8_t s0Blk, uint16_t repeat, uint16_t s0Rep, uint8_t s1Rep)
        : src0BlockStride(s0Blk), repeatTimes(repeat), src0RepeatStride(s0Rep), src1RepeatStride(s1Rep) {}
    uint8_t src0BlockStride;
    uint16_t repeatTimes, src0RepeatStride;
    uint8_t src1RepeatStride;
};
struct MrgSort4Info {
    MrgSort4Info(const uint16_t lengths[4], bool suspend, uint16_t valid, uint16_t repeat)
        : ifExhaustedSuspension(suspend), validBit(valid), repeatTimes(static_cast<uint8_t>(repeat))
    {
        memcpy(elementLengths, lengths, sizeof elementLengths);
    }
    uint16_t elementLengths[4];
    bool ifExhaustedSuspension;
    uint16_t validBit;
    uint8_t repeatTimes;
};

template <typename A, typename B> struct IsSameType : std::is_same<A, B> {};

}  // namespace AscendC

namespace host_model {

/// Pipes {source, target} of a hardware event.
inline std::pair<pipe_t, pipe_t> pipesOf(AscendC::HardEvent event)
{
    static const std::pair<pipe_t, pipe_t> table[] = {
        {PIPE_MTE2, PIPE_V}, {PIPE_V, PIPE_MTE2}, {PIPE_MTE3, PIPE_V},    {PIPE_V, PIPE_MTE3}, {PIPE_V, PIPE_V},
        {PIPE_MTE3, PIPE_MTE2}, {PIPE_MTE2, PIPE_MTE3}, {PIPE_S, PIPE_V}, {PIPE_V, PIPE_S},    {PIPE_S, PIPE_MTE2},
        {PIPE_MTE2, PIPE_S}, {PIPE_S, PIPE_MTE3}, {PIPE_MTE3, PIPE_S}};
    return table[static_cast<int>(event)];
}

template <typename T> constexpr bool isFloat = std::is_same_v<T, float>;
template <typename T> constexpr bool isArithmetic = isFloat<T> || std::is_same_v<T, int32_t>;
template <typename T> constexpr uint32_t lanesOf = kRepeatBytes / sizeof(T);
template <typename T> constexpr uint32_t perBlock = kBlockBytes / sizeof(T);

}  // namespace host_model
