// Element-wise, reducing, broadcasting and gathering instructions of the vector pipe.
#pragma once
#include <algorithm>
#include <cmath>

#include "tensor.h"

namespace host_model {

using AscendC::LocalTensor;

/// One operand of a repeated instruction: block and repeat strides in 32-byte blocks.
template <typename T> struct Operand {
    const LocalTensor<T> &tensor;
    uint32_t blockStride, repeatStride;

    uint8_t *at(uint32_t repeat, uint32_t lane) const
    {
        const size_t block = static_cast<size_t>(repeat) * repeatStride + (lane / perBlock<T>)*blockStride;
        const size_t offset = block * kBlockBytes + lane % perBlock<T> * sizeof(T);
        HOST_MODEL_REQUIRE(offset + sizeof(T) <= tensor.bytes, "operand ends at byte %zu of a tensor of %u (repeat %u)",
                           offset + sizeof(T), tensor.bytes, repeat);
        return tensor.addr + offset;
    }
    T get(uint32_t repeat, uint32_t lane) const { return load<T>(at(repeat, lane)); }
    void put(uint32_t repeat, uint32_t lane, T value) const { store<T>(at(repeat, lane), value); }
};

/// Lanes that take part: the first n, or those whose bit is set (word 0 holds lanes 0..63).
class Mask {
public:
    static Mask count(uint64_t n, uint32_t lanes)
    {
        HOST_MODEL_REQUIRE(n >= 1 && n <= lanes, "mask %llu is outside [1, %u]", static_cast<unsigned long long>(n),
                           lanes);
        Mask m;
        m.count_ = static_cast<uint32_t>(n);
        return m;
    }
    static Mask bits(const uint64_t words[], uint32_t lanes)
    {
        Mask m;
        m.low_ = words[0];
        m.high_ = lanes > 64 ? words[1] : 0;
        m.count_ = lanes;
        m.byBits_ = true;
        return m;
    }
    bool operator[](uint32_t lane) const
    {
        return byBits_ ? ((lane < 64 ? low_ >> lane : high_ >> (lane - 64)) & 1) != 0 : lane < count_;
    }

private:
    uint64_t low_ = 0, high_ = 0;
    uint32_t count_ = 0;
    bool byBits_ = false;
};

/// Runs dst[lane] = f(repeat, lane) over the masked lanes of every repeat; a repeat reads before it writes.
template <typename D, typename F>
inline void repeated(const char *name, Operand<D> dst, uint32_t lanes, Mask mask, uint32_t repeats, F f)
{
    beginInstruction(name, PIPE_V);
    requireAligned(dst.tensor, "dst");
    HOST_MODEL_REQUIRE(repeats >= 1 && repeats <= 255, "repeat count %u is outside [1, 255]", repeats);
    HOST_MODEL_REQUIRE(dst.blockStride != 0, "dstBlkStride is 0");
    D values[kRepeatBytes];
    for (uint32_t r = 0; r < repeats; ++r) {
        core->step = r + 1;
        for (uint32_t i = 0; i < lanes; ++i) {
            if (mask[i]) {
                values[i] = f(r, i);
            }
        }
        for (uint32_t i = 0; i < lanes; ++i) {
            if (mask[i]) {
                dst.put(r, i, values[i]);
            }
        }
    }
}

/// The same over n contiguous elements; `lanes` is set by the widest operand.
template <typename D, typename F>
inline void counted(const char *name, const LocalTensor<D> &dst, uint32_t lanes, int64_t n, F f)
{
    beginInstruction(name, PIPE_V);
    requireAligned(dst, "dst");
    HOST_MODEL_REQUIRE(n >= 1, "element count %lld", static_cast<long long>(n));
    HOST_MODEL_REQUIRE(static_cast<uint64_t>(n) * sizeof(D) <= dst.bytes, "%lld elements into a tensor of %u bytes",
                       static_cast<long long>(n), dst.bytes);
    D values[kRepeatBytes];
    for (uint32_t r = 0; static_cast<int64_t>(r) * lanes < n; ++r) {
        core->step = r + 1;
        const auto live = static_cast<uint32_t>(std::min<int64_t>(lanes, n - static_cast<int64_t>(r) * lanes));
        for (uint32_t i = 0; i < live; ++i) {
            values[i] = f(r, i);
        }
        for (uint32_t i = 0; i < live; ++i) {
            store<D>(dst.addr + (static_cast<size_t>(r) * lanes + i) * sizeof(D), values[i]);
        }
    }
}

template <typename T> inline Operand<T> contiguous(const LocalTensor<T> &t, uint32_t lanes = lanesOf<T>)
{
    requireAligned(t, "src");
    return {t, 1, lanes / perBlock<T>};
}
template <typename T> inline Operand<T> strided(const LocalTensor<T> &t, uint32_t block, uint32_t repeat)
{
    requireAligned(t, "src");
    return {t, block, repeat};
}

/// Pairwise sum over lanes, masked ones left out: the hardware adds as a binary tree.
template <typename T, typename F> inline T reduceTree(T *values, uint32_t n, F f)
{
    for (; n > 1; n = (n + 1) / 2) {
        for (uint32_t i = 0; i < n / 2; ++i) {
            values[i] = f(values[2 * i], values[2 * i + 1]);
        }
        if (n % 2 != 0) {
            values[n / 2] = values[n - 1];
        }
    }
    return values[0];
}

/// A reduction reads 256 bytes and writes a few: source and destination of one instruction must lie apart.
template <typename T> inline void requireApart(const LocalTensor<T> &dst, const Operand<T> &src, int32_t repeats)
{
    const uint8_t *end = src.at(static_cast<uint32_t>(repeats) - 1, 0);
    HOST_MODEL_REQUIRE(dst.addr < src.tensor.addr || dst.addr > end, "dst overlaps src");
}

/// Reduces each repeat to one element. dstRepStride counts elements.
template <typename T, typename F>
inline void wholeReduce(const char *name, const LocalTensor<T> &dst, const LocalTensor<T> &src, int32_t mask,
                        int32_t repeats, int32_t dstRep, int32_t srcBlk, int32_t srcRep, F f)
{
    static_assert(isFloat<T>, "A2: reductions of float");
    beginInstruction(name, PIPE_V);
    HOST_MODEL_REQUIRE(repeats >= 1 && repeats <= 255, "repeat count %d is outside [1, 255]", repeats);
    const Mask lanes = Mask::count(static_cast<uint64_t>(mask), lanesOf<T>);
    const Operand<T> in = strided(src, srcBlk, srcRep);
    requireAligned(dst, "dst", sizeof(T));
    requireApart(dst, in, repeats);
    for (int32_t r = 0; r < repeats; ++r) {
        core->step = r + 1;
        T values[lanesOf<T>];
        uint32_t n = 0;
        for (uint32_t i = 0; i < lanesOf<T>; ++i) {
            if (lanes[i]) {
                values[n++] = in.get(r, i);
            }
        }
        const size_t offset = static_cast<size_t>(r) * dstRep * sizeof(T);
        HOST_MODEL_REQUIRE(offset + sizeof(T) <= dst.bytes, "dst ends at byte %zu of %u", offset + sizeof(T),
                           dst.bytes);
        store<T>(dst.addr + offset, reduceTree(values, n, f));
    }
}

/// Reduces each 32-byte block to one element; a block without masked lanes keeps its old result.
template <typename T, typename F>
inline void blockReduce(const char *name, const LocalTensor<T> &dst, const LocalTensor<T> &src, int32_t repeats,
                        const Mask &mask, int32_t dstRep, int32_t srcBlk, int32_t srcRep, F f)
{
    static_assert(isFloat<T>, "A2: reductions of float");
    beginInstruction(name, PIPE_V);
    HOST_MODEL_REQUIRE(repeats >= 1 && repeats <= 255, "repeat count %d is outside [1, 255]", repeats);
    const Operand<T> in = strided(src, srcBlk, srcRep);
    requireAligned(dst, "dst");
    requireApart(dst, in, repeats);
    for (int32_t r = 0; r < repeats; ++r) {
        core->step = r + 1;
        for (uint32_t block = 0; block < 8; ++block) {
            T values[perBlock<T>];
            uint32_t n = 0;
            for (uint32_t i = block * perBlock<T>; i < (block + 1) * perBlock<T>; ++i) {
                if (mask[i]) {
                    values[n++] = in.get(r, i);
                }
            }
            const size_t offset = (static_cast<size_t>(r) * dstRep * 8 + block) * sizeof(T);
            if (n > 0) {
                HOST_MODEL_REQUIRE(offset + sizeof(T) <= dst.bytes, "dst ends at byte %zu of %u", offset + sizeof(T),
                                   dst.bytes);
                store<T>(dst.addr + offset, reduceTree(values, n, f));
            }
        }
    }
}

template <typename T> inline bool compare(T a, T b, AscendC::CMPMODE mode)
{
    using AscendC::CMPMODE;
    switch (mode) {
        case CMPMODE::LT: return a < b;
        case CMPMODE::GT: return a > b;
        case CMPMODE::EQ: return a == b;
        case CMPMODE::LE: return a <= b;
        case CMPMODE::GE: return a >= b;
        default: return a != b;
    }
}

}  // namespace host_model

