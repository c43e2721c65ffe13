// One vector type for every instruction set, on the compiler's vector extensions.
//
// `Vec` holds `kWidth` floats: 16 with AVX-512, 8 with AVX2, 4 elsewhere (SSE2, NEON). Kernels are written once
// against this header; the instruction set is a matter of compiler flags, so each one is a library of its own.
// Reductions have a fixed order per width, and nothing here depends on the number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mindmoe {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

#define MINDMOE_INLINE inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecInt __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kWidth * 4)));
typedef uint16_t VecHalf __attribute__((vector_size(kWidth * 2)));

// The upper half of a float's bits. A type of its own, so that overloads can tell it from integers.
struct bf16 {
  uint16_t bits;
};

// How many lanes of a vector a loop body touches: all of them, or the first `count`.
struct AllLanes {
  static constexpr int count = kWidth;
};
struct SomeLanes {
  int count;
};

// Calls body(i, lanes) for i = 0, kWidth, ... so that every index below n is covered once.
template <class Body>
MINDMOE_INLINE void for_lanes(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, AllLanes{});
  if (i < n) body(i, SomeLanes{static_cast<int>(n - i)});
}

MINDMOE_INLINE Vec splat(float value) { return Vec{} + value; }

template <class To, class From>
MINDMOE_INLINE To bit_cast(const From &from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// ---- bf16 <-> float, rounding to nearest even, NaN kept ----

MINDMOE_INLINE Vec widen(VecHalf half) { return bit_cast<Vec>(__builtin_convertvector(half, VecBits) << 16); }

MINDMOE_INLINE VecHalf narrow(Vec value) {
#if defined(__AVX512BF16__)
  return bit_cast<VecHalf>(_mm512_cvtneps_pbh(bit_cast<__m512>(value)));
#else
  VecBits bits = bit_cast<VecBits>(value);
  VecBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  VecBits quiet_nan = (bits >> 16) | 0x40;
  return __builtin_convertvector(value == value ? rounded : quiet_nan, VecHalf);
#endif
}

MINDMOE_INLINE float to_float(float value) { return value; }
MINDMOE_INLINE float to_float(bf16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

// ---- loads and stores; missing lanes read as zero and are not written ----

MINDMOE_INLINE Vec load(const float *from, AllLanes) {
  Vec value;
  std::memcpy(&value, from, sizeof(Vec));
  return value;
}
MINDMOE_INLINE Vec load(const bf16 *from, AllLanes) {
  VecHalf half;
  std::memcpy(&half, from, sizeof(VecHalf));
  return widen(half);
}
template <class T>
MINDMOE_INLINE Vec load(const T *from, SomeLanes lanes) {
  T buffer[kWidth] = {};
  for (int i = 0; i < lanes.count; ++i) buffer[i] = from[i];
  return load(buffer, AllLanes{});
}

MINDMOE_INLINE void store(float *to, Vec value, AllLanes) { std::memcpy(to, &value, sizeof(Vec)); }
MINDMOE_INLINE void store(bf16 *to, Vec value, AllLanes) {
  VecHalf half = narrow(value);
  std::memcpy(to, &half, sizeof(VecHalf));
}
template <class T>
MINDMOE_INLINE void store(T *to, Vec value, SomeLanes lanes) {
  T buffer[kWidth];
  store(buffer, value, AllLanes{});
  for (int i = 0; i < lanes.count; ++i) to[i] = buffer[i];
}

// ---- arithmetic ----

MINDMOE_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
MINDMOE_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

MINDMOE_INLINE Vec sqrt(Vec value) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_maskz_sqrt_ps(0xffff, bit_cast<__m512>(value)));
#elif defined(__AVX2__)
  return bit_cast<Vec>(_mm256_sqrt_ps(bit_cast<__m256>(value)));
#else
  for (int i = 0; i < kWidth; ++i) value[i] = std::sqrt(value[i]);
  return value;
#endif
}

// The lanes that exist, and `other` in the missing ones.
MINDMOE_INLINE Vec keep(Vec value, AllLanes, float = 0.0f) { return value; }
MINDMOE_INLINE Vec keep(Vec value, SomeLanes lanes, float other = 0.0f) {
  for (int i = lanes.count; i < kWidth; ++i) value[i] = other;
  return value;
}

typedef float Quad __attribute__((vector_size(16)));

