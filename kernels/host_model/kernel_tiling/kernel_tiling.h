// The cube tiling that the host computes for a Matmul object; the model needs the shapes only.
//
// CANN 8.1 declares the structure globally. 9.x declares it in AscendC::tiling and takes it into the global namespace;
// HOST_MODEL_CANN_9 chooses that shape.
#pragma once
#include <cstdint>

#ifdef HOST_MODEL_CANN_9
namespace AscendC {
namespace tiling {
#endif

struct TCubeTiling {
    int32_t M = 0, N = 0, Ka = 0, Kb = 0;
    int32_t singleCoreM = 0, singleCoreN = 0, singleCoreK = 0;
};

#ifdef HOST_MODEL_CANN_9
}  // namespace tiling
}  // namespace AscendC
using AscendC::tiling::TCubeTiling;
#endif