namespace AscendC {

#define HOST_MODEL_BINARY(NAME, SUPPORTED, EXPRESSION)                                                             \
    template <typename T>                                                                                          \
    inline void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src0, const LocalTensor<T> &src1,            \
                     const int32_t &count)                                                                         \
    {                                                                                                              \
        static_assert(SUPPORTED, #NAME ": element type not supported on A2");                                      \
        host_model::core->instruction = #NAME;                                                                     \
        const auto s0 = host_model::contiguous(src0), s1 = host_model::contiguous(src1);                           \
        host_model::counted(#NAME, dst, host_model::lanesOf<T>, count, [&](uint32_t r, uint32_t i) {               \
            const T a = s0.get(r, i), b = s1.get(r, i);                                                            \
            return static_cast<T>(EXPRESSION);                                                                     \
        });                                                                                                        \
    }                                                                                                              \
    template <typename T>                                                                                          \
    inline void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src0, const LocalTensor<T> &src1,            \
                     uint64_t mask, const uint8_t repeatTime, const BinaryRepeatParams &p)                         \
    {                                                                                                              \
        static_assert(SUPPORTED, #NAME ": element type not supported on A2");                                      \
        host_model::core->instruction = #NAME;                                                                     \
        const auto s0 = host_model::strided(src0, p.src0BlkStride, p.src0RepStride);                               \
        const auto s1 = host_model::strided(src1, p.src1BlkStride, p.src1RepStride);                               \
        host_model::repeated(                                                                                      \
            #NAME, host_model::Operand<T>{dst, p.dstBlkStride, p.dstRepStride}, host_model::lanesOf<T>,            \
            host_model::Mask::count(mask, host_model::lanesOf<T>), repeatTime, [&](uint32_t r, uint32_t i) {       \
                const T a = s0.get(r, i), b = s1.get(r, i);                                                        \
                return static_cast<T>(EXPRESSION);                                                                 \
            });                                                                                                    \
    }
HOST_MODEL_BINARY(Add, host_model::isArithmetic<T>, a + b)
HOST_MODEL_BINARY(Sub, host_model::isArithmetic<T>, a - b)
HOST_MODEL_BINARY(Mul, host_model::isArithmetic<T>, a *b)
HOST_MODEL_BINARY(Max, host_model::isArithmetic<T>, a > b ? a : b)
HOST_MODEL_BINARY(Min, host_model::isArithmetic<T>, a < b ? a : b)
HOST_MODEL_BINARY(Div, host_model::isFloat<T>, a / b)
#undef HOST_MODEL_BINARY

#define HOST_MODEL_UNARY(NAME, EXPRESSION)                                                                         \
    template <typename T> inline void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const int32_t &count) \
    {                                                                                                              \
        static_assert(host_model::isFloat<T>, #NAME ": element type not supported on A2");                         \
        host_model::core->instruction = #NAME;                                                                     \
        const auto s = host_model::contiguous(src);                                                                \
        host_model::counted(#NAME, dst, host_model::lanesOf<T>, count, [&](uint32_t r, uint32_t i) {               \
            const T a = s.get(r, i);                                                                               \
            return static_cast<T>(EXPRESSION);                                                                     \
        });                                                                                                        \
    }
