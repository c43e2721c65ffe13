// DataCopy and DataCopyPad between GM and UB.
#pragma once
#include "tensor.h"

namespace host_model {

template <typename T>
inline void requireInside(const AscendC::GlobalTensor<T> &t, uint64_t offsetBytes, uint64_t bytes)
{
    HOST_MODEL_REQUIRE(offsetBytes + bytes <= t.size * sizeof(T), "byte %llu of a GlobalTensor of %llu",
                       static_cast<unsigned long long>(offsetBytes + bytes),
                       static_cast<unsigned long long>(t.size * sizeof(T)));
}

inline void requireLimits(const AscendC::DataCopyExtParams &p, size_t elementBytes)
{
    HOST_MODEL_REQUIRE(p.blockCount >= 1 && p.blockCount <= 4095, "blockCount %u is outside [1, 4095]", p.blockCount);
    HOST_MODEL_REQUIRE(p.blockLen >= 1 && p.blockLen <= 2097151 && p.blockLen % elementBytes == 0, "blockLen %u",
                       p.blockLen);
}

template <typename T> inline void writeGm(T *dst, const uint8_t *src, uint32_t bytes)
{
    touchGm(dst, bytes, PIPE_MTE3, true);
    if (!core->atomicAdd) {
        memcpy(dst, src, bytes);
        return;
    }
    for (uint32_t i = 0; i < bytes / sizeof(T); ++i) {
        T value;
        memcpy(&value, src + i * sizeof(T), sizeof(T));
        dst[i] = static_cast<T>(dst[i] + value);
    }
}

}  // namespace host_model

namespace AscendC {

template <typename T>
inline void DataCopy(const LocalTensor<T> &dst, const GlobalTensor<T> &src, const uint32_t count)
{
    using namespace host_model;
    beginInstruction("DataCopy GM->UB", PIPE_MTE2);
    const uint32_t bytes = count * static_cast<uint32_t>(sizeof(T));
    requireAligned(dst, "dst");
    HOST_MODEL_REQUIRE(bytes > 0 && bytes % kBlockBytes == 0, "%u bytes are not whole blocks: use DataCopyPad", bytes);
    HOST_MODEL_REQUIRE(bytes <= dst.bytes, "%u bytes into a tensor of %u", bytes, dst.bytes);
    requireInside(src, 0, bytes);
    touchGm(src.ptr, bytes, PIPE_MTE2, false);
    touchUb(dst.addr, bytes, PIPE_MTE2, true);
    memcpy(dst.addr, src.ptr, bytes);
}

template <typename T>
inline void DataCopy(const GlobalTensor<T> &dst, const LocalTensor<T> &src, const uint32_t count)
{
    using namespace host_model;
    beginInstruction("DataCopy UB->GM", PIPE_MTE3);
    const uint32_t bytes = count * static_cast<uint32_t>(sizeof(T));
    requireAligned(src, "src");
    HOST_MODEL_REQUIRE(bytes > 0 && bytes % kBlockBytes == 0, "%u bytes are not whole blocks: use DataCopyPad", bytes);
    HOST_MODEL_REQUIRE(bytes <= src.bytes, "%u bytes from a tensor of %u", bytes, src.bytes);
    requireInside(dst, 0, bytes);
    touchUb(src.addr, bytes, PIPE_MTE3, false);
    writeGm(dst.ptr, src.addr, bytes);
}

/// GM to UB: blocks of blockLen bytes, srcStride bytes apart in GM, each rounded up to 32 bytes and dstStride blocks
/// of 32 bytes apart in UB.
template <typename T>
inline void DataCopyPad(const LocalTensor<T> &dst, const GlobalTensor<T> &src, const DataCopyExtParams &p,
                        const DataCopyPadExtParams<T> &pad)
{
    using namespace host_model;
    beginInstruction("DataCopyPad GM->UB", PIPE_MTE2);
    requireAligned(dst, "dst");
    requireLimits(p, sizeof(T));
    const uint32_t left = pad.leftPadding * static_cast<uint32_t>(sizeof(T));
    const uint32_t right = pad.rightPadding * static_cast<uint32_t>(sizeof(T));
    HOST_MODEL_REQUIRE(left <= 32 && right <= 32, "padding of more than 32 bytes");
    const uint32_t row = (left + p.blockLen + right + 31) / 32 * 32;
    for (uint32_t k = 0; k < p.blockCount; ++k) {
        const uint64_t to = static_cast<uint64_t>(k) * (row + p.dstStride * kBlockBytes);
        const uint64_t from = static_cast<uint64_t>(k) * (p.blockLen + p.srcStride);
        HOST_MODEL_REQUIRE(to + row <= dst.bytes, "byte %llu of a tensor of %u",
                           static_cast<unsigned long long>(to + row), dst.bytes);
        requireInside(src, from, p.blockLen);
        const uint8_t *source = reinterpret_cast<const uint8_t *>(src.ptr) + from;
        uint8_t *target = dst.addr + to;
        touchGm(source, p.blockLen, PIPE_MTE2, false);
        touchUb(target, row, PIPE_MTE2, true);
        memset(target, 0xFF, row);  // without isPad the fill is unspecified
        if (pad.isPad) {
            for (uint32_t i = 0; i < row; i += sizeof(T)) {
                memcpy(target + i, &pad.paddingValue, sizeof(T));
            }
        }
        memcpy(target + left, source, p.blockLen);
    }
}

/// UB to GM: the mirror image, srcStride in 32-byte blocks, dstStride in bytes.
template <typename T>
inline void DataCopyPad(const GlobalTensor<T> &dst, const LocalTensor<T> &src, const DataCopyExtParams &p)
{
    using namespace host_model;
    beginInstruction("DataCopyPad UB->GM", PIPE_MTE3);
    requireAligned(src, "src");
    requireLimits(p, sizeof(T));
    const uint32_t row = (p.blockLen + 31) / 32 * 32;
    for (uint32_t k = 0; k < p.blockCount; ++k) {
        const uint64_t from = static_cast<uint64_t>(k) * (row + p.srcStride * kBlockBytes);
        const uint64_t to = static_cast<uint64_t>(k) * (p.blockLen + p.dstStride);
        HOST_MODEL_REQUIRE(from + p.blockLen <= src.bytes, "byte %llu of a tensor of %u",
                           static_cast<unsigned long long>(from + p.blockLen), src.bytes);
        requireInside(dst, to, p.blockLen);
        touchUb(src.addr + from, p.blockLen, PIPE_MTE3, false);
        writeGm(dst.ptr + to / sizeof(T), src.addr + from, p.blockLen);
    }
}

}  // namespace AscendC
