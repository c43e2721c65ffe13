// The cube tiling that the host computes for a Matmul object; the model needs the shapes only.
#pragma once
#include <cstdint>

namespace AscendC {
namespace tiling {

struct TCubeTiling {
    int32_t M = 0, N = 0, Ka = 0, Kb = 0;
    int32_t singleCoreM = 0, singleCoreN = 0, singleCoreK = 0;
};

}  // namespace tiling
}  // namespace AscendC