HOST_MODEL_UNARY(Exp, std::exp(a))
HOST_MODEL_UNARY(Ln, std::log(a))
#undef HOST_MODEL_UNARY

#define HOST_MODEL_SCALAR(NAME, EXPRESSION)                                                                        \
    template <typename T>                                                                                          \
    inline void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &b, const int32_t &count)       \
    {                                                                                                              \
        static_assert(host_model::isArithmetic<T>, #NAME ": element type not supported on A2");                    \
        host_model::core->instruction = #NAME;                                                                     \
        const auto s = host_model::contiguous(src);                                                                \
        host_model::counted(#NAME, dst, host_model::lanesOf<T>, count, [&](uint32_t r, uint32_t i) {               \
            const T a = s.get(r, i);                                                                               \
            return static_cast<T>(EXPRESSION);                                                                     \
        });                                                                                                        \
    }
HOST_MODEL_SCALAR(Adds, a + b)
HOST_MODEL_SCALAR(Muls, a *b)
HOST_MODEL_SCALAR(Maxs, a > b ? a : b)
HOST_MODEL_SCALAR(Mins, a < b ? a : b)
#undef HOST_MODEL_SCALAR

template <typename T>
inline void ShiftRight(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &bits, const int32_t &count)
{
    static_assert(std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t>, "model: ShiftRight of 32-bit integers");
    host_model::core->instruction = "ShiftRight";
    const auto s = host_model::contiguous(src);
    host_model::counted("ShiftRight", dst, host_model::lanesOf<T>, count,
                        [&](uint32_t r, uint32_t i) { return static_cast<T>(s.get(r, i) >> bits); });
}

