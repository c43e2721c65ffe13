// The weighted sums of rows behind a tensor's digest (mindmoe/checkpoint/digest.py), modulo 2^64: exact, so that they
// equal NumPy's in every bit. On the calling thread, called without MindSpore.
#include <cstdint>

namespace {

template <class Word>
void sums(const Word *rows, int64_t count, int64_t length, const uint64_t *weights, uint64_t *out) {
  for (int64_t row = 0; row < count; ++row, rows += length) {
    uint64_t total = 0;
    for (int64_t i = 0; i < length; ++i) total += rows[i] * weights[i];
    out[row] = total;
  }
}

}  // namespace

// out[r] = sum over i of rows[r, i] * weights[i], rows (count, length) of unsigned words of `bytes`. 0, or 1 if there
// are no such words.
extern "C" __attribute__((visibility("default"))) int mindmoe_weighted_sums(const void *rows, int bytes, int64_t count,
                                                                            int64_t length, const uint64_t *weights,
                                                                            uint64_t *out) {
  switch (bytes) {
    case 1: sums(static_cast<const uint8_t *>(rows), count, length, weights, out); return 0;
    case 2: sums(static_cast<const uint16_t *>(rows), count, length, weights, out); return 0;
    case 4: sums(static_cast<const uint32_t *>(rows), count, length, weights, out); return 0;
    case 8: sums(static_cast<const uint64_t *>(rows), count, length, weights, out); return 0;
    default: return 1;
  }
}
