// bf16 products on Intel's tile unit (AMX): 16 x 16 sums of 32 products each per instruction.
//
// Operands may also be fp32, rounded to bf16 as they are packed. Source: Intel Architecture Instruction Set Extensions
// Programming Reference, chapter 3 (tiles; a pair of neighbours of the inner dimension lies in one word of B's tile).
#pragma once

#include "gemm.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mindmoe {
namespace amx {

#if defined(__AMX_BF16__)

// Linux lends the tiles' state to a process that asks for it; its threads, present and future, have it then.
inline bool permitted() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

constexpr int64_t kTile = 16;               // rows of a tile, and words in a row
constexpr int64_t kDepth = 32;              // inner dimension of a tile of a or b
constexpr int64_t kPanel = 2 * kTile;       // rows of a, or columns of b, packed together: two tiles
constexpr int64_t kTileSize = kTile * kDepth;
constexpr int64_t kInner = 512;             // inner block: a panel of a stays in L1

MINDMOE_INLINE int64_t up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// A constant, since GCC 12 believes that _tile_loadconfig reads eight bytes and drops the writing of the others.
constexpr TileConfig kTiles16x64{};

// All eight tiles as 16 rows of 64 bytes, for as long as it lives.
class Tiles16x64 {
 public:
  Tiles16x64() { _tile_loadconfig(&kTiles16x64); }
  ~Tiles16x64() { _tile_release(); }
  Tiles16x64(const Tiles16x64 &) = delete;
  Tiles16x64 &operator=(const Tiles16x64 &) = delete;
};

MINDMOE_INLINE __mmask32 first(int64_t count) { return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1; }

// The first `count` of 32 values, zero behind.
MINDMOE_INLINE __m512i load32(const bf16 *from, int64_t count) { return _mm512_maskz_loadu_epi16(first(count), from); }
MINDMOE_INLINE __m512i load32(const float *from, int64_t count) {
  __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first(count)), from);
  __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first(count) >> 16), from + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// The first `count` of 16 values as the low halves of words, zero behind.
MINDMOE_INLINE __m512i load16(const bf16 *from, int64_t count) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first(count)), from));
}
MINDMOE_INLINE __m512i load16(const float *from, int64_t count) {
  return _mm512_cvtepu16_epi32(
      (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(static_cast<__mmask16>(first(count)), from)));
}