/// dst += scalar * src.
template <typename T>
inline void Axpy(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &scalar, const int32_t &count)
{
    static_assert(host_model::isFloat<T>, "Axpy: element type not supported on A2");
    host_model::core->instruction = "Axpy";
    const auto d = host_model::contiguous(dst), s = host_model::contiguous(src);
    host_model::counted("Axpy", dst, host_model::lanesOf<T>, count,
                        [&](uint32_t r, uint32_t i) { return d.get(r, i) + scalar * s.get(r, i); });
}

template <typename T> inline void Duplicate(const LocalTensor<T> &dst, const T &value, const int32_t &count)
{
    host_model::counted("Duplicate", dst, host_model::lanesOf<T>, count, [&](uint32_t, uint32_t) { return value; });
}
template <typename T>
inline void Duplicate(const LocalTensor<T> &dst, const T &value, uint64_t mask[], const uint8_t repeatTime,
                      const uint16_t dstBlkStride, const uint8_t dstRepStride)
{
    host_model::repeated("Duplicate", host_model::Operand<T>{dst, dstBlkStride, dstRepStride}, host_model::lanesOf<T>,
                         host_model::Mask::bits(mask, host_model::lanesOf<T>), repeatTime,
                         [&](uint32_t, uint32_t) { return value; });
}

