// Which keys a query sees: causal, within its window, within its document.
#ifndef MINDMOE_ATTENTION_VISIBILITY_H
#define MINDMOE_ATTENTION_VISIBILITY_H
#include "attention_tiling.h"
#include "common.h"

namespace mindmoe {
class Visibility {
public:
    // documents [batch, seq]: position where the document of each token starts; never decreases along a row.
    __aicore__ inline void Init(GM_ADDR documents, const AttentionTilingData &t)
    {
        seq_ = t.seq;
        window_ = t.window;
        hasDocuments_ = t.hasDocuments != 0;
        documents_.SetGlobalBuffer((__gm__ int32_t *)documents,
                                   hasDocuments_ ? static_cast<uint64_t>(t.batch) * t.seq : 0);
    }

    // First key that query `position` sees; the last one is the query itself.
    __aicore__ inline uint32_t FirstKey(uint32_t batch, uint32_t position) const
    {
        const uint32_t byWindow = window_ != 0 && position + 1 > window_ ? position + 1 - window_ : 0;
        if (!hasDocuments_) {
            return byWindow;
        }
        const uint32_t byDocument =
            static_cast<uint32_t>(documents_.GetValue(static_cast<uint64_t>(batch) * seq_ + position));
        return byDocument > byWindow ? byDocument : byWindow;
    }

    // Overwrites with LOWEST the scores [rows, pitch] of queries q0.. against keys k0.. that are hidden, and the
    // columns from `cols` on, which hold no key. Starts after and ends with ordered vector instructions.
    __aicore__ inline void Hide(const LocalTensor<float> &scores, uint32_t batch, uint32_t q0, uint32_t rows,
                                uint32_t k0, uint32_t cols, uint32_t pitch) const
    {
        if (cols == pitch && k0 + cols <= q0 + 1 && FirstKey(batch, q0 + rows - 1) <= k0) {
            return;
        }
        for (uint32_t r = 0; r < rows; ++r) {
            const uint32_t position = q0 + r;
            const uint32_t end = position < k0 ? 0 : Smaller(position + 1 - k0, cols);
            const uint32_t first = FirstKey(batch, position);
            const uint32_t begin = first > k0 ? first - k0 : 0;
            for (uint32_t c = 0; c < pitch; c += LANES) {
                uint64_t hidden[2] = {~(Below(end, c) & ~Below(begin, c)), 0};
                if (hidden[0] != 0) {
                    Duplicate(scores[r * pitch + c], LOWEST, hidden, 1, 1, 8);
                }
            }
        }
        PipeBarrier<PIPE_V>();
    }

private:
    // Bits of the columns c .. c + 63 that are below the limit.
    __aicore__ inline static uint64_t Below(uint32_t limit, uint32_t c)
    {
        if (limit <= c) {
            return 0;
        }
        return limit - c >= LANES ? ~0ULL : (1ULL << (limit - c)) - 1;
    }

    uint32_t seq_ = 0, window_ = 0;
    bool hasDocuments_ = false;
    GlobalTensor<int32_t> documents_;
};
}  // namespace mindmoe
#endif