// 16 x 16 words, transposed: pairs of words, quarters, then the four quarters among themselves.
MINDMOE_INLINE void transpose(__m512i (&v)[16]) {
  __m512i w[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512i low = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), low2 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    __m512i high = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd), high2 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    w[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    w[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    w[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    w[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = w[i];
}

// Packs one tile of 16 lanes (rows of a, columns of b) by 32 inner values, zero padded. In memory the inner dimension
// is contiguous, or the lanes are; in the tile of a, likewise, a lane is a row, in that of b a pair of inner values is.
template <bool InnerContiguous, bool LaneIsRow, class T>
MINDMOE_INLINE void pack_tile(const T *x, int64_t ld, int64_t lanes, int64_t inner, bf16 *to) {
  __m512i v[16];
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    v[i] = _mm512_setzero_si512();
    if constexpr (InnerContiguous) {
      if (i < lanes) v[i] = load32(x + i * ld, inner);
    } else {
      if (2 * i < inner) v[i] = load16(x + 2 * i * ld, lanes);
      if (2 * i + 1 < inner) v[i] = _mm512_or_si512(v[i], _mm512_slli_epi32(load16(x + (2 * i + 1) * ld, lanes), 16));
    }
  }
  if constexpr (InnerContiguous != LaneIsRow) transpose(v);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kDepth, v[i]);
}

// Packs `lanes` of them in panels of kPanel, each of which has two tiles for every 32 inner values. It goes along the
// rows of memory, of which at most 32 are open at a time: rows far apart would be read without the prefetcher.
template <bool InnerContiguous, bool LaneIsRow, class T>
void pack_panels(const T *x, int64_t ld, int64_t lanes, int64_t inner, bf16 *to) {
  int64_t depth = up(inner, kDepth);
  auto pack = [&](int64_t lane, int64_t k) {
    pack_tile<InnerContiguous, LaneIsRow>(x + (InnerContiguous ? lane * ld + k : k * ld + lane), ld,
                                          std::min(kTile, lanes - lane), std::min(kDepth, inner - k),
                                          to + lane / kPanel * kPanel * depth + k * kPanel + lane % kPanel * kDepth);
  };
  if constexpr (InnerContiguous) {
    for (int64_t lane = 0; lane < lanes; lane += kTile)
      for (int64_t k = 0; k < inner; k += kDepth) pack(lane, k);
  } else {
    for (int64_t k = 0; k < inner; k += kDepth)
      for (int64_t lane = 0; lane < lanes; lane += kTile) pack(lane, k);
  }
}

// Where a block of the result goes: (rows, columns) at c, alpha * block + beta * c.
struct Target {
  float *c;
  int64_t ld, rows, columns;
  float alpha, beta;

  // Tiles can be loaded from, and stored to, c itself.
  bool direct() const {
    return alpha == 1.0f && (beta == 0.0f || beta == 1.0f) && rows % kTile == 0 && columns % kTile == 0;
  }
  void add(const float *block) const {
    for (int64_t i = 0; i < rows; ++i) {
      float *to = c + i * ld;
      for_lanes(columns, [&](int64_t j, auto lanes) {
        Vec value = load(block + i * kPanel + j, lanes) * alpha;
        store(to + j, beta == 0.0f ? value : value + load(to + j, lanes) * beta, lanes);
      });
    }
  }
};

// One panel of a times one panel of b. Tiles 0 to 3 are the sums, 4 and 5 of a, 6 and 7 of b.
template <bool TwoRows, bool TwoColumns>
MINDMOE_INLINE void multiply(int64_t steps, const bf16 *a, const bf16 *b, const Target &to) {
  alignas(64) float buffer[kPanel * kPanel];
  bool direct = to.direct();
  float *c = direct ? to.c : buffer;
  int64_t ld = direct ? to.ld : kPanel, stride = ld * 4;
  if (direct && to.beta == 1.0f) {
    _tile_loadd(0, c, stride);
    if (TwoColumns) _tile_loadd(1, c + kTile, stride);
    if (TwoRows) _tile_loadd(2, c + kTile * ld, stride);
    if (TwoRows && TwoColumns) _tile_loadd(3, c + kTile * ld + kTile, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, a += 2 * kTileSize, b += 2 * kTileSize) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (TwoColumns) {
      _tile_loadd(7, b + kTileSize, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (TwoRows) {
      _tile_loadd(5, a + kTileSize, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (TwoRows && TwoColumns) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, stride);
  if (TwoColumns) _tile_stored(1, c + kTile, stride);
  if (TwoRows) _tile_stored(2, c + kTile * ld, stride);
  if (TwoRows && TwoColumns) _tile_stored(3, c + kTile * ld + kTile, stride);
  if (!direct) to.add(buffer);
}

inline void multiply(int64_t steps, const bf16 *a, const bf16 *b, const Target &to) {
  bool two_rows = to.rows > kTile, two_columns = to.columns > kTile;
  if (two_rows && two_columns)
    multiply<true, true>(steps, a, b, to);
  else if (two_rows)
    multiply<true, false>(steps, a, b, to);
  else if (two_columns)
    multiply<false, true>(steps, a, b, to);
  else
    multiply<false, false>(steps, a, b, to);
}

// A large result that outgrows its operands is the gradient of weights: it leaves the caches before it is read again,
// so it is written past them, whole lines at a time, which need not be read first.
inline bool outgrows(int64_t m, int64_t n, int64_t k) {
  return k <= kInner && m * n > 2 * (m + n) * k && m * n >= 1 << 16;
}

inline void write_past_cache(float *to, const float *from, int64_t n) {
  int64_t head = std::min<int64_t>(n, (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64 / 4), i = head;
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(first(head)), _mm512_maskz_loadu_ps(first(head), from));
  for (; i + kTile <= n; i += kTile) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
  __mmask16 tail = static_cast<__mmask16>(first(n - i));
  _mm512_mask_storeu_ps(to + i, tail, _mm512_maskz_loadu_ps(tail, from + i));
}

// As gemm of gemm.h; a and b hold bf16 or fp32.
template <class A, class B>
void gemm(Side a_side, Side b_side, int64_t m, int64_t n, int64_t k, float alpha, const A *a, int64_t lda, const B *b,
          int64_t ldb, float beta, float *c, int64_t ldc) {
  Scratch scratch;
  int64_t deepest = up(std::min(k, kInner), kDepth);
  bf16 *a_panels = scratch.take<bf16>(up(m, kPanel) * deepest), *b_panels = scratch.take<bf16>(up(n, kPanel) * deepest);
  Tiles16x64 tiles;
  bool past_cache = beta == 0.0f && outgrows(m, n, k);
  int64_t pitch = up(n, kPanel) + kTile;  // no power of two
  float *block = past_cache ? scratch.take<float>(kPanel * pitch) : nullptr;
  for (int64_t p = 0; p < k; p += kInner) {
    int64_t inner = std::min(kInner, k - p), depth = up(inner, kDepth);
    if (a_side == kPlain)
      pack_panels<true, true>(a + p, lda, m, inner, a_panels);
    else
      pack_panels<false, true>(a + p * lda, lda, m, inner, a_panels);
    if (b_side == kPlain)
      pack_panels<false, false>(b + p * ldb, ldb, n, inner, b_panels);
    else
      pack_panels<true, false>(b + p, ldb, n, inner, b_panels);
    for (int64_t i = 0; i < m; i += kPanel) {
      int64_t rows = std::min(kPanel, m - i), ld = past_cache ? pitch : ldc;
      float *to = past_cache ? block : c + i * ldc;
      for (int64_t j = 0; j < n; j += kPanel)
        multiply(depth / kDepth, a_panels + i * depth, b_panels + j * depth,
                 {to + j, ld, rows, std::min(kPanel, n - j), alpha, p == 0 ? beta : 1.0f});
      for (int64_t row = 0; past_cache && row < rows; ++row)
        write_past_cache(c + (i + row) * ldc, block + row * pitch, n);
    }
  }
  if (past_cache) _mm_sfence();  // before another thread hears that c is there
}

#else

inline bool permitted() { return false; }

template <class A, class B>
void gemm(Side, Side, int64_t, int64_t, int64_t, float, const A *, int64_t, const B *, int64_t, float, float *,
          int64_t) {}

#endif

}  // namespace amx
}  // namespace mindmoe