template <typename T> inline void CreateVecIndex(LocalTensor<T> dst, const T &first, uint32_t count)
{
    static_assert(host_model::isArithmetic<T>, "CreateVecIndex: element type not supported on A2");
    host_model::counted("CreateVecIndex", dst, host_model::lanesOf<T>, count, [&](uint32_t r, uint32_t i) {
        return static_cast<T>(first + static_cast<T>(r * host_model::lanesOf<T> + i));
    });
}

template <typename D, typename S>
inline void Cast(const LocalTensor<D> &dst, const LocalTensor<S> &src, const RoundMode &mode, const uint32_t count)
{
    constexpr bool widen = std::is_same_v<D, float> && std::is_same_v<S, bfloat16_t>;
    constexpr bool narrow = std::is_same_v<D, bfloat16_t> && std::is_same_v<S, float>;
    constexpr bool convert = std::is_same_v<D, float> && std::is_same_v<S, int32_t>;
    static_assert(widen || narrow || convert, "model: no such Cast");
    constexpr uint32_t lanes = host_model::lanesOf<float>;
    host_model::core->instruction = "Cast";
    HOST_MODEL_REQUIRE(mode == (narrow ? RoundMode::CAST_RINT : RoundMode::CAST_NONE), "round mode %d of this pair",
                       static_cast<int>(mode));
    const auto s = host_model::contiguous(src, lanes);
    host_model::counted("Cast", dst, lanes, count,
                        [&](uint32_t r, uint32_t i) { return static_cast<D>(static_cast<float>(s.get(r, i))); });
}

/// Each repeat spreads 8 source elements over 8 blocks.
template <typename T>
inline void Brcb(const LocalTensor<T> &dst, const LocalTensor<T> &src, const uint8_t repeatTime,
                 const BrcbRepeatParams &p)
{
    static_assert(sizeof(T) == 4, "model: Brcb of 4-byte elements");
    host_model::core->instruction = "Brcb";
    const auto s = host_model::strided(src, 1, 1);
    host_model::repeated("Brcb", host_model::Operand<T>{dst, p.dstBlkStride, p.dstRepStride}, host_model::lanesOf<T>,
                         host_model::Mask::count(host_model::lanesOf<T>, host_model::lanesOf<T>), repeatTime,
                         [&](uint32_t r, uint32_t i) { return s.get(r, i / host_model::perBlock<T>); });
}

template <typename T>
inline void WholeReduceSum(const LocalTensor<T> &dst, const LocalTensor<T> &src, const int32_t mask,
                           const int32_t repeat, const int32_t dstRep, const int32_t srcBlk, const int32_t srcRep)
{
    host_model::wholeReduce("WholeReduceSum", dst, src, mask, repeat, dstRep, srcBlk, srcRep,
                            [](T a, T b) { return a + b; });
}
template <typename T>
inline void WholeReduceMax(const LocalTensor<T> &dst, const LocalTensor<T> &src, const int32_t mask,
                           const int32_t repeat, const int32_t dstRep, const int32_t srcBlk, const int32_t srcRep,
                           ReduceOrder order)
{
    host_model::core->instruction = "WholeReduceMax";
    HOST_MODEL_REQUIRE(order == ReduceOrder::ORDER_ONLY_VALUE, "model: ORDER_ONLY_VALUE");
    host_model::wholeReduce("WholeReduceMax", dst, src, mask, repeat, dstRep, srcBlk, srcRep,
                            [](T a, T b) { return a > b ? a : b; });
}

#define HOST_MODEL_BLOCK_REDUCE(NAME, EXPRESSION)                                                                  \
    template <typename T>                                                                                          \
    inline void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const int32_t repeat,                   \
                     const uint64_t mask[], const int32_t dstRep, const int32_t srcBlk, const int32_t srcRep)      \
    {                                                                                                              \
        host_model::blockReduce(#NAME, dst, src, repeat, host_model::Mask::bits(mask, host_model::lanesOf<T>),     \
                                dstRep, srcBlk, srcRep, [](T a, T b) { return EXPRESSION; });                      \
    }                                                                                                              \
    template <typename T>                                                                                          \
    inline void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const int32_t repeat,                   \
                     const int32_t mask, const int32_t dstRep, const int32_t srcBlk, const int32_t srcRep)         \
    {                                                                                                              \
        host_model::core->instruction = #NAME;                                                                     \
        host_model::blockReduce(#NAME, dst, src, repeat,                                                           \
                                host_model::Mask::count(static_cast<uint64_t>(mask), host_model::lanesOf<T>),      \
                                dstRep, srcBlk, srcRep, [](T a, T b) { return EXPRESSION; });                      \
    }