// Folds the lanes to four, then to one; `combine` is associative up to rounding.
template <class Combine>
MINDMOE_INLINE float fold(Vec value, Combine combine) {
  Quad parts[kWidth / 4];
  std::memcpy(parts, &value, sizeof(Vec));
  for (int step = kWidth / 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) parts[i] = combine(parts[i], parts[i + step]);
  Quad rest = parts[0];
  return combine(combine(rest[0], rest[2]), combine(rest[1], rest[3]));
}

MINDMOE_INLINE float sum(Vec value) {
  return fold(value, [](auto a, auto b) { return a + b; });
}

MINDMOE_INLINE float max_lane(Vec value) {
  return fold(value, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x to about 1e-7 relative; below -87.3 the result is the smallest normal number, above 88.3 the largest power.
// Source: Cephes expf (polynomial and the split of log 2).
MINDMOE_INLINE Vec exp(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  x = min(max(x, splat(-87.3f)), splat(88.3f));
  Vec shifted = x * 1.44269504f + kRound;
  VecBits power = bit_cast<VecBits>(shifted) << 23;
  Vec n = shifted - kRound;
  Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return bit_cast<Vec>(bit_cast<VecBits>(p) + power);
}

MINDMOE_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// ---- interleaved pairs: (a0 b0 a1 b1 ...) <-> (a0 a1 ...), (b0 b1 ...) ----

#if defined(__clang__)
#define MINDMOE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MINDMOE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

MINDMOE_INLINE void deinterleave(Vec low, Vec high, Vec &even, Vec &odd) {
#if defined(__AVX512F__)
  even = MINDMOE_SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  odd = MINDMOE_SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
  even = MINDMOE_SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
  odd = MINDMOE_SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  even = MINDMOE_SHUFFLE(low, high, 0, 2, 4, 6);
  odd = MINDMOE_SHUFFLE(low, high, 1, 3, 5, 7);
#endif
}

MINDMOE_INLINE void interleave(Vec even, Vec odd, Vec &low, Vec &high) {
#if defined(__AVX512F__)
  low = MINDMOE_SHUFFLE(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = MINDMOE_SHUFFLE(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  low = MINDMOE_SHUFFLE(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
  high = MINDMOE_SHUFFLE(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  low = MINDMOE_SHUFFLE(even, odd, 0, 4, 1, 5);
  high = MINDMOE_SHUFFLE(even, odd, 2, 6, 3, 7);
#endif
}

// Pairs at `from[2 i]` for the given lanes of i; and back.
template <class T>
MINDMOE_INLINE void load_pairs(const T *from, AllLanes lanes, Vec &even, Vec &odd) {
  deinterleave(load(from, lanes), load(from + kWidth, lanes), even, odd);
}
template <class T>
MINDMOE_INLINE void load_pairs(const T *from, SomeLanes lanes, Vec &even, Vec &odd) {
  T buffer[2 * kWidth] = {};
  for (int i = 0; i < 2 * lanes.count; ++i) buffer[i] = from[i];
  load_pairs(buffer, AllLanes{}, even, odd);
}
template <class T>
MINDMOE_INLINE void store_pairs(T *to, Vec even, Vec odd, AllLanes lanes) {
  Vec low, high;
  interleave(even, odd, low, high);
  store(to, low, lanes);
  store(to + kWidth, high, lanes);
}
template <class T>
MINDMOE_INLINE void store_pairs(T *to, Vec even, Vec odd, SomeLanes lanes) {
  T buffer[2 * kWidth];
  store_pairs(buffer, even, odd, AllLanes{});
  for (int i = 0; i < 2 * lanes.count; ++i) to[i] = buffer[i];
}

// ---- whole rows ----

template <class To, class From>
MINDMOE_INLINE void copy_row(To *to, const From *from, int64_t n) {
  for_lanes(n, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
}

// to += scale * from
template <class From>
MINDMOE_INLINE void add_row(float *to, const From *from, int64_t n, float scale = 1.0f) {
  for_lanes(n, [&](int64_t i, auto lanes) {
    store(to + i, load(to + i, lanes) + scale * load(from + i, lanes), lanes);
  });
}

MINDMOE_INLINE void scale_row(float *row, int64_t n, float scale) {
  for_lanes(n, [&](int64_t i, auto lanes) { store(row + i, load(row + i, lanes) * scale, lanes); });
}

template <class A, class B>
MINDMOE_INLINE float dot_row(const A *a, const B *b, int64_t n) {
  Vec total{};
  for_lanes(n, [&](int64_t i, auto lanes) { total += load(a + i, lanes) * load(b + i, lanes); });
  return sum(total);
}

}  // namespace mindmoe
