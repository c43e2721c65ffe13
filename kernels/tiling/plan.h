// What a tiling function returns, and the figures of the machine it plans for. Pure C++17: shared by op_host, the
// host-model tests and any other caller.
#pragma once
#include <algorithm>
#include <cstdint>

namespace mindmoe {
namespace tiling {

struct Machine {
    uint32_t vectorCores = 48;        // 910B1 and B2; B3 and B4 have 40
    uint32_t ubBytes = 184 * 1024;    // 192 KB less the 8 KB that some APIs use as scratch
};

template <typename Data> struct Plan {
    Data data{};
    uint32_t cores = 0;           // vector cores to start
    uint64_t workspaceBytes = 0;
    uint32_t ubBytes = 0;         // UB that the kernel's buffers take, at most Machine::ubBytes
    const char *error = nullptr;  // the rule that the request breaks, or nullptr
};

inline uint32_t ceilDiv(uint64_t a, uint64_t b) { return static_cast<uint32_t>((a + b - 1) / b); }
inline uint32_t roundUp(uint64_t a, uint64_t to) { return static_cast<uint32_t>((a + to - 1) / to * to); }

constexpr uint32_t kMaxRepeat = 255;  // of one vector instruction
constexpr uint32_t kBlockBytes = 32;

}  // namespace tiling
}  // namespace mindmoe