HOST_MODEL_BLOCK_REDUCE(BlockReduceSum, a + b)
HOST_MODEL_BLOCK_REDUCE(BlockReduceMax, a > b ? a : b)
#undef HOST_MODEL_BLOCK_REDUCE

/// dst[i] = src at byte base + offset[i].
template <typename T>
inline void Gather(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LocalTensor<uint32_t> &offset,
                   const uint32_t base, const uint32_t count)
{
    static_assert(sizeof(T) == 4, "model: Gather of 4-byte elements");
    host_model::core->instruction = "Gather";
    const auto index = host_model::contiguous(offset);
    host_model::requireAligned(src, "src");
    host_model::counted("Gather", dst, host_model::lanesOf<T>, count, [&](uint32_t r, uint32_t i) {
        const uint64_t at = static_cast<uint64_t>(base) + index.get(r, i);
        HOST_MODEL_REQUIRE(at % sizeof(T) == 0 && at + sizeof(T) <= src.bytes, "offset %llu of %u bytes",
                           static_cast<unsigned long long>(at), src.bytes);
        return host_model::load<T>(src.addr + at);
    });
}

/// Bit i of dst = compare(src[i], scalar).
template <typename T>
inline void CompareScalar(const LocalTensor<uint8_t> &dst, const LocalTensor<T> &src, const T scalar, CMPMODE mode,
                          uint32_t count)
{
    static_assert(host_model::isFloat<T>, "model: CompareScalar of float");
    host_model::core->instruction = "CompareScalar";
    HOST_MODEL_REQUIRE(count * sizeof(T) % host_model::kRepeatBytes == 0, "%u elements are not whole repeats", count);
    const auto s = host_model::strided(src, 1, 0);
    host_model::counted("CompareScalar", dst, host_model::lanesOf<T> / 8, count / 8, [&](uint32_t r, uint32_t byte) {
        uint8_t bits = 0;
        for (uint32_t i = 0; i < 8; ++i) {
            const T value = s.get(0, (r * host_model::lanesOf<T> / 8 + byte) * 8 + i);
            bits |= static_cast<uint8_t>(host_model::compare(value, scalar, mode) ? 1u << i : 0u);
        }
        return bits;
    });
}

/// dst[i] = bit i of selected ? src[i] : scalar.
template <typename T>
inline void Select(const LocalTensor<T> &dst, const LocalTensor<uint8_t> &selected, const LocalTensor<T> &src,
                   const T scalar, SELMODE mode, uint32_t count)
{
    static_assert(host_model::isFloat<T>, "model: Select of float");
    host_model::core->instruction = "Select";
    HOST_MODEL_REQUIRE(mode == SELMODE::VSEL_TENSOR_SCALAR_MODE, "model: VSEL_TENSOR_SCALAR_MODE");
    HOST_MODEL_REQUIRE(count <= selected.GetSize() * 8, "mask tensor too short");
    host_model::requireAligned(selected, "mask");
    const auto s = host_model::contiguous(src);
    host_model::counted("Select", dst, host_model::lanesOf<T>, count, [&](uint32_t r, uint32_t i) {
        const uint32_t n = r * host_model::lanesOf<T> + i;
        const bool chosen = (host_model::load<uint8_t>(selected.addr + n / 8) >> n % 8 & 1) != 0;
        const T value = s.get(r, i);
        return chosen ? value : scalar;
    });
}

}  // namespace AscendC
